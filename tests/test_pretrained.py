"""A folder of pretrained towers from import to score, fine-tuning and export; towers are the golden
ones, data drawn scenes.
"""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from configs import pretrained_flickr
from xmr import checkpoint, import_run, inspect, train
from xmr.config import base_config
from xmr.errors import UserError
from xmr.inspect import export
from xmr.models import lora
from xmr.preemption import Stop

TOWERS = GOLDEN / "towers"
PICTURES = [str(TOWERS / f"image_{i}.png") for i in range(4)]
TEXTS = json.loads((TOWERS / "texts.json").read_text())


@pytest.fixture(scope="module", params=["clip", "siglip"])
def imported(request, tmp_path_factory):
  """(kind, run folder)."""
  folder = tmp_path_factory.mktemp(request.param) / "run"
  import_run.import_pretrained(base_config(), folder=TOWERS / request.param, workdir=folder)
  return request.param, folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
  """Run folder of the golden CLIP."""
  folder = tmp_path_factory.mktemp("clip") / "run"
  import_run.import_pretrained(base_config(), folder=TOWERS / "clip", workdir=folder)
  return folder


def expected(kind):
  with np.load(TOWERS / kind / "expected.npz", allow_pickle=False) as arrays:
    return dict(arrays)


def test_pictures_are_cut_as_the_processor_cuts_them(imported):
  kind, folder = imported
  run, want = inspect.load(folder), expected(kind)["pixels"]
  scale = run.config.model.image
  for picture, pixels in zip(PICTURES, want, strict=True):
    crop = run.crop(picture) / 255
    bytes_apart = np.abs(crop - (pixels.transpose(1, 2, 0) * scale.std + scale.mean)).max() * 255
    assert bytes_apart < 1.01, picture


def test_a_run_encodes_pictures_and_sentences_as_transformers_does(imported):
  kind, folder = imported
  run, want = inspect.load(folder), expected(kind)
  text = run.encode_text(TEXTS)
  assert np.abs(text - want["text"]).max() < 1e-5 * np.ptp(want["text"])
  image = run.encode_image(PICTURES)
  # Pixels differ by a 255th at most.
  assert np.abs(image - want["image"]).max() < 2e-2 * np.ptp(want["image"])
  scores, _ = run.search(TEXTS[:2], PICTURES, k=4)
  assert scores.shape == (2, 4) and not run.unknown_words("zebra")[0]


def settings(workdir_init="", **changes):
  config = pretrained_flickr.get_config()
  values = {
    "data.name": "scenes",
    "data.scenes.n_train": 40,
    "data.scenes.n_val": 10,
    "data.scenes.n_test": 10,
    "batch_size": 16,
    "eval_batch_size": 16,
    "epochs": 0.0,
    "steps": 8,
    "evaluate.epochs": 0.0,
    "evaluate.steps": 8,
    "checkpoint.steps": 4,
    "log.steps": 1,
    "log.tensorboard": False,
    "log.progress": False,
    "picture": False,
    "optimizer.learning_rate": 3e-3,
    "optimizer.schedule": "constant",
    "init": str(workdir_init),
  }
  config.update_from_flattened_dict(values | changes)
  return config


def run(config, workdir, cache, **options):
  config.data.cache_dir = str(cache)
  return train.train_and_evaluate(config, str(workdir), **options)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  return tmp_path_factory.mktemp("cache")


def test_an_imported_folder_is_scored_and_says_how_many_texts_are_cut(clip, cache, capfd):
  results = run(settings(), clip, cache, eval_only=True)
  assert results["n_images"] == 10 and results["metrics"]["rsum"] > 0
  assert "captions have more than 16 tokens and lose their last words" in capfd.readouterr().err


def test_a_prompt_changes_the_scores(clip, cache):
  plain = run(settings(), clip, cache, eval_only=True)
  with_words = run(settings(**{"data.prompt": "a photo of {}"}), clip, cache, eval_only=True)
  assert plain["metrics"] != with_words["metrics"]
  with pytest.raises(UserError, match=r"config.data.prompt is 'photo'; expected one \{\}"):
    run(settings(**{"data.prompt": "photo"}), clip, cache, eval_only=True)


def losses(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [found["train/loss"] for found in map(json.loads, lines) if "train/loss" in found]


def moved(clip, workdir):
  """Paths of the parameters that differ from the imported ones."""
  before = checkpoint.flatten(checkpoint.load(clip)[1])
  after = checkpoint.flatten(checkpoint.load(workdir, "latest")[1])
  return {name for name, x in before.items() if np.any(after[name] != x)}


RECIPES = {
  "all": {"evaluate.ema": 0.5, "batch_chunks": 2, "optimizer.layer_decay": 0.8},
  "last": {"model.image.train_blocks": 1, "model.text.train_blocks": 1, "model.image.remat": True},
  "heads": {"model.image.trainable": False, "model.text.trainable": False},
  "lora": {"model.lora.rank": 2, "optimizer.learning_rate": 3e-2},
}


@pytest.fixture(scope="module")
def tuned(clip, cache, tmp_path_factory):
  """{recipe: run folder}, trained on first use."""
  made = {}

  def folder(name):
    if name not in made:
      made[name] = tmp_path_factory.mktemp(name) / "run"
      run(settings(clip, **RECIPES[name]), made[name], cache)
    return made[name]

  return folder


@pytest.mark.parametrize("name", RECIPES)
def test_fine_tuning_lowers_the_loss_and_moves_what_it_should(clip, tuned, name):
  found = losses(tuned(name))
  assert np.mean(found[-3:]) < np.mean(found[:3])
  names = moved(clip, tuned(name))
  if name == "all":
    # SigLIP's and CLIP's keys have a bias that the softmax does not see.
    assert len(names) > 60
  if name == "last":
    assert names and all(
      "layer1" in each or ".norm." in each or "projection" in each for each in names
    )
  if name == "heads":
    heads = {f"params.{side}_encoder.projection.kernel" for side in ("image", "text")}
    assert names == heads
  if name == "lora":
    assert not names


def test_a_stopped_run_goes_on_to_the_same_bits(clip, cache, tuned, tmp_path):
  """Adapters, chunks and the average of the weights: all of it is in the checkpoint."""

  class StopAtStep4(Stop):
    def wanted(self, step):
      return step == 4

  for name in ("all", "lora"):
    stop = StopAtStep4(every=1)
    assert run(settings(clip, **RECIPES[name]), tmp_path / name, cache, stop=stop) is None
    run(settings(clip, **RECIPES[name]), tmp_path / name, cache)
    jax.tree.map(
      np.testing.assert_array_equal,
      checkpoint.load(tmp_path / name, "latest")[1],
      checkpoint.load(tuned(name), "latest")[1],
    )


def test_adapters_merged_are_the_adapted_run(tuned, tmp_path):
  adapted = inspect.load(tuned("lora"))
  merged = inspect.load(adapted.export(tmp_path / "merged"))
  assert lora.ADAPTERS in adapted.params and lora.ADAPTERS not in merged.params
  assert merged.config.model.lora.rank == 0
  np.testing.assert_allclose(
    merged.encode_text(TEXTS), adapted.encode_text(TEXTS), rtol=0, atol=1e-6
  )
  export.adapters(adapted, tmp_path / "adapters.safetensors")
  tensors = safetensors.numpy.load_file(tmp_path / "adapters.safetensors")
  # Query and value of two blocks in each of two towers, two factors each.
  assert len(tensors) == 2 * 2 * 2 * 2
  assert (tmp_path / "adapters.safetensors").stat().st_size < 40_000


SERVED = """
import sys, json, jax, numpy as np, safetensors.numpy
folder, pictures, ids = sys.argv[1], np.load(sys.argv[2]), np.load(sys.argv[3])
weights = safetensors.numpy.load_file(folder + "/model.safetensors")
told = json.load(open(folder + "/stablehlo.json"))
def call(side, *inputs):
  program = jax.export.deserialize(bytearray(open(f"{folder}/{side}.stablehlo", "rb").read()))
  assert set(program.platforms) == {"cpu", "cuda", "tpu"}
  return program.call({name: weights[name] for name in told[side]["tensors"]}, *inputs)
np.save(sys.argv[4], call("image", pictures))
np.save(sys.argv[5], call("text", ids[:, 1:], ids[:, 0]))
assert not any(name.split(".")[0] == "xmr" for name in sys.modules)
"""


def test_exported_towers_run_without_xmr(clip, tmp_path):
  flatbuffers = pytest.importorskip("flatbuffers")
  served = inspect.load(clip)
  served.export(tmp_path / "served", format="stablehlo")
  crops = np.stack([served.crop(picture) for picture in PICTURES])
  ids, lengths = served.vocabulary.encode_batch(TEXTS)
  np.save(tmp_path / "pixels.npy", crops)
  np.save(tmp_path / "ids.npy", np.concatenate([lengths[:, None], ids], axis=1))
  files = ("pixels.npy", "ids.npy", "image.npy", "text.npy")
  done = subprocess.run(
    [sys.executable, "-c", SERVED, tmp_path / "served", *(tmp_path / name for name in files)],
    cwd=tmp_path,
    env={"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.path.dirname(flatbuffers.__path__[0])},
    capture_output=True,
    text=True,
  )
  assert not done.returncode, done.stderr[-2000:]
  # Programs of a tower are compiled apart: the last bits differ.
  np.testing.assert_allclose(np.load(tmp_path / "image.npy"), served.encode_crops(crops), atol=1e-6)
  np.testing.assert_allclose(np.load(tmp_path / "text.npy"), served.encode_text(TEXTS), atol=1e-6)


def test_what_is_wrong_is_said_in_one_line(clip, cache, tmp_path):
  with pytest.raises(UserError, match="holds a run already; give another --workdir"):
    import_run.import_pretrained(base_config(), folder=TOWERS / "clip", workdir=clip)
  with pytest.raises(UserError, match="holds dinov2, an image tower without a text tower"):
    import_run.import_pretrained(base_config(), folder=TOWERS / "dinov2", workdir=tmp_path / "a")
  with pytest.raises(UserError, match="no such folder; expected one with config.json or open_clip"):
    import_run.import_pretrained(base_config(), folder=tmp_path / "b", workdir=tmp_path / "a")
  assert not (tmp_path / "a").exists()
  with pytest.raises(UserError, match='config.recipe is "imported", but config.init was not made'):
    run(settings(), tmp_path / "c", cache)
  with pytest.raises(UserError, match="'nothing', which no kernel has"):
    changes = {"model.lora.rank": 2, "model.lora.kernels": "nothing"}
    run(settings(clip, **changes), tmp_path / "d", cache)
  with pytest.raises((UserError, ValueError), match="expected multiples of the patch, 16"):
    run(settings(clip, **{"data.image_size": 50, "data.resize": 50}), tmp_path / "e", cache)
  with pytest.raises(UserError, match="config.batch_chunks is 3"):
    run(settings(clip, **{"batch_chunks": 3}), tmp_path / "f", cache)
