"""A released checkpoint as a run folder: what xmr.inspect and --eval_only read from it."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from xmr import checkpoint, import_run
from xmr import config as config_lib
from xmr.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "dog", "a"]


@pytest.fixture
def released(tmp_path):
  """A VSE++ checkpoint on precomputed features and its vocabulary; words in the order of counting, as released."""
  torch = pytest.importorskip("torch")
  gru, fc = torch.nn.GRU(5, 8), torch.nn.Linear(6, 8)
  text = {"embed.weight": torch.randn(len(WORDS), 5)} | {f"rnn.{k}": v for k, v in gru.state_dict().items()}
  image = {f"fc.{k}": v for k, v in fc.state_dict().items()}
  options = argparse.Namespace(data_name="f30k_precomp", cnn_type="vgg19", finetune=False)
  torch.save({"epoch": 3, "model": [image, text], "best_rsum": 300.5, "opt": options, "Eiters": 77},
             tmp_path / "model_best.pth.tar")  # fmt: skip
  (tmp_path / "vocab.json").write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(WORDS)}}))
  return {"checkpoint": tmp_path / "model_best.pth.tar", "vocabulary": tmp_path / "vocab.json"}, image, text


def base():
  config = config_lib.base_config()
  config.data.image_features = "features.npy"
  return config


def test_folder_holds_the_weights_the_vocabulary_and_the_source(released, tmp_path):
  files, image, text = released
  changed = import_run.import_run(base(), workdir=tmp_path / "run", **files)
  step, variables, run = checkpoint.load(tmp_path / "run")
  assert step == 77 and run["best"] == {"score": 300.5, "step": 77}
  assert run["vocabulary"]["words"] == WORDS and run["source"]["file"] == "model_best.pth.tar"
  assert json.loads((tmp_path / "run/vocabulary.json").read_text())["words"] == WORDS
  params = variables["params"]
  np.testing.assert_array_equal(params["image_encoder"]["projection"]["kernel"], image["fc.weight"].numpy().T)
  np.testing.assert_array_equal(params["text_encoder"]["embedding"], text["embed.weight"].numpy())
  config = json.loads((tmp_path / "run/config.json").read_text())
  assert config["model.text.name"] == "gru" and config["model.dim"] == 8
  assert changed["config.model.dim"] == 8 and "config.model.normalize" not in changed


def test_a_folder_in_use_is_refused(released, tmp_path):
  files, *_ = released
  import_run.import_run(base(), workdir=tmp_path / "run", **files)
  with pytest.raises(UserError, match="holds a run already"):
    import_run.import_run(base(), workdir=tmp_path / "run", **files)


def test_a_vocabulary_of_another_model_writes_nothing(released, tmp_path):
  files, *_ = released
  files["vocabulary"].write_text(json.dumps({"words": WORDS[:-1]}))
  with pytest.raises(UserError, match="has 5 words; .* has vectors for 6"):
    import_run.import_run(base(), workdir=tmp_path / "run", **files)
  assert not (tmp_path / "run").exists()


def test_command_prints_the_command_that_scores(released, tmp_path):
  files, *_ = released
  command = [
    sys.executable, "-m", "xmr.import_run", "--config=configs/vsepp_flickr.py", "--config.data.image_features=x.npy",
    f"--workdir={tmp_path / 'run'}", *(f"--{name}={path}" for name, path in files.items()),
  ]  # fmt: skip
  environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr[-2000:]
  printed = done.stdout.split("score it: ")[1].split()
  for part in ("xmr.main", "--config.model.dim=8", "--config.model.image.name=linear", "--eval_only",
               "--config.data.image_features=x.npy"):  # fmt: skip
    assert part in printed
