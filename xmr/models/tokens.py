"""Encoders that keep their tokens: image regions, words through a transformer, and layers that both
sides may share.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from xmr.models import borders
from xmr.models.attention import Block
from xmr.models.borders import Encoded, Lengths, RegionMask
from xmr.models.features import dense
from xmr.models.loop import blocks
from xmr.models.normalize import normalize
from xmr.models.text import check_words, embedded, words_alone
from xmr.ops.alignment import Tokens, mean


class Layers(nn.Module):
  """Pre-norm transformer layers over tokens, with padding masked and a norm after the last layer.

  Attributes:
    layers: their number.  heads: of each, a divisor of the width.
    hidden: units of the feed-forward; 0 is twice the width.  dtype: of the computation.
  """

  layers: int
  heads: int = 4
  hidden: int = 0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, mask):
    """x: [B, N, W] float, mask: [B, N] bool -> [B, N, W] float32."""
    if x.shape[-1] % self.heads:
      raise ValueError(f"heads is {self.heads}; expected a divisor of the width, {x.shape[-1]}")
    block = functools.partial(
      Block,
      heads=self.heads,
      hidden=self.hidden or 2 * x.shape[-1],
      gelu="exact",
      epsilon=1e-6,
      dtype=self.dtype,
    )
    mask = mask[:, None, None, :]
    x = blocks(self, block, x.astype(self.dtype), mask, layers=self.layers, remat=False)
    return nn.LayerNorm(dtype=self.dtype, name="norm")(x).astype(jnp.float32)


class Regions(nn.Module):
  """Projects the features of an image's regions: tokens W u(x_r) + b, then `layers` of attention.

  The pooled embedding is n(mean of the tokens).

  Attributes:
    dim: width D of the joint space.
    layers: transformer layers over the regions of an image (TERAN: 4); 0 is only a projection.
    heads: of those layers.  dropout: share of the features set to zero in training.
    bias, input_norm, normalize, dtype: as in `features.Linear`.
  References:
    Messina et al., TERAN, TOMM 2021, section 3, without its geometry of boxes.
  """

  dim: int
  layers: int = 0
  heads: int = 4
  dropout: float = 0.0
  bias: bool = True
  input_norm: bool = False
  normalize: str = "l2"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: borders.Regions,
    mask: RegionMask | None = None,
    *,
    train: bool = False,
    tokens: bool = False,
  ) -> Encoded:
    """Encodes regions.

    Args:
      x: [B, R, F] float.  mask: [B, R] bool, True where there is a region; None is all.
      train: True turns dropout on (rng "dropout").  tokens: True returns the tokens.
    Returns:
      [B, D] float32, or Tokens [B, R, D] before they are normalised.
    Raises:
      ValueError: another shape or type.
    """
    if x.ndim != 3 or not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(
        f"regions have shape {tuple(x.shape)} and type {x.dtype}; expected [B, R, F] float"
      )
    mask = jnp.ones(x.shape[:2], bool) if mask is None else mask
    if mask.shape != x.shape[:2]:
      raise ValueError(f"mask has shape {mask.shape}; expected {x.shape[:2]} as regions are there")
    if self.input_norm:
      x = normalize(x, "l2")
    x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = dense(self.dim, bias=self.bias, dtype=self.dtype, name="projection")(x)
    if self.layers:
      x = Layers(self.layers, self.heads, dtype=self.dtype, name="layers")(x, mask)
    found = Tokens(x.astype(jnp.float32), mask)
    return found if tokens else normalize(mean(found), self.normalize)


class Words(nn.Module):
  """Words through a small transformer: tokens Layers(P E[w] + position), pooled n(mean of tokens).

  Positions are sines and cosines, so that the length of texts is not limited.

  Attributes:
    dim: width D of the joint space.  vocabulary_size: rows of the word embedding.
    word_dim, dropout, word_init, word_vectors, normalize, dtype: as in `text.Recurrent`.
    layers, heads: of the transformer.
  References:
    Vaswani et al., 2017, section 3.5 (positions).
  """

  dim: int
  vocabulary_size: int
  word_dim: int = 300
  layers: int = 2
  heads: int = 4
  dropout: float = 0.1
  word_init: str = "normal"
  word_vectors: Any = dataclasses.field(default=None, compare=False, repr=False)
  normalize: str = "l2"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, text: borders.Words, text_length: Lengths, *, train: bool = False, tokens: bool = False
  ) -> Encoded:
    """Encodes words.

    Args:
      text: [B, L] int, including <start> and <end>.  text_length: [B] int.
      train: True turns dropout on (rng "dropout").  tokens: True returns the tokens.
    Returns:
      [B, D] float32, or Tokens [B, L, D] before they are normalised, without <start> and <end>.
    Raises:
      ValueError: a shape, type or attribute that does not fit.
    """
    check_words(text, text_length, self.word_init)
    inside = jnp.arange(text.shape[1]) < text_length[:, None]
    vectors = embedded(self, text)
    vectors = nn.Dropout(self.dropout)(vectors, deterministic=not train)
    x = dense(self.dim, dtype=self.dtype, name="projection")(vectors)
    x = x + positions(text.shape[1], self.dim).astype(x.dtype)
    x = Layers(self.layers, self.heads, dtype=self.dtype, name="layers")(x, inside)
    found = Tokens(x, words_alone(text_length, text.shape[1]))
    return found if tokens else normalize(mean(found), self.normalize)


def positions(length, width):
  """Sines and cosines of L positions, [L, W] float32.

  p(t, 2i) = sin(t / 10000^(2i / W)), p(t, 2i + 1) = cos of the same.
  """
  angle = jnp.arange(length)[:, None] / 10000 ** (jnp.arange(0, width, 2) / width)
  return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(length, -1)[:, :width]
