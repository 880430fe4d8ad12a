"""Encoders of precomputed image or text features: a linear projection and a small network."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from xmr.models.borders import Embeddings, Features
from xmr.models.normalize import normalize

ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "tanh": nn.tanh, "none": lambda x: x}


def dense(width, *, bias=True, dtype=jnp.float32, name=None):
  """Returns a linen layer x W + b with W ~ U(-r, r), r = sqrt(6 / (inputs + width)), and b = 0, as
  in IMC's released code.
  """
  return nn.Dense(
    width, use_bias=bias, dtype=dtype, kernel_init=nn.initializers.glorot_uniform(), name=name
  )


def check_features(x):
  """Raises ValueError unless x is [B, F] float."""
  if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.floating):
    raise ValueError(
      f"features have shape {tuple(x.shape)} and type {x.dtype}; expected [B, F] of a float type"
    )


class Linear(nn.Module):
  """Projects features to the joint space: f(x) = n(u(x) W + b).

  u(x) = x / (||x|| + 1e-12) with `input_norm`, else x; n is `normalize`.

  Attributes:
    dim: width D of the joint space.
    bias: False leaves b out (Full-HN).
    input_norm: scale x to unit rows first: True for raw CNN features (IMC), False for features that
      are normalised already.
    normalize: "l2", "abs" or "none", see `normalize.normalize`.
    dtype: of the product; parameters and norms are float32.
  References:
    Chen et al., IMC, ICIP 2022, as released (`EncoderImagePrecomp`).
    Mallea et al., Full-HN, DS 2023, 'Linear' as released.
  """

  dim: int
  bias: bool = True
  input_norm: bool = False
  normalize: str = "l2"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Features, *, train: bool = False) -> Embeddings:
    """Encodes x: [B, F] float into [B, D] float32; `train` changes nothing.

    Raises:
      ValueError: x is not [B, F] float.
    """
    del train
    check_features(x)
    if self.input_norm:
      x = normalize(x, "l2")
    return normalize(
      dense(self.dim, bias=self.bias, dtype=self.dtype, name="projection")(x), self.normalize
    )


class MLP(nn.Module):
  """Encodes features with a few dense layers, with dropout in training (which the released code
  declares but does not apply).

  hidden = 0 is the released network: widths go from F to D in `depth` equal steps (for depth 2: F,
  (F + D) / 2, D); the activation follows every layer, including the last, and dropout the first.
  hidden > 0 has `depth` layers of `hidden` units, each with activation and dropout, and a linear
  projection to D.

  Attributes:
    dim: width D of the joint space.  hidden: units of a hidden layer, or 0.  depth: number of
      hidden layers.
    activation: "relu", "gelu", "tanh" or "none".  dropout: share of units set to zero in training
      (rng "dropout").
    bias, input_norm, normalize, dtype: as in `Linear`.
  References:
    Mallea et al., Full-HN, DS 2023, 'net' as released.
  """

  dim: int
  hidden: int = 0
  depth: int = 2
  activation: str = "relu"
  dropout: float = 0.2
  bias: bool = True
  input_norm: bool = False
  normalize: str = "l2"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Features, *, train: bool = False) -> Embeddings:
    """Encodes x: [B, F] float into [B, D] float32; train=True turns dropout on.

    Raises:
      ValueError: x is not [B, F] float.
    """
    check_features(x)
    if self.input_norm:
      x = normalize(x, "l2")
    act, features = ACTIVATIONS[self.activation], x.shape[-1]
    for i in range(self.depth):
      width = self.hidden or features + (self.dim - features) * i // self.depth
      x = act(dense(width, bias=self.bias, dtype=self.dtype, name=f"hidden_{i}")(x))
      if self.hidden or i == 0:
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
    x = dense(self.dim, bias=self.bias, dtype=self.dtype, name="projection")(x)
    return normalize(x if self.hidden else act(x), self.normalize)
