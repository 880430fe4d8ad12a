"""Released checkpoints of VSE++ and IMC, made here in their layout, give the embeddings that
PyTorch gives.
"""

import argparse
import json

import jax
import numpy as np
import pytest
import torch_reference as reference

from xmr import config as config_lib
from xmr import models
from xmr.errors import UserError
from xmr.interop import vsepp

WORDS = ["<pad>", "<start>", "<end>", "<unk>", *(f"w{i}" for i in range(16))]
IMC = {"cell": "lstm", "bidirectional": True}
VSEPP = {"cell": "gru", "bidirectional": False}


def released_text(cell, bidirectional, *, dim=12, layers=1, projection=False):
  """EncoderText: (state dict, function of ids and lengths), as its forward pass computes at
  evaluation.
  """
  import torch

  embed = torch.nn.Embedding(len(WORDS), 7)
  rnn = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell](
    7, dim, layers, batch_first=True, bidirectional=bidirectional
  )
  state = {f"embed.{name}": value for name, value in embed.state_dict().items()}
  state |= {f"rnn.{name}": value for name, value in rnn.state_dict().items()}
  if projection:
    state |= {
      f"projection.{name}": value for name, value in torch.nn.Linear(dim, dim).state_dict().items()
    }

  def encode(ids, lengths):
    rows = []
    for row, length in zip(ids, lengths, strict=True):
      out = rnn(embed(torch.tensor(row[None, :length]).long()))[0][0, -1]
      rows.append((out[:dim] + out[dim:]) / 2 if bidirectional else out)
    rows = torch.stack(rows)
    return (rows / rows.norm(dim=1, keepdim=True)).detach().numpy()

  return state, encode


def released_cnn(cnn_type):
  """The CNN of EncoderImageFull: (state dict with DataParallel's names, module without
  classifier).
  """
  if cnn_type == "vgg19":
    model = reference.narrow_vgg()
    return {
      f"cnn.{name}".replace("features.", "features.module."): v
      for name, v in model.state_dict().items()
    }, model
  model = reference.torchvision_model(cnn_type)
  return {f"cnn.module.{name}": value for name, value in model.state_dict().items()}, model


def save(path, image, text, **options):
  """Writes a checkpoint as the authors' train.py does, and the vocabulary beside it."""
  import torch

  state = {
    "epoch": 9,
    "model": [image, text],
    "best_rsum": 437.9,
    "Eiters": 1234,
    "opt": argparse.Namespace(
      data_name="f30k", max_violation=True, logger_name="runs/x", **options
    ),
  }
  torch.save(state, path, _use_new_zipfile_serialization=False)
  vocabulary = path.with_suffix(".json")
  vocabulary.write_text(json.dumps({"word2idx": {word: i for i, word in enumerate(WORDS)}}))
  return path, vocabulary


def ours(settings, variables):
  """The dual encoder that the settings describe, with apply bound to the variables."""
  config = config_lib.base_config()
  config.update_from_flattened_dict(settings)
  config_lib.validate(config)
  model = models.build(config.model, vocabulary_size=len(WORDS))
  apply = jax.jit(model.apply, static_argnames="method")
  return model, lambda *inputs, method: np.asarray(apply(variables, *inputs, method=method))


@pytest.fixture
def captions():
  """Ids [3, 9] of 9, 4 and 1 words."""
  return np.random.default_rng(0).integers(0, len(WORDS), (3, 9)).astype(np.int32), np.array(
    [9, 4, 1], np.int32
  )


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(
  ("cnn_type", "text_kind"), [("resnet18", VSEPP), ("resnet18", IMC)], ids=["vsepp", "imc"]
)
def test_full_checkpoint_gives_the_released_embeddings(cnn_type, text_kind, tmp_path, captions):
  torch = pytest.importorskip("torch")
  cnn_state, cnn = released_cnn(cnn_type)
  text_state, encode_text = released_text(**text_kind, projection=text_kind is IMC)
  fc = torch.nn.Linear(512, 12)
  image_state = cnn_state | {f"fc.{name}": value for name, value in fc.state_dict().items()}
  path, vocabulary = save(
    tmp_path / "model_best.pth.tar", image_state, text_state, cnn_type=cnn_type, finetune=True
  )
  variables, words, settings, report = vsepp.authors_variables(path, vocabulary)
  assert words == WORDS and report["rsum"] == 437.9 and report["step"] == 1234
  assert settings["model.text.name"] == ("bilstm" if text_kind is IMC else "gru")
  assert settings["model.image.trainable"] is True
  model, apply = ours(settings, variables)
  pixels = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype(np.uint8)
  shapes = jax.eval_shape(
    model.init,
    jax.random.key(0),
    {"image": pixels, "text": captions[0], "text_length": captions[1]},
  )
  assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, dict(shapes))
  scaled = ((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
  with torch.no_grad():
    want = unit(fc(torch.tensor(unit(reference.features(cnn, scaled)))).numpy())
  assert reference.relative_difference(apply(pixels, method="encode_image"), want) < 1e-4
  np.testing.assert_allclose(
    apply(*captions, method="encode_text"), encode_text(*captions), atol=1e-5
  )


def test_precomputed_features_checkpoint_gives_the_released_embeddings(tmp_path, captions):
  torch = pytest.importorskip("torch")
  fc = torch.nn.Linear(30, 12)
  text_state, encode_text = released_text(**VSEPP)
  state = {f"fc.{name}": value for name, value in fc.state_dict().items()}
  path, vocabulary = save(
    tmp_path / "model_best.pth.tar",
    state,
    text_state,
    cnn_type="vgg19",
    use_abs=True,
    measure="order",
  )
  variables, _, settings, _ = vsepp.authors_variables(path, vocabulary)
  assert settings["similarity"] == "order" and settings["model.normalize"] == "abs"
  assert settings["data.image"] == "features" and settings["model.image.input_norm"] is False
  model, apply = ours(settings | {"data.image_features": "x.npy"}, variables)
  features = np.random.default_rng(1).standard_normal((2, 30)).astype(np.float32)
  with torch.no_grad():
    want = np.abs(unit(fc(torch.tensor(features)).numpy()))
  np.testing.assert_allclose(apply(features, method="encode_image"), want, atol=1e-5)
  np.testing.assert_allclose(
    apply(*captions, method="encode_text"), np.abs(encode_text(*captions)), atol=1e-5
  )


@pytest.mark.parametrize("old", [False, True])
def test_vgg_checkpoint_of_either_torchvision_is_understood(old, monkeypatch):
  pytest.importorskip("torch")
  from xmr.models import convert, vgg

  monkeypatch.setattr(
    convert,
    "kind",
    lambda name: convert.Kind(
      lambda: vgg.VGG(hidden=32), (vgg.torchvision_name,), ("classifier.6.",)
    ),
  )
  state, model = released_cnn("vgg19")
  tensors = {name: value.numpy() for name, value in state.items()}
  if old:  # Dropout stood in front of each layer.
    for new, before in (("3", "4"), ("0", "1")):
      for leaf in ("weight", "bias"):
        tensors[f"cnn.classifier.{before}.{leaf}"] = tensors.pop(f"cnn.classifier.{new}.{leaf}")
  tensors |= {"fc.weight": np.zeros((12, 32), np.float32), "fc.bias": np.zeros(12, np.float32)}
  variables, settings = vsepp.image_part(tensors, {"cnn_type": "vgg19"}, source="x")
  assert settings["model.image.name"] == "vgg19"
  images = reference.two_images()
  found = vgg.VGG(hidden=32).apply({"params": variables["params"]["backbone"]}, images)
  assert reference.relative_difference(found, reference.features(model, images)) < 1e-4


@pytest.mark.parametrize(
  ("change", "words"),
  [
    (lambda image, text, options: image.pop("fc.bias"), "misses fc.bias"),
    (lambda image, text, options: text.pop("rnn.bias_hh_l0"), "missing ['rnn.bias_hh_l0']"),
    (
      lambda image, text, options: text.update({"rnn.weight_hh_l1": text["embed.weight"]}),
      "more than one layer",
    ),
    (lambda image, text, options: options.update(no_imgnorm=True), "--no_imgnorm"),
    (
      lambda image, text, options: image.update({"cnn.module.conv1.weight": image["fc.bias"]}),
      "its CNN is 'alexnet'",
    ),
    (
      lambda image, text, options: text.update({"embed.weight": text["embed.weight"][:-1]}),
      "has 20 words; ",
    ),
  ],
)
def test_what_does_not_fit_is_named(change, words, tmp_path):
  torch = pytest.importorskip("torch")
  image = {f"fc.{name}": value for name, value in torch.nn.Linear(30, 12).state_dict().items()}
  text, _ = released_text(**VSEPP)
  options = {"cnn_type": "alexnet"}
  change(image, text, options)
  path, vocabulary = save(tmp_path / "model_best.pth.tar", image, text, **options)
  with pytest.raises(UserError) as error:
    vsepp.authors_variables(path, vocabulary)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"model": [5, 6]}, "holds a int; expected a dict of tensors"),
    ({"model": {}}, "model is no pair"),
    ({"model": [[("a", 1)], {}]}, "holds a list; expected a dict of tensors"),
    ({"opt": 5}, "opt is a int; expected the options of a command"),
    ({"opt": [["a"]]}, "opt is a list; expected the options of a command"),
    ({"Eiters": "many"}, "Eiters is 'many'; expected a number of steps"),
    ({"Eiters": -1}, "Eiters is -1; expected a number of steps"),
    ({"best_rsum": float("nan")}, "best_rsum is nan; expected a score"),
    ({"best_rsum": "high"}, "best_rsum is 'high'; expected a score"),
  ],
)
def test_odd_parts_of_a_checkpoint_are_named(changes, words, tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"model": [{}, {}], "opt": {}} | changes, tmp_path / "odd.pth.tar")
  with pytest.raises(UserError) as error:
    vsepp.read_checkpoint(tmp_path / "odd.pth.tar")
  assert words in str(error.value)


@pytest.mark.parametrize("shape", [(), (4,), (0, 0), (2, 2, 2)])
def test_weights_of_other_axes_are_named(shape):
  odd, good = np.zeros(shape, np.float32), np.zeros((4, 2), np.float32)
  with pytest.raises(UserError, match="fc.weight has shape .*; expected 2 axes that hold values"):
    vsepp.image_part({"fc.weight": odd, "fc.bias": np.zeros(4)}, {}, source="x")
  text = {"embed.weight": good, "rnn.weight_ih_l0": good, "rnn.weight_hh_l0": odd}
  with pytest.raises(UserError, match="rnn.weight_hh_l0 has shape .*; expected 2 axes"):
    vsepp.text_part(text, source="x")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"words": [["a"]]}', '{"words": [1]}', "{"])
def test_an_odd_vocabulary_is_one_line(tmp_path, content):
  (tmp_path / "v.json").write_text(content)
  with pytest.raises(UserError, match="v.json: "):
    vsepp.read_vocabulary(tmp_path / "v.json")


class Trap:
  """Pickled, it writes a file when it is unpickled."""

  def __init__(self, path):
    self.path = str(path)

  def __reduce__(self):
    return open, (self.path, "w")


def test_code_in_the_options_is_refused_and_does_not_run(tmp_path):
  pytest.importorskip("torch")
  path, vocabulary = save(tmp_path / "model_best.pth.tar", {}, {}, trap=Trap(tmp_path / "executed"))
  with pytest.raises(UserError, match="holds io.open, which is code"):
    vsepp.authors_variables(path, vocabulary)
  assert not (tmp_path / "executed").exists()


def test_another_file_is_named(tmp_path):
  torch = pytest.importorskip("torch")
  torch.save({"state_dict": {}}, tmp_path / "a.pth")
  with pytest.raises(
    UserError,
    match=r"holds \['state_dict'\]; expected a checkpoint with epoch, model, best_rsum, opt",
  ):
    vsepp.read_checkpoint(tmp_path / "a.pth")
