"""configs/own.py on folders of images and captions: from a table to results, from one run to the
next, and over features.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import quick_compilation
from PIL import Image
from test_extract import write_weights

from configs import own
from xmr import checkpoint, extract, recipe, train
from xmr.config import base_config, validate
from xmr.errors import UserError
from xmr.experiment import prepare
from xmr.models import convert, resnet

ROOT = pathlib.Path(__file__).parents[1]
N = 40
WORDS = "red green blue dog cat house tree car".split()


def write_folder(path, *, words=WORDS, n=N):
  """Writes images of plain colours with two captions each and a captions.csv."""
  path.mkdir()
  rng, lines = np.random.default_rng(0), ["image,caption"]
  for i in range(n):
    Image.new("RGB", (40, 36), tuple(rng.integers(0, 256, 3).tolist())).save(path / f"{i}.png")
    for k in range(2):
      lines.append(f"{i}.png,a {words[i % len(words)]} and {words[(i + k) % len(words)]} {k}")
  (path / "captions.csv").write_text("\n".join(lines))
  return path


def small(folder, *, variant="", **changes):
  """Returns the config of configs/own.py, small; changes as in {"data.dir": ...}."""
  config = own.get_config(variant)
  config.data.dir, config.data.cache_dir = str(folder), str(folder.parent / "cache")
  config.data.image_size = config.data.resize = 32
  config.model.text.name, config.evaluate.steps = "gru", 4
  config.model.dim, config.model.text.word_dim, config.steps = 16, 8, 4
  config.log.tensorboard = config.log.progress = config.picture = False
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope="module")
def first(tmp_path_factory):
  """A folder of forty images and the run that was trained on it: (folder, workdir)."""
  path = tmp_path_factory.mktemp("own")
  folder = write_folder(path / "folder")
  train.train_and_evaluate(small(folder), path / "run")
  return folder, path / "run"


def test_a_folder_becomes_a_run(first):
  _, workdir = first
  record = json.loads((workdir / "data.json").read_text())
  assert record["rule"] == "none is given: 80/10/10 by a hash of each image's bytes"
  assert sum(record["images"].values()) == N and sum(record["captions"].values()) == 2 * N
  results = json.loads((workdir / "results.json").read_text())
  assert results["n_images"] == record["images"]["test"]
  config = json.loads((workdir / "config.json").read_text())
  assert config["batch_size"] == 16 and config["optimizer.learning_rate"] == 1e-3


def test_the_same_command_goes_on_and_says_what_it_found(first, capsys):
  folder, workdir = first
  results = train.train_and_evaluate(small(folder), workdir, eval_only=True)
  printed = capsys.readouterr().out
  assert "captions.csv: 40 images, 80 captions, 0 of 3 splits given" in printed
  assert "training captions: batch_size=16, 4 steps, learning_rate=0.001" in printed
  assert results["step"] in (1, 2, 3, 4)


def test_new_words_join_the_vocabulary_of_another_run(first, tmp_path, capsys):
  _, workdir = first
  folder = write_folder(tmp_path / "more", words=["zebra", "apple", *WORDS])
  config = small(folder, init=str(workdir))
  experiment = prepare(config, tmp_path / "run")
  old = checkpoint.record(workdir)["vocabulary"]["words"]
  assert experiment.vocabulary.words == [*old, "apple", "zebra"]
  assert "2 words are added, 0.0 % stay unknown" in capsys.readouterr().out
  _, variables, _ = checkpoint.load(workdir)
  theirs = variables["params"]["text_encoder"]["embedding"]
  mine = experiment.variables["params"]["text_encoder"]["embedding"]
  np.testing.assert_array_equal(mine[: len(theirs)], theirs)
  assert mine.shape == (len(old) + 2, 8) and np.abs(mine[len(old) :]).min(axis=1).all()
  for name, value in checkpoint.flatten(variables).items():
    if not name.endswith("embedding"):
      np.testing.assert_array_equal(checkpoint.flatten(experiment.variables)[name], value)


def test_without_extend_the_share_of_unknown_words_is_said(first, tmp_path, capsys):
  _, workdir = first
  folder = write_folder(tmp_path / "more", words=["zebra"])
  config = small(folder, init=str(workdir))
  config.vocabulary.extend = False
  experiment = prepare(config, tmp_path / "run")
  assert experiment.vocabulary.words == checkpoint.record(workdir)["vocabulary"]["words"]
  # Two of five words of each caption: a zebra and zebra 0.
  assert "40.0 % of the training words are unknown to it" in capsys.readouterr().out


@pytest.mark.slow
def test_extract_and_then_features(first, tmp_path, monkeypatch):
  folder = write_folder(tmp_path / "folder", n=30)
  (folder / "29.png").unlink()  # The last row of the features has no image.
  module = convert.Kind(
    lambda: resnet.ResNet((1, 1), False, 8), (resnet.torchvision_name,), ("fc.",)
  )
  monkeypatch.setattr(convert, "kind", lambda name: module)
  write_weights(tmp_path / "resnet18.safetensors", module.module())
  extract.extract(
    small(folder),
    backbone="resnet18",
    weights=tmp_path / "resnet18.safetensors",
    out=folder / "features",
    batch_size=8,
  )
  assert np.load(folder / "features/features.npy").shape[0] == 30
  config = small(folder, variant="features")
  config.model.dim = 16
  results = train.train_and_evaluate(config, tmp_path / "run")
  assert results["n_images"] >= 1
  assert json.loads((tmp_path / "run/data.json").read_text())["missing"] == ["29.png"]


def test_a_run_does_not_go_on_with_more_rows(first):
  folder, workdir = first
  table = folder / "captions.csv"
  before = table.read_text()
  table.write_text(before + "\n" + "\n".join(f"{i}.png,one more" for i in range(N)))
  with pytest.raises(UserError, match="data") as error:
    prepare(small(folder), workdir)
  assert "batch_size" not in str(error.value)
  table.write_text(before)


@pytest.mark.parametrize(
  ("captions", "batch", "epochs"),
  [(80, 16, 30), (1_200, 64, 29), (30_000, 128, 13), (1_000_000, 128, 5)],
)
def test_the_recipe_suits_the_number_of_captions(captions, batch, epochs):
  config = recipe.by_size(own.get_config(), captions)
  assert (config.batch_size, config.epochs) == (batch, epochs)
  steps = epochs * (captions // batch)
  assert steps // 12 <= config.evaluate.steps <= steps // 8
  assert 0 < config.optimizer.warmup_steps <= steps // 10
  validate(config)


def test_what_is_given_stays_and_devices_divide_the_batch():
  config = own.get_config()
  config.batch_size, config.epochs, config.optimizer.learning_rate = 24, 3.0, 0.5
  found = recipe.by_size(config, 5000, devices=8)
  assert (found.batch_size, found.epochs, found.optimizer.learning_rate) == (24, 3.0, 0.5)
  assert recipe.by_size(own.get_config(), 90, devices=6).batch_size == 12
  config.loss.name = "imc"
  assert recipe.by_size(config, 5000).warmup.steps == 3 * (5000 // 24) // 4


def test_the_line_of_the_recipe_counts_one_and_many():
  config = own.get_config()
  config.epochs, config.evaluate.steps = 1.0, 1
  found = recipe.line(recipe.by_size(config, 200), 200)
  assert "1 epoch, " in found and "after 1 step of" in found and found.endswith("every 1 step")


def test_a_batch_that_is_too_large_says_the_number(first, tmp_path):
  folder, _ = first
  with pytest.raises(
    UserError, match=r"config.batch_size is 512; expected 1 to \d\d, the captions"
  ):
    prepare(small(folder, batch_size=512), tmp_path / "run")


@pytest.mark.parametrize("lacking", ["val", "test"])
def test_a_set_without_a_split_says_so_before_training(tmp_path, lacking):
  images = [
    {
      "filename": f"{i}.jpg",
      "imgid": i,
      "split": "train" if i % 3 else {"val": "test", "test": "val"}[lacking],
      "sentences": [{"raw": "a dog", "sentid": i}],
    }
    for i in range(30)
  ]
  (tmp_path / "dataset_x.json").write_text(json.dumps({"images": images}))
  np.save(tmp_path / "x.npy", np.ones((30, 4), np.float32))
  config = base_config()
  config.data.name, config.data.dir = "karpathy", str(tmp_path)
  config.data.image, config.data.image_features = "features", "x.npy"
  config.model.image.name, config.batch_size = "linear", 8
  with pytest.raises(UserError, match=f"has no image of split {lacking} .20 train, 10"):
    prepare(config, tmp_path / "run")
  assert not (tmp_path / "run").exists() and jax.device_count()


@pytest.mark.slow
def test_the_sequence_of_the_page_runs(tmp_path):
  """Extract, then features, as docs/own-data.md writes them, with random weights of a ResNet-18."""
  page = (ROOT / "docs/own-data.md").read_text()
  commands = re.findall(r"^python -m xmr\.(?:extract|main) .*(?:extract|features).*$", page, re.M)
  assert [command.split()[2] for command in commands] == ["xmr.extract", "xmr.main"]
  folder = write_folder(tmp_path / "folder")
  write_weights(tmp_path / "resnet18.safetensors", convert.kind("resnet18").module())
  environment = os.environ | {"XLA_FLAGS": quick_compilation.FLAGS, "JAX_PLATFORMS": "cpu"}
  for command in commands:
    for old, new in (
      ("FOLDER", folder),
      ("=resnet18.safetensors", f"={tmp_path}/resnet18.safetensors"),
      ("runs/own_features", tmp_path / "run"),
    ):
      command = command.replace(old, str(new))
    words = [sys.executable, *command.split()[1:], f"--config.data.cache_dir={tmp_path}/cache"]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, timeout=600)
  assert json.loads((tmp_path / "run/results.json").read_text())["n_images"]


def test_batches_are_no_longer_than_the_longest_caption(first, tmp_path):
  folder, _ = first
  experiment = prepare(small(folder), tmp_path / "run")
  batches = experiment.train_batches(0)
  batch = next(batches)
  batches.close()
  assert batch["text"].shape == (16, experiment.splits["train"].max_length())
