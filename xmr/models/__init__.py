"""Encoders by name, and the dual encoder that a config describes."""

import functools
import inspect

import jax.numpy as jnp

from xmr.errors import UserError
from xmr.models.dual_encoder import DualEncoder
from xmr.models.features import ACTIVATIONS, MLP, Linear
from xmr.models.image import BACKBONES, ConvNet, PretrainedEncoder
from xmr.models.text import TEXT_ENCODERS as WORD_ENCODERS

IMAGE_ENCODERS = {
  "linear": Linear,
  "mlp": MLP,
  "convnet": ConvNet,
  **{name: functools.partial(PretrainedEncoder, arch=name) for name in BACKBONES},
}
TEXT_ENCODERS = {"linear": Linear, "mlp": MLP, **WORD_ENCODERS}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def build(config_model, *, vocabulary_size=None, word_vectors=None):
  """Builds the dual encoder that `config.model` describes; nothing is computed and no weights are
  read.

  Each encoder gets the fields of its section that it declares, and `dim`, `normalize` and `dtype`
  of the model; a field that is None keeps the encoder's own default.

  Args:
    config_model: `config.model`: dim, normalize, dtype, and the sections image and text, each with
      a `name`.
    vocabulary_size: number of words, for encoders of words.
    word_vectors: [vocabulary_size, word_dim] float32, their initial embedding; None is the
      encoder's own.
  Returns:
    DualEncoder.
  Raises:
    UserError: an unknown name (the known ones are listed), or a field out of range.
  """
  if config_model.dtype not in DTYPES:
    raise UserError(
      f"config.model.dtype is {config_model.dtype!r}; expected one of {', '.join(DTYPES)}"
    )
  if config_model.dim < 1:
    raise UserError(f"config.model.dim is {config_model.dim}; expected 1 or more")
  if config_model.normalize not in ("l2", "abs", "none"):
    raise UserError(
      f"config.model.normalize is {config_model.normalize!r}; expected one of l2, abs, none"
    )
  shared = {
    "dim": config_model.dim,
    "normalize": config_model.normalize,
    "dtype": DTYPES[config_model.dtype],
  }
  words = {"vocabulary_size": vocabulary_size, "word_vectors": word_vectors}
  return DualEncoder(
    image_encoder=_encoder("image", IMAGE_ENCODERS, config_model.image, shared),
    text_encoder=_encoder("text", TEXT_ENCODERS, config_model.text, shared | words),
  )


def _encoder(side, table, section, shared):
  """Returns the module that config.model.<side>.name picks from the table, with the fields that it
  declares.
  """
  where = f"config.model.{side}"
  if section.name not in table:
    raise UserError(f"{where}.name is {section.name!r}; expected one of {', '.join(table)}")
  known = set(inspect.signature(table[section.name]).parameters) - {"name", "parent"}
  fields = {
    key: value for key, value in {**section, **shared}.items() if key in known and value is not None
  }
  if fields.get("activation", "relu") not in ACTIVATIONS:
    raise UserError(
      f"{where}.activation is {fields['activation']!r}; expected one of {', '.join(ACTIVATIONS)}"
    )
  if fields.get("batch_norm", "frozen") not in ("frozen", "released"):
    raise UserError(f"{where}.batch_norm is {fields['batch_norm']!r}; expected frozen or released")
  if not 0 <= fields.get("dropout", 0) < 1:
    raise UserError(f"{where}.dropout is {fields['dropout']}; expected from 0 to below 1")
  for key in ("hidden", "depth"):
    if fields.get(key, 0) < 0:
      raise UserError(f"{where}.{key} is {fields[key]}; expected 0 or more")
  if "vocabulary_size" in known and not fields.get("vocabulary_size"):
    raise UserError(
      f"{where}.name is {section.name!r}, which reads words; build() got no vocabulary_size"
    )
  return table[section.name](**fields)
