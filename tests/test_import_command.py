"""A released checkpoint as a run folder: what xmr.inspect and --eval_only read from it."""

import argparse
import json
import os
import pathlib
import pickle
import shlex
import shutil
import subprocess
import sys
import types

import numpy as np
import pytest
import quick_compilation

from xmr import checkpoint, experiment, import_run, main
from xmr import config as config_lib
from xmr.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "dog", "a"]


@pytest.fixture
def released(tmp_path):
  """A VSE++ checkpoint on precomputed features and its vocabulary; words in the order of counting,
  as released.
  """
  torch = pytest.importorskip("torch")
  gru, fc = torch.nn.GRU(5, 8), torch.nn.Linear(6, 8)
  text = {"embed.weight": torch.randn(len(WORDS), 5)} | {
    f"rnn.{k}": v for k, v in gru.state_dict().items()
  }
  image = {f"fc.{k}": v for k, v in fc.state_dict().items()}
  options = argparse.Namespace(data_name="f30k_precomp", cnn_type="vgg19", finetune=False)
  torch.save(
    {"epoch": 3, "model": [image, text], "best_rsum": 300.5, "opt": options, "Eiters": 77},
    tmp_path / "model_best.pth.tar",
  )
  (tmp_path / "vocab.json").write_text(
    json.dumps({"word2idx": {word: i for i, word in enumerate(WORDS)}})
  )
  return (
    {"checkpoint": tmp_path / "model_best.pth.tar", "vocabulary": tmp_path / "vocab.json"},
    image,
    text,
  )


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
  np.testing.assert_array_equal(
    params["image_encoder"]["projection"]["kernel"], image["fc.weight"].numpy().T
  )
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


@pytest.mark.parametrize("place", ["write_json", "rename"])
def test_an_import_that_is_killed_leaves_no_run_and_the_same_command_works(
  released, tmp_path, monkeypatch, place
):
  class Killed(BaseException):
    pass

  def die(*_, **__):
    raise Killed

  files, *_ = released
  with monkeypatch.context() as patched:
    if place == "rename":
      patched.setattr(pathlib.Path, "rename", die)
    else:
      patched.setattr("xmr.storage.files.write_json", die)
    patched.setattr(shutil, "rmtree", lambda *_, **__: None)  # Nothing is cleaned up after kill -9.
    with pytest.raises(Killed):
      import_run.import_run(base(), workdir=tmp_path / "runs" / "a", **files)
  assert all(path.name.endswith(".part") for path in (tmp_path / "runs").iterdir())
  import_run.import_run(base(), workdir=tmp_path / "runs" / "a", **files)
  assert checkpoint.load(tmp_path / "runs" / "a")[0] == 77
  assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


def sentence(number):
  """One to four words, different for each number; one of the words is not in the vocabulary."""
  return " ".join(("dog", "a", "cat")[int(digit)] for digit in np.base_repr(number, 3))


def dataset(folder, *, n_test=9):
  """Writes a set in Karpathy's layout of made pictures and captions of known words; returns the
  entries of split test.
  """
  from PIL import Image

  rng, images = np.random.default_rng(0), []
  (folder / "images").mkdir(parents=True)
  for imgid in range(n_test + 5):
    pixels = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((18, 18, 1))).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"images/{imgid}.png")
    captions = [sentence(2 * imgid + k) for k in range(2)]
    sentences = [
      {"raw": raw, "sentid": 2 * imgid + k, "imgid": imgid} for k, raw in enumerate(captions)
    ]
    split = "train" if imgid < 4 else "val" if imgid == 4 else "test"
    images.append(
      {"filename": f"{imgid}.png", "imgid": imgid, "split": split, "sentences": sentences}
    )
  (folder / "dataset_made.json").write_text(json.dumps({"images": images, "dataset": "made"}))
  return images[5:]


def recalls(image, text, owner):
  """{"i2t/r1": per cent, ...} by sorting each query's scores."""
  scores, found = image @ text.T, {}
  for k in (1, 5):
    found[f"i2t/r{k}"] = 100 * np.mean(
      [(owner[np.argsort(-row)[:k]] == i).any() for i, row in enumerate(scores)]
    )
    found[f"t2i/r{k}"] = 100 * np.mean(
      [owner[j] in np.argsort(-row)[:k] for j, row in enumerate(scores.T)]
    )
  return found


def run_command(*arguments):
  """Runs a module's command line in a process with one device."""
  environment = {**os.environ, "XLA_FLAGS": quick_compilation.FLAGS, "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    [sys.executable, "-m", *arguments],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["precomp", "full"])
def test_a_released_checkpoint_is_scored_as_the_released_code_scores_it(kind, tmp_path, capsys):
  torch = pytest.importorskip("torch")
  import torch_reference as reference
  from PIL import Image

  torch.manual_seed(0)
  shown = dataset(tmp_path / "data")
  if kind == "full":
    cnn = reference.torchvision_model("resnet18")
    picture = np.stack(
      [np.asarray(Image.open(tmp_path / f"data/images/{entry['filename']}")) for entry in shown]
    )
    picture = picture[:, 4:68, 4:68] / 255  # of 72 pixels: no resizing, the centre 64
    scaled = ((picture - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    features = torch.nn.functional.normalize(torch.from_numpy(reference.features(cnn, scaled)))
    state = {f"cnn.module.{name}": value for name, value in cnn.state_dict().items()}
  else:
    stored = np.random.default_rng(1).standard_normal((14, 20)).astype(np.float32)
    np.save(tmp_path / "data/x.npy", stored)
    features, state = torch.from_numpy(stored[5:]), {}
  fc, embed = torch.nn.Linear(features.shape[1], 8), torch.nn.Embedding(len(WORDS), 5)
  rnn = torch.nn.GRU(5, 8, batch_first=True)
  state |= {f"fc.{name}": value for name, value in fc.state_dict().items()}
  text_state = {f"embed.{name}": value for name, value in embed.state_dict().items()}
  text_state |= {f"rnn.{name}": value for name, value in rnn.state_dict().items()}
  options = argparse.Namespace(cnn_type="resnet18", finetune=kind == "full")
  torch.save(
    {"epoch": 3, "model": [state, text_state], "best_rsum": 300.5, "opt": options, "Eiters": 77},
    tmp_path / "model_best.pth.tar",
    _use_new_zipfile_serialization=False,
  )
  (tmp_path / "vocab.pkl").write_bytes(pickled_vocabulary())

  def encode(caption):
    ids = [
      WORDS.index(word) if word in WORDS else 3 for word in ("<start>", *caption.split(), "<end>")
    ]
    return rnn(embed(torch.tensor([ids])))[0][0, -1]

  with torch.no_grad():
    image = torch.nn.functional.normalize(fc(features)).numpy()
    captions = [sentence["raw"] for entry in shown for sentence in entry["sentences"]]
    text = torch.nn.functional.normalize(
      torch.stack([encode(caption) for caption in captions])
    ).numpy()
  made = run_command(
    "xmr.import_run",
    "--config=configs/vsepp_flickr.py",
    "--config.data.name=karpathy",
    f"--config.data.dir={tmp_path / 'data'}",
    f"--config.data.cache_dir={tmp_path / 'cache'}",
    "--config.data.image_size=64",
    "--config.data.resize=72",
    "--config.data.workers=0",
    "--config.eval_batch_size=9",
    "--config.batch_size=2",
    "--config.log.tensorboard=False",
    *(["--config.data.image_features=x.npy"] if kind == "precomp" else []),
    f"--checkpoint={tmp_path / 'model_best.pth.tar'}",
    f"--vocabulary={tmp_path / 'vocab.pkl'}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert made.returncode == 0, made.stderr[-2000:]
  command = shlex.split(made.stdout.split("score it: python -m ")[1])
  scored = run_command(*command)
  assert scored.returncode == 0, scored.stderr[-2000:]
  metrics = json.loads((tmp_path / "run/results.json").read_text())["metrics"]
  for name, value in recalls(image, text, np.arange(len(text)) // 2).items():
    assert metrics[name] == pytest.approx(value), name
  with pytest.raises(SystemExit, match="2"):
    main.main(command[:-1])
  assert "was imported and has no optimiser to go on with" in capsys.readouterr().err


def pickled_vocabulary():
  """The bytes of a pickled `Vocabulary` of the released code, module vocab, made without the class
  being importable.
  """
  module = types.ModuleType("vocab")
  exec("class Vocabulary: pass", module.__dict__)
  vocabulary = module.Vocabulary()
  vocabulary.__dict__ |= {
    "word2idx": {word: i for i, word in enumerate(WORDS)},
    "idx2word": dict(enumerate(WORDS)),
    "idx": len(WORDS),
  }
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "vocab", module)
    return pickle.dumps(vocabulary)


def test_training_on_from_it_starts_with_its_weights_and_words(released, tmp_path):
  files, image, text = released
  dataset(tmp_path / "data")
  np.save(tmp_path / "data/features.npy", np.zeros((14, 6), np.float32))
  config = base()
  config.data.update(
    {"name": "karpathy", "dir": str(tmp_path / "data"), "cache_dir": str(tmp_path / "cache")}
  )
  config.batch_size = 8
  changed = import_run.import_run(config, workdir=tmp_path / "run", **files)
  assert config.model.text.name == "gru" and changed
  with config.unlocked():
    config.init = str(tmp_path / "run")
    config.vocabulary.glove = "absent.txt"
  begun = experiment.prepare(config, tmp_path / "next")
  assert begun.vocabulary.words == WORDS
  params = begun.variables["params"]
  np.testing.assert_array_equal(
    params["image_encoder"]["projection"]["bias"], image["fc.bias"].numpy()
  )
  np.testing.assert_array_equal(params["text_encoder"]["embedding"], text["embed.weight"].numpy())
  config.model.text.word_dim = 6
  with pytest.raises(
    UserError, match="the run .* does not fit this model: .*embedding is .6, 5., expected .6, 6."
  ):
    experiment.prepare(config, tmp_path / "other")
