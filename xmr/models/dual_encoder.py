"""The dual encoder that a config describes: an image and a text encoder into one joint space."""

import inspect
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float32

from xmr.errors import UserError, choice
from xmr.fields import field, resolve
from xmr.models import table
from xmr.models.borders import AnyImage, AnyText, Embeddings, Lengths, RegionMask
from xmr.models.lora import WHOLE, Adapted
from xmr.models.normalize import KINDS, normalize
from xmr.models.tokens import Layers
from xmr.ops.alignment import Tokens, mean
from xmr.ops.arrays import Array

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


class DualEncoder(nn.Module):
  """Maps images and texts to the joint space, each with its own encoder.

  Variables: {"params": {"image_encoder", "text_encoder"}, "batch_stats": {"image_encoder"} with
  BatchNorm}; dropout draws from the random stream "dropout".

  Attributes:
    image_encoder: module called as (image, *, train).
    text_encoder: module called as (text, text_length, *, train) on words, (text, *, train) on
      features. An encoder that takes `tokens=True` then returns its tokens, before its last norm.
    shared: transformer over the tokens of either side, called as (x [B, N, D], mask [B, N]), or
      None.
  """

  image_encoder: nn.Module
  text_encoder: nn.Module
  shared: nn.Module | None = None

  def __call__(
    self, batch: Mapping[str, Array], *, train: bool = False
  ) -> tuple[Embeddings, Float32[jax.Array, "T D"]]:
    """Encodes a batch.

    Args:
      batch: dict with `image` [B, H, W, 3] uint8, [B, F] float, or [B, R, F] float with its
        `image_mask` [B, R] bool (may be left out); `text` [B, L] int32 and `text_length` [B] int32,
        or `text` [B, F] float alone; other keys are ignored.
      train: True turns dropout on; "released" BatchNorm then uses and updates batch statistics.
    Returns:
      image: [B, D] float32.  text: [B, D] float32.
    Raises:
      ValueError: the encoder does not take the shape or type.
    """
    image = self.encode_image(batch["image"], batch.get("image_mask"), train=train)
    return image, self.encode_text(batch["text"], batch.get("text_length"), train=train)

  def encode_image(
    self, image: AnyImage, image_mask: RegionMask | None = None, *, train: bool = False
  ) -> Embeddings:
    """Encodes `image` (with `image_mask` for regions) as in `__call__` into [B, D] float32."""
    if self.shared is not None:
      kind = self.image_encoder.normalize
      return normalize(mean(self._image(image, image_mask, train)), kind)
    return self.image_encoder(image, **_given(image_mask), train=train)

  def tokens(self, batch: Mapping[str, Array], *, train: bool = False) -> tuple[Tokens, Tokens]:
    """Encodes a batch as `__call__` takes it into tokens: (Tokens [B, R, D], Tokens [B, W, D])."""
    image = self.image_tokens(batch["image"], batch.get("image_mask"), train=train)
    return image, self.text_tokens(batch["text"], batch.get("text_length"), train=train)

  def image_tokens(
    self, image: AnyImage, image_mask: RegionMask | None = None, *, train: bool = False
  ) -> Tokens:
    """Tokens [B, R, D] of the regions of `image`, each in the form of an embedding (unit rows).

    Raises:
      ValueError: an encoder without tokens.
    """
    found = self._image(image, image_mask, train)
    return Tokens(normalize(found.x, self.image_encoder.normalize), found.mask)

  def text_tokens(
    self, text: AnyText, text_length: Lengths | None = None, *, train: bool = False
  ) -> Tokens:
    """Tokens [B, W, D] of the words of `text`, as `image_tokens`; <start> and <end> are masked."""
    found = self._text(text, text_length, train)
    return Tokens(normalize(found.x, self.text_encoder.normalize), found.mask)

  def _image(self, image, image_mask, train):
    has_tokens("image", self.image_encoder)
    return self._through(self.image_encoder(image, **_given(image_mask), train=train, tokens=True))

  def _text(self, text, text_length, train):
    has_tokens("text", self.text_encoder)
    return self._through(self.text_encoder(text, text_length, train=train, tokens=True))

  def _through(self, tokens):
    """Passes tokens through the shared layers."""
    if self.shared is None:
      return tokens
    return Tokens(self.shared(tokens.x, tokens.mask), tokens.mask)

  def encode_text(
    self, text: AnyText, text_length: Lengths | None = None, *, train: bool = False
  ) -> Embeddings:
    """Encodes `text` (with `text_length` for words) as in `__call__` into [B, D] float32."""
    if self.shared is not None:
      kind = self.text_encoder.normalize
      return normalize(mean(self._text(text, text_length, train)), kind)
    found = f"text of shape {tuple(text.shape)} and type {text.dtype}"
    if "text_length" in inspect.signature(self.text_encoder.__call__).parameters:
      if text_length is None:
        raise ValueError(f"{found} has no text_length; expected words and their number")
      return self.text_encoder(text, text_length, train=train)
    if text_length is not None:
      raise ValueError(f"{found} has a text_length; expected features alone")
    return self.text_encoder(text, train=train)


def gives_tokens(encoder):
  """Returns whether an encoder gives tokens as well as the pooled embedding."""
  return "tokens" in inspect.signature(type(encoder).__call__).parameters


def has_tokens(side, encoder):
  """Raises ValueError where an encoder gives one embedding and no tokens."""
  if not gives_tokens(encoder):
    raise ValueError(f"the {side} encoder {type(encoder).__name__} gives no tokens")


def _given(image_mask):
  return {} if image_mask is None else {"mask": image_mask}


def build(config_model, *, vocabulary_size=None, word_vectors=None, base=WHOLE):
  """Builds the dual encoder that `config.model` describes, without computing or reading weights.

  Each encoder gets the fields of its section that it declares, and `dim`, `normalize` and `dtype`
  of the model.

  Args:
    config_model: `config.model`: dim, normalize, dtype, and the sections image and text, each with
      a `name`.
    vocabulary_size: number of words, for encoders of words.
    word_vectors: [vocabulary_size, word_dim] float32, initial word embedding; None is the
      encoder's own.
    base: what adapters leave as it is, see lora.base.
  Returns:
    DualEncoder, or lora.Adapted where config_model.lora.rank is set.
  Raises:
    UserError: an unknown name (the known ones are listed), or a field out of range.
  """
  choice("config.model.dtype", config_model.dtype, tuple(DTYPES))
  field(at_least=1).check("config.model.dim", config_model.dim)
  choice("config.model.normalize", config_model.normalize, KINDS)
  shared = {
    "dim": config_model.dim,
    "normalize": config_model.normalize,
    "dtype": DTYPES[config_model.dtype],
  }
  words = {"vocabulary_size": vocabulary_size, "word_vectors": word_vectors}
  model = DualEncoder(
    image_encoder=_encoder("image", config_model.image, shared),
    text_encoder=_encoder("text", config_model.text, shared | words),
    shared=_shared(config_model),
  )
  adapters = config_model.get("lora")
  if not adapters or not adapters.rank:
    return model
  return Adapted(model, adapters.rank, adapters.alpha, adapters.kernels, base)


def _shared(config_model):
  """The layers that both sides share, or None; UserError where their heads do not divide `dim`."""
  # A config.model that is built by hand may lack these fields.
  if not config_model.get("shared_layers"):
    return None
  if config_model.dim % config_model.shared_heads:
    raise UserError(
      f"config.model.shared_heads is {config_model.shared_heads}; expected a divisor of "
      f"config.model.dim, {config_model.dim}"
    )
  return Layers(
    config_model.shared_layers, config_model.shared_heads, dtype=DTYPES[config_model.dtype]
  )


def _encoder(side, section, shared):
  """Returns the module that config.model.<side>.name selects, with the fields that it declares."""
  row = table.row(side, section.name)
  encoder = resolve(row.path)
  known = set(inspect.signature(encoder).parameters) - {"name", "parent"} - set(row.fixed)
  defaults = {key: declared.default for key, declared in row.fields.items()}
  given = {**defaults, **section, **shared}
  fields = {key: value for key, value in given.items() if key in known}
  for key, declared in row.fields.items():
    if key in fields:
      declared.check(f"config.model.{side}.{key}", fields[key])
  if "vocabulary_size" in known and not fields.get("vocabulary_size"):
    raise UserError(
      f"config.model.{side}.name is {section.name!r}, which reads words; build() got no "
      "vocabulary_size"
    )
  return encoder(**row.fixed, **fields)
