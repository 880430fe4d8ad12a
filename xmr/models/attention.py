"""The pre-norm transformer block that image and text towers share."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# CLIP's first release approximates GELU with a logistic function, SigLIP with a tanh.
GELU = {
  "exact": functools.partial(nn.gelu, approximate=False),
  "tanh": functools.partial(nn.gelu, approximate=True),
  "quick": lambda x: x * nn.sigmoid(1.702 * x),
  "relu": nn.relu,
}
NORMAL = nn.initializers.normal(0.02)


def dense(width, *, dtype, name, bias=True):
  """A linear layer x W + b with W ~ N(0, 0.02)."""
  return nn.Dense(width, use_bias=bias, dtype=dtype, kernel_init=NORMAL, name=name)


class Attention(nn.Module):
  """softmax(q k' / sqrt(d)) v for each head, then a linear map; q from x, k and v from `source`.

  Attributes:
    heads: their number, which divides the width.  dtype: of the products; the softmax is float32.
  """

  heads: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, source=None, mask=None):
    """Returns [B, Q, W].

    Args:
      x: [B, Q, W] float.  source: [B, K, W]; None is x.
      mask: bool, broadcasts to [B, 1, Q, K]; False hides a key.
    """
    source = x if source is None else source
    width = x.shape[-1]

    def split(y, name):
      y = dense(width, dtype=self.dtype, name=name)(y)
      return y.reshape(*y.shape[:2], self.heads, -1)

    query, key, value = split(x, "query"), split(source, "key"), split(source, "value")
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(jnp.float32) * query.shape[-1] ** -0.5
    if mask is not None:
      scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores).astype(self.dtype)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
    return dense(width, dtype=self.dtype, name="output")(y)


class FeedForward(nn.Module):
  """gelu(x W1 + b1) W2 + b2."""

  hidden: int
  gelu: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    y = GELU[self.gelu](dense(self.hidden, dtype=self.dtype, name="up")(x))
    return dense(x.shape[-1], dtype=self.dtype, name="down")(y)


class Block(nn.Module):
  """x + s1 attention(norm(x)), then x + s2 feed_forward(norm(x)).

  Attributes:
    heads: of the attention.  hidden: units of the feed-forward.
    gelu: a key of GELU.  epsilon: of the norms.
    scale: True learns s1 and s2, one factor per channel (DINOv2); else both are 1.
    dtype: of the computation; parameters are float32.
  """

  heads: int
  hidden: int
  gelu: str
  epsilon: float
  scale: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, mask=None):
    def norm(name):
      return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)

    def scaled(y, name):
      if not self.scale:
        return y
      return y * self.param(name, nn.initializers.ones, (x.shape[-1],)).astype(self.dtype)

    y = Attention(self.heads, self.dtype, name="attention")(norm("norm1")(x), mask=mask)
    x = x + scaled(y, "scale1")
    y = FeedForward(self.hidden, self.gelu, self.dtype, name="mlp")(norm("norm2")(x))
    return x + scaled(y, "scale2")
