"""A folder of pretrained towers from import to score, fine-tuning and export; towers are the golden
ones, data drawn scenes.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy
from paths import GOLDEN

from configs import pretrained_flickr
from xmr import checkpoint, data, extract, import_run, inspect, main, search, train
from xmr import config as config_lib
from xmr.config import base_config
from xmr.data import images
from xmr.errors import UserError
from xmr.eval.results import shown
from xmr.inspect import export, loading, matches, report
from xmr.models import convert, lora
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


SHORT = {
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
}


def settings(workdir_init="", **changes):
  config = pretrained_flickr.get_config()
  config.update_from_flattened_dict(SHORT | {"init": str(workdir_init)} | changes)
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


@pytest.mark.slow
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
  "tokens": {"loss.name": "aligned_full_hard_negative", "similarity": "symmetric"}
  | {"batch_chunks": 2, "loss.diagonal": "released"},
  "learned": {"loss.learn": ("temperature",), "model.dtype": "bfloat16"}
  | {"optimizer.multipliers": (("^loss/", 10.0),)},
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


PHOTOGRAPHS = {
  "data.name": "own",
  "data.workers": 0,
  "steps": 24,
  "evaluate.steps": 24,
  "checkpoint.steps": 12,
  "batch_size": 32,
  "optimizer.multipliers": (),
}


@pytest.fixture(scope="module")
def photographs(shared, tmp_path_factory):
  """A folder of 300 images of Flickr8k with their captions."""
  folder = tmp_path_factory.mktemp("photographs")
  found = json.loads((shared / "data/flickr8k/dataset_flickr8k.json").read_text())["images"]
  lines = ["image,caption"]
  for image in found[:300]:
    path = shared / "data/flickr8k/images" / image["filename"]
    shutil.copy(path, folder)
    for caption in image["sentences"]:
      raw = caption["raw"].replace('"', "'")
      lines.append(f'{image["filename"]},"{raw}"')
  (folder / "captions.csv").write_text("\n".join(lines) + "\n")
  return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_on_photographs_and_goes_on_to_the_same_bits(
  clip, cache, photographs, name, tmp_path
):
  class StopHalfWay(Stop):
    def wanted(self, step):
      return step == 12

  changes = PHOTOGRAPHS | RECIPES[name] | {"data.dir": str(photographs)}
  run(settings(clip, **changes), tmp_path / "whole", cache)
  found = losses(tmp_path / "whole")
  assert np.mean(found[-6:]) < np.mean(found[:6])
  assert (
    run(settings(clip, **changes), tmp_path / "parts", cache, stop=StopHalfWay(every=1)) is None
  )
  run(settings(clip, **changes), tmp_path / "parts", cache)
  jax.tree.map(
    np.testing.assert_array_equal,
    checkpoint.load(tmp_path / "parts", "latest")[1],
    checkpoint.load(tmp_path / "whole", "latest")[1],
  )


@pytest.mark.slow
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
  if name == "learned":
    # As it was imported, and moved from there.
    stored = checkpoint.load(tuned(name), "latest")[1]["params"]["loss"]["temperature"]
    start = json.loads((clip / "source.json").read_text())["loss"]["temperature"]
    assert stored.dtype == np.float32 and 0 < abs(stored - np.log(start)) < 1


@pytest.mark.slow
def test_patches_and_words_are_trained_ranked_and_aligned(tuned):
  run = inspect.load(tuned("tokens"))
  results = json.loads((tuned("tokens") / "results.json").read_text())
  assert results["similarity"] == "symmetric" and results["metrics"]["rsum"] > 0
  cells = run.align(PICTURES[0], "two red kites")
  assert cells.shape[0] == 9 and cells.shape[1] >= 3 and np.abs(cells).max() <= 1 + 1e-5
  tokens, side = matches.tokens(run, PICTURES)
  assert side == "image" and tokens.shape == (4, 9, 40)
  words = matches.tokens(run, ["two red kites"])[0]
  want = tokens.x[0] @ words.x[0][words.mask[0]].T
  np.testing.assert_allclose(cells, want, atol=1e-5)
  scores, found = run.search(TEXTS[:1], PICTURES, k=4)
  best = run.align(PICTURES[found[0, 0]], TEXTS[0])
  # The loss took padding as zeros, and so does ranking: no region's best word is below 0.
  want = best.max(0).sum() + np.maximum(best.max(1), 0).sum()
  np.testing.assert_allclose(scores[0, 0], want, rtol=1e-5)
  with pytest.raises(
    UserError,
    match=r"compares tokens; found float32 of shape \(3, 40\); expected pictures, or captions",
  ):
    run.search(TEXTS[:1], np.ones((3, 40), np.float32))


@pytest.mark.slow
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


@pytest.mark.slow
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
  for path in (tmp_path / "adapters.safetensors", tmp_path / "merged/model.safetensors"):
    # Whoever may read the one may read the other.
    assert path.stat().st_mode == (tmp_path / "merged/run.json").stat().st_mode
  with pytest.raises(
    UserError, match="merged is the export of a run, which xmr.inspect.load reads"
  ):
    run(merged.config, tmp_path / "merged", tmp_path, eval_only=True)
  # Query and value of two blocks in each of two towers, two factors each.
  assert len(tensors) == 2 * 2 * 2 * 2
  assert (tmp_path / "adapters.safetensors").stat().st_size < 40_000


@pytest.mark.slow
def test_weights_between_start_and_end_are_scored_and_shown(clip, cache, tuned, tmp_path):
  folder, shares = tuned("all"), (0.0, 0.5, 1.0)
  changes = RECIPES["all"] | {"evaluate.wise": shares}
  results = run(settings(clip, **changes), folder, cache, eval_only=True)
  found = results["wise"]
  assert found["share"] == list(shares) and found["start"] == str(clip)
  zero_shot = run(settings(), clip, cache, eval_only=True)["metrics"]
  for metric in ("i2t/r1", "t2i/r10", "rsum"):
    assert found["test"][metric][0] == zero_shot[metric]
    assert found["test"][metric][2] == results["metrics"][metric]
  assert "(best on val)" in shown(results)
  own, start = inspect.load(folder), inspect.load(clip)
  half = own.averaged(0.5)
  jax.tree.map(
    lambda a, b, c: np.testing.assert_allclose(c, (a + b) / 2, rtol=0, atol=1e-7),
    start.params,
    own.params,
    half.params,
  )
  kept = inspect.load(half.export(tmp_path / "half"))
  np.testing.assert_array_equal(kept.encode_text(TEXTS), half.encode_text(TEXTS))
  page = report.report(folder, out=tmp_path / "report.html", queries=1).read_text()
  assert "rsum over the share a of this run" in page and f"Weights between {clip} and run" in page
  config = base_config()
  config.evaluate.wise = shares
  with pytest.raises(UserError, match="config.evaluate.wise is .* config.init, which is not set"):
    config_lib.validate(config)


@pytest.mark.slow
def test_adapters_are_merged_before_weights_are_averaged(clip, tuned):
  adapted = inspect.load(tuned("lora"))
  assert adapted.averaged(0.0).config.model.lora.rank == 0
  np.testing.assert_allclose(
    adapted.averaged(0.0).encode_text(TEXTS), inspect.load(clip).encode_text(TEXTS), atol=1e-6
  )
  np.testing.assert_allclose(
    adapted.averaged(1.0).encode_text(TEXTS), adapted.encode_text(TEXTS), atol=1e-6
  )


@pytest.mark.slow
def test_every_command_takes_an_imported_run(clip, cache, tmp_path, capsys):
  folder = tmp_path / "run"
  shutil.copytree(clip, folder, ignore=shutil.ignore_patterns("results.json", "queries.npz"))
  flat = json.loads((folder / "config.json").read_text()) | {"data.dir": ""}
  (folder / "config.json").write_text(json.dumps(flat))
  with pytest.raises(UserError, match="imported and was scored on no data yet; give it some"):
    main.check_scored(folder)
  with pytest.raises(UserError, match="imported and was scored on no data yet; give it some"):
    report.report(folder)
  results = run(settings(), folder, cache, eval_only=True)
  main.check_scored(folder)
  page = report.report(folder, queries=1)
  assert f"{results['n_images']} images" in page.read_text()
  search.main(
    ["search", "--workdir", str(folder), "--gallery", str(TOWERS), "-k", "2", "\U0001f642"]
    + ["--cache_dir", str(tmp_path)]
  )
  assert "image_" in capsys.readouterr().out
  config = settings()
  config.data.cache_dir = str(cache)
  extract.extract(config, workdir=folder, out=tmp_path / "features", batch_size=8)
  extract.extract(config, workdir=folder, out=tmp_path / "grid", batch_size=8, grid=True)
  found, grid = (np.load(tmp_path / name / "features.npy") for name in ("features", "grid"))
  assert found.shape == (60, 40) and grid.shape == (60, 3, 3, 40)
  loaded = inspect.load(folder)
  split = data.load(loading.load(folder, as_scored=True).config)["test"]
  np.testing.assert_allclose(
    found[split.image_id], loaded.encode_image(list(map(decoded, split.pixels))), atol=1e-5
  )
  np.testing.assert_allclose(np.linalg.norm(grid, axis=-1), 1, atol=1e-5)


def decoded(content):
  return images.decode(content, name="")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_locked_image_tower_with_a_text_tower_from_scratch(cache, tmp_path, rank):
  """LiT: DINOv2's backbone, frozen, with its projection and a recurrent text encoder fresh; and the
  same beside adapters.
  """
  weights = tmp_path / "dinov2.safetensors"
  fields = convert.convert("dinov2", TOWERS / "dinov2", weights)["settings"]
  config = base_config()
  config.update_from_flattened_dict(SHORT | {"model.image.name": "dinov2"})
  config.update_from_flattened_dict(
    fields
    | {"model.text.name": "bigru", "model.text.word_dim": 8, "model.dim": 16}
    | {"model.image.weights": str(weights), "model.image.trainable": rank > 0}
    | {"model.lora.rank": rank}
    | {"loss.name": "info_nce", "warmup.epochs": 0.0, "vocabulary.min_count": 1}
  )
  run(config, tmp_path / "run", cache)
  found = losses(tmp_path / "run")
  assert np.mean(found[-3:]) < np.mean(found[:3])
  with safetensors.safe_open(weights, framework="numpy") as file:
    backbone = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
  params = checkpoint.load(tmp_path / "run", "latest")[1]["params"]["image_encoder"]["backbone"]
  for name, x in checkpoint.flatten(params).items():
    np.testing.assert_array_equal(x, backbone["params/" + name.replace(".", "/")], err_msg=name)


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


@pytest.mark.slow
def test_onnx_runtime_gives_the_same_embeddings(imported, tmp_path):
  onnxruntime = pytest.importorskip("onnxruntime")
  pytest.importorskip("jax2onnx", exc_type=ImportError)
  served = inspect.load(imported[1])
  served.export(tmp_path, format="onnx")
  crops = np.stack([served.crop(picture) for picture in PICTURES])
  ids, lengths = served.vocabulary.encode_batch(TEXTS)
  for name, inputs, want in (
    ("image", {"pixels": crops}, served.encode_crops(crops)),
    ("text", {"ids": ids, "count": lengths}, served.encode_text(TEXTS)),
  ):
    session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx")
    np.testing.assert_allclose(session.run(None, inputs)[0], want, rtol=0, atol=1e-5)


def test_onnx_without_its_packages_says_what_to_install(clip, tmp_path, monkeypatch):
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util, "find_spec", lambda name: None if name == "jax2onnx" else found(name) or True
  )
  with pytest.raises(UserError, match="format onnx needs jax2onnx: pip install --no-deps jax2onnx"):
    inspect.load(clip).export(tmp_path / "served", format="onnx")
  assert not (tmp_path / "served").exists()


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
  with pytest.raises(UserError, match="image_size is 50; expected a multiple of .*patch, 16"):
    run(settings(clip, **{"data.image_size": 50, "data.resize": 50}), tmp_path / "e", cache)
  with pytest.raises(UserError, match="config.batch_chunks is 3"):
    run(settings(clip, **{"batch_chunks": 3}), tmp_path / "f", cache)


def test_the_images_of_a_test_split_are_enough_to_score_and_not_to_train(clip, cache, tmp_path):
  (tmp_path / "data/images").mkdir(parents=True)
  rows = [("test", i) for i in range(4)] + [("train", 4), ("val", 5)]
  images = [
    {"filename": f"image_{i}.png", "imgid": i, "split": split}
    | {"sentences": [{"raw": TEXTS[0], "sentid": i}]}
    for split, i in rows
  ]
  (tmp_path / "data/dataset_own.json").write_text(json.dumps({"images": images}))
  for picture in PICTURES:
    shutil.copy(picture, tmp_path / "data/images")
  changes = {"data.name": "karpathy", "data.dir": str(tmp_path / "data"), "batch_size": 16}
  shutil.copytree(clip, tmp_path / "run")
  found = run(settings(**changes), tmp_path / "run", cache, eval_only=True)
  assert (found["n_images"], found["n_texts"]) == (4, 4)
  with pytest.raises(UserError, match=r"no image of split train \(4 test\); expected train, val"):
    run(settings(clip, **changes), tmp_path / "trained", cache)
  with pytest.raises(UserError, match=r"no image of split val \(4 test\); expected val, test"):
    wise = changes | {"evaluate.wise": (0.5,), "init": str(clip)}
    run(settings(**wise), tmp_path / "run", cache, eval_only=True)
