"""Checkpoints of VSE++ and IMC as released: their weights in our layout, their vocabulary and their
settings.
"""

import argparse
import json
import math
import os
import pathlib

from xmr.errors import UserError
from xmr.interop import safe_pickle, torch_files
from xmr.interop.vsepp_text import import_text_encoder
from xmr.models import convert

RECURRENT = {3: "gru", 4: "lstm"}  # by gates per unit


def read_vocabulary(path):
  """Words of a released vocabulary, by number.

  Reads the JSON form ({"word2idx": {word: number, ...}, ...} or {"words": [...]}) and the pickled
  `Vocabulary` object, of which it reads the plain data without unpickling (see safe_pickle.read).

  Args:
    path: .json or .pkl file.
  Returns:
    list of str, the word of each number from 0 on.
  Raises:
    UserError: no such file, other content, a pickle that holds anything but a Vocabulary, or
      numbers with gaps.
  """
  try:
    # A pipe would make the reader wait for ever.
    if os.path.exists(path) and not os.path.isfile(path):
      raise UserError(f"{path}: cannot be read (no plain file)")
    data = pathlib.Path(path).read_bytes()
  except OSError as error:
    raise UserError(f"{path}: cannot be read ({error.strerror})") from None
  if data.lstrip()[:1] in (b"{", b"["):
    try:
      found = json.loads(data)
    except (ValueError, RecursionError) as error:
      raise UserError(f"{path}: not a JSON file ({error})") from None
  else:
    found = safe_pickle.read(data, classes=("Vocabulary",), source=path)
  if isinstance(found, dict) and isinstance(found.get("words"), list):
    if not all(isinstance(word, str) for word in found["words"]):
      raise UserError(f"{path}: its words are not all texts")
    found = {word: number for number, word in enumerate(found["words"])}
  numbers = found.get("word2idx", found) if isinstance(found, dict) else None
  if (
    not isinstance(numbers, dict)
    or not numbers
    or not all(isinstance(word, str) for word in numbers)
  ):
    raise UserError(
      f"{path}: holds no vocabulary; expected a table from words to numbers, word2idx"
    )
  if sorted(map(str, numbers.values())) != sorted(map(str, range(len(numbers)))):
    raise UserError(f"{path}: its {len(numbers)} words are not numbered 0 to {len(numbers) - 1}")
  return sorted(numbers, key=lambda word: int(numbers[word]))


def read_checkpoint(path):
  """A released `model_best.pth.tar`: (image tensors, text tensors, options, report).

  PyTorch's weights_only reader builds tensors and plain containers; the only other class allowed is
  argparse.Namespace, which holds the options as attributes and runs nothing.

  Args:
    path: of the file that the authors' train.py saved.
  Returns:
    image, text: {name: NumPy array}.  options: dict of the training command.
    report: {"step": steps done, "rsum": best validation score}; None where the file does not say.
  Raises:
    UserError: no such file, content that is not plain, or not such a checkpoint.
  """
  state = torch_files.read_torch(path, containers=[argparse.Namespace])
  if not isinstance(state, dict) or "model" not in state:
    held = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
    raise UserError(
      f"{path}: holds {held}; expected a checkpoint with epoch, model, best_rsum, opt"
    )
  if not isinstance(state["model"], (list, tuple)) or len(state["model"]) != 2:
    raise UserError(f"{path}: model is no pair of image and text encoder")
  image, text = (torch_files.arrays(part, source=path) for part in state["model"])
  options = state.get("opt", {})
  options = vars(options) if isinstance(options, argparse.Namespace) else options
  if not isinstance(options, dict):
    raise UserError(f"{path}: opt is a {type(options).__name__}; expected the options of a command")
  step, rsum = state.get("Eiters"), state.get("best_rsum")
  if step is not None and (not isinstance(step, int) or not 0 <= step < 1 << 31):
    raise UserError(f"{path}: Eiters is {step!r}; expected a number of steps")
  if rsum is not None and (not isinstance(rsum, float | int) or not math.isfinite(rsum)):
    raise UserError(f"{path}: best_rsum is {rsum!r}; expected a score")
  return image, text, options, {"step": step, "rsum": rsum}


def _require(tensors, axes, *, source):
  missing = [name for name in axes if name not in tensors]
  if missing:
    raise UserError(f"{source}: misses {', '.join(missing)}")
  for name, count in axes.items():
    shape = tensors[name].shape
    if len(shape) != count or 0 in shape:
      raise UserError(f"{source}: {name} has shape {shape}; expected {count} axes that hold values")


def image_part(tensors, options, *, source):
  """The image encoder: (variables {"params", "batch_stats"}, settings).

  `EncoderImageFull` holds a CNN under "cnn.module." (ResNet) or "cnn.features.module." (VGG) and
  the projection "fc"; `EncoderImagePrecomp` holds the projection alone.

  Args:
    tensors: {name: array}.  options: of the checkpoint; cnn_type names the CNN.
    source: path, for errors.
  Returns:
    variables as under "image_encoder"; settings {"model.image.name": ..., ...} for a config.
  Raises:
    UserError: a tensor is missing, extra or misshapen, or we do not have the CNN.
  """
  _require(tensors, {"fc.weight": 2, "fc.bias": 1}, source=source)
  projection = {"kernel": tensors["fc.weight"].T, "bias": tensors["fc.bias"]}
  settings = {"model.dim": len(tensors["fc.bias"]), "model.image.bias": True}
  cnn = {
    name.removeprefix("cnn."): value for name, value in tensors.items() if name.startswith("cnn.")
  }
  if not cnn:
    return {"params": {"projection": projection}}, settings | {
      "data.image": "features",
      "model.image.name": "linear",
      "model.image.input_norm": False,
    }
  cnn = {
    name.removeprefix("module.").replace("features.module.", "features."): v
    for name, v in cnn.items()
  }
  if "classifier.1.weight" in cnn:
    # torchvision before 2017 began its classifier with dropout.
    for old, new in (("1", "0"), ("4", "3")):
      for leaf in ("weight", "bias"):
        cnn[f"classifier.{new}.{leaf}"] = cnn.pop(f"classifier.{old}.{leaf}")
  name = options.get("cnn_type", "vgg19" if "classifier.0.weight" in cnn else None)
  if name not in convert.RESNETS + ("vgg19",):
    raise UserError(
      f"{source}: its CNN is {name!r}; expected one of {', '.join(convert.RESNETS + ('vgg19',))}"
    )
  backbone = convert.image_variables(name, cnn, source=source)
  variables = {collection: {"backbone": tree} for collection, tree in backbone.items()}
  variables["params"]["projection"] = projection
  return variables, settings | {
    "data.image": "pixels",
    "model.image.name": name,
    "model.image.input_norm": True,
    "model.image.trainable": bool(options.get("finetune", False)),
    "model.image.batch_norm": "released",
  }


def text_part(tensors, *, source):
  """The text encoder: (params as under "text_encoder", settings for a config).

  Its kind and sizes follow from the shapes.

  Args:
    tensors: {name: array} of an EncoderText.  source: path, for errors.
  Raises:
    UserError: more than one layer, or a tensor is missing, extra or misshapen.
  """
  weights = {"embed.weight": 2, "rnn.weight_ih_l0": 2, "rnn.weight_hh_l0": 2}
  _require(tensors, weights, source=source)
  if any("_l1" in name for name in tensors):
    raise UserError(
      f"{source}: its text encoder has more than one layer; expected one, as in the papers"
    )
  rows, hidden = tensors["rnn.weight_hh_l0"].shape
  cell = RECURRENT.get(rows // hidden)
  if cell is None:
    raise UserError(
      f"{source}: rnn.weight_hh_l0 has shape {(rows, hidden)}; expected 3 (GRU) or 4 (LSTM) gates"
    )
  bidirectional = "rnn.weight_ih_l0_reverse" in tensors
  params = import_text_encoder(tensors, cell=cell, bidirectional=bidirectional, where=source)
  return params, {
    "data.text": "words",
    "model.text.name": ("bi" if bidirectional else "") + cell,
    "model.text.hidden": 0,
    "model.text.word_dim": tensors["embed.weight"].shape[1],
    "model.text.readout": "last",
  }


def authors_variables(path, vocabulary):
  """A released VSE++ or IMC checkpoint in our layout.

  Args:
    path: `model_best.pth.tar`.  vocabulary: its vocabulary, .json or .pkl, see read_vocabulary.
  Returns:
    variables: {"params": {"image_encoder", "text_encoder"}, "batch_stats": {"image_encoder"} for a
      CNN}, NumPy.
    words: list of str.
    settings: {"model.dim": 1024, ...}, the fields of a config that these weights need.
    report: {"step", "rsum" and "sha256" of the checkpoint}.
  Raises:
    UserError: files that cannot be read or do not fit, or options that we do not support (order
      embeddings without unit image embeddings).
  """
  image, text, options, report = read_checkpoint(path)
  words = read_vocabulary(vocabulary)
  if options.get("no_imgnorm"):
    raise UserError(
      f"{path}: was trained with --no_imgnorm; images and texts are normalised alike here"
    )
  image_variables, image_settings = image_part(image, options, source=path)
  params, text_settings = text_part(text, source=path)
  if len(words) != len(params["embedding"]):
    raise UserError(
      f"{vocabulary}: has {len(words)} words; {path} has vectors for {len(params['embedding'])}"
    )
  width, units = image_settings["model.dim"], len(params["forward"]["hidden_kernel"])
  if width != units:
    raise UserError(f"{path}: images have {width} values and texts {units}; expected the same")
  variables = {name: {"image_encoder": tree} for name, tree in image_variables.items()}
  variables["params"]["text_encoder"] = params
  settings = (
    image_settings
    | text_settings
    | {
      "model.normalize": "abs" if options.get("use_abs") else "l2",
      "similarity": "order"
      if "order" in (options.get("measure"), options.get("cl_measure"))
      else "cosine",
    }
  )
  return variables, words, settings, report | {"sha256": torch_files.sha256(path)}
