"""Sentence encoders of the BERT family (BERT, MiniLM, MPNet), mean-pooled."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from xmr.models.attention import GELU
from xmr.models.borders import Encoded, Lengths, Words
from xmr.models.features import dense
from xmr.models.loop import blocks
from xmr.models.normalize import normalize
from xmr.models.text import words_alone
from xmr.ops.alignment import Tokens
from xmr.ops.unit import unit


@dataclasses.dataclass(frozen=True)
class Architecture:
  """What config.json says about the network; sizes in units, dropout as a rate."""

  kind: str  # "bert" (also MiniLM) or "mpnet"
  vocabulary: int
  hidden: int
  depth: int
  heads: int
  intermediate: int
  positions: int
  epsilon: float = 1e-12
  activation: str = "exact"  # a key of attention.GELU
  types: int = 2  # BERT only
  buckets: int = 32  # MPNet only
  pad: int = 0
  dropout: float = 0.1

  @property
  def longest(self):
    """The longest text in tokens; MPNet's positions begin after the padding id."""
    return self.positions - (self.pad + 1 if self.kind == "mpnet" else 0)


def relative_buckets(length, *, buckets, farthest=128):
  """Bucket of each (query, key) distance: [length, length] int, the same for every layer.

  Half of the buckets are for keys after the query. In each half, the first half of the buckets hold
  one distance each; the others grow logarithmically up to `farthest`.

  References:
    Raffel et al., T5, JMLR 2020, section 2.1; MPNet uses 32 buckets.
  """
  offset = np.arange(length)[None, :] - np.arange(length)[:, None]
  side = buckets // 2
  exact = side // 2
  distance = np.abs(offset)
  # float32, as in PyTorch, so that a distance on a bucket's border falls on the same side.
  ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / np.float32(
    np.log(farthest / exact)
  )
  far = np.minimum(exact + (ratio * np.float32(side - exact)).astype(np.int64), side - 1)
  return np.where(offset > 0, side, 0) + np.where(distance < exact, distance, far)


class Layer(nn.Module):
  """Self-attention and feed-forward, each followed by dropout, residual and layer norm
  (post-norm).
  """

  architecture: Architecture
  train: bool  # dropout on
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, bias):
    net = self.architecture

    def dense(width, name):
      return nn.Dense(width, dtype=self.dtype, kernel_init=nn.initializers.normal(0.02), name=name)

    def norm(name):
      return nn.LayerNorm(epsilon=net.epsilon, dtype=self.dtype, name=name)

    def split(y):
      return y.reshape(*y.shape[:2], net.heads, -1)

    dropout = nn.Dropout(net.dropout, deterministic=not self.train)
    query, key, value = (split(dense(net.hidden, name)(x)) for name in ("query", "key", "value"))
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * query.shape[-1] ** -0.5
    weights = dropout(jax.nn.softmax((scores + bias).astype(jnp.float32)).astype(self.dtype))
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
    x = norm("attention_norm")(x + dropout(dense(net.hidden, "output")(y)))
    y = GELU[net.activation](dense(net.intermediate, "up")(x))
    return norm("feed_norm")(x + dropout(dense(net.hidden, "down")(y)))


class Transformer(nn.Module):
  """BERT, MiniLM or MPNet encoder with the mean of its last hidden states over the text's tokens.

  Args:
    architecture: sizes, from read_architecture.  normalize: divide each row by its l2 norm.
    train_blocks: train only the last so many layers; -1 trains all.
    remat: recompute layers in the backward pass.
    dtype: of the computation; parameters stay float32.
  Call:
    text: [B, L] int32 token ids with the special tokens; L at most architecture.longest.
    text_length: [B] int32, number of tokens of each row; the rest is padding, whatever its ids.
    train: dropout on (rng "dropout").  tokens: True returns the last hidden states too.
  Returns:
    [B, hidden] float32; with tokens=True also [B, L, hidden] float32.
  Raises:
    ValueError: wrong shape, or more tokens than positions.
  References:
    Devlin et al., BERT, 2019; Song et al., MPNet, 2020; Reimers and Gurevych, Sentence-BERT, 2019
    (mean pooling).
  """

  architecture: Architecture
  normalize: bool = False
  train_blocks: int = -1
  remat: bool = False
  dtype: jnp.dtype = jnp.float32

  @property
  def features(self):
    return self.architecture.hidden

  @nn.compact
  def __call__(self, text, text_length, *, train=False, tokens=False):
    net = self.architecture
    if text.ndim != 2 or text_length.shape != text.shape[:1]:
      raise ValueError(
        f"text has shape {text.shape}, text_length {text_length.shape}; expected [B, L] and [B]"
      )
    if text.shape[1] > net.longest:
      raise ValueError(
        f"text has {text.shape[1]} tokens; this network has positions for {net.longest}"
      )

    def embed(count, name):
      return nn.Embed(
        count, net.hidden, dtype=self.dtype, embedding_init=nn.initializers.normal(0.02), name=name
      )

    mask = jnp.arange(text.shape[1]) < text_length[:, None]
    x = embed(net.vocabulary, "words")(text)
    position = jnp.arange(text.shape[1])
    bias = jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min / 2)[:, None, None, :]
    if net.kind == "mpnet":
      x = x + embed(net.positions, "positions")(position + net.pad + 1)
      table = nn.Embed(
        net.buckets, net.heads, embedding_init=nn.initializers.normal(0.02), name="distances"
      )
      bias = bias + table(relative_buckets(text.shape[1], buckets=net.buckets)).transpose(2, 0, 1)
    else:
      x = (
        x
        + embed(net.types, "types")(jnp.zeros_like(text))
        + embed(net.positions, "positions")(position)
      )
    x = nn.LayerNorm(epsilon=net.epsilon, dtype=self.dtype, name="norm")(x)
    x = nn.Dropout(net.dropout, deterministic=not train)(x)
    x = blocks(
      self,
      functools.partial(Layer, net, train, self.dtype),
      x,
      bias,
      layers=net.depth,
      remat=self.remat,
      trained=self.train_blocks,
      random=("dropout",),
    )
    # Sums are float32 for any dtype, since a mean over many tokens loses digits in bfloat16.
    x = x.astype(jnp.float32)
    mean = (x * mask[..., None]).sum(1) / jnp.maximum(text_length, 1)[:, None]
    if self.normalize:
      mean = unit(mean)
    return (mean, x) if tokens else mean


class SentenceTower(nn.Module):
  """Projects the mean of a BERT or MPNet encoder to the joint space.

  The transformer's variables are under "backbone", the projection's under "projection".

  Attributes:
    dim: width D of the joint space.  kind: "bert" (also MiniLM) or "mpnet".
    vocabulary_size ... dropout: see Architecture, whose fields have other names.
    project: False if the mean itself is the embedding; D is then its width.
    bias: of the projection.  normalize: "l2", "abs" or "none".
    trainable: False stops the gradient at the mean.
    train_blocks, remat, dtype: see Transformer.
  """

  dim: int
  kind: str
  vocabulary_size: int
  width: int = 384
  layers: int = 6
  heads: int = 12
  mlp_width: int = 1536
  positions: int = 512
  gelu: str = "exact"
  epsilon: float = 1e-12
  pad: int = 0
  types: int = 2
  buckets: int = 32
  dropout: float = 0.1
  project: bool = True
  bias: bool = True
  normalize: str = "l2"
  trainable: bool = True
  train_blocks: int = -1
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    self.backbone = Transformer(
      Architecture(
        kind=self.kind,
        vocabulary=self.vocabulary_size,
        hidden=self.width,
        depth=self.layers,
        heads=self.heads,
        intermediate=self.mlp_width,
        positions=self.positions,
        epsilon=self.epsilon,
        activation=self.gelu,
        pad=self.pad,
        types=self.types,
        buckets=self.buckets,
        dropout=self.dropout,
      ),
      train_blocks=self.train_blocks,
      remat=self.remat,
      dtype=self.dtype,
    )
    self.projection = dense(self.dim, bias=self.bias, dtype=self.dtype) if self.project else None
    if not self.project and self.dim != self.width:
      raise ValueError(
        f"config.model.dim is {self.dim}; expected {self.width}, the width of a tower without "
        "projection"
      )

  def __call__(
    self, text: Words, text_length: Lengths, *, train: bool = False, tokens: bool = False
  ) -> Encoded:
    """Encodes texts.

    Args:
      text: [B, L] int32.  text_length: [B] int32.  train: True turns dropout on.
      tokens: True returns the tokens.
    Returns:
      [B, D] float32, or Tokens [B, L, D] before they are normalised: only those of words, each
      through the projection of the mean.
    """
    pooled, found = self.backbone(text, text_length, train=train and self.trainable, tokens=True)
    if not self.trainable:
      pooled, found = jax.lax.stop_gradient((pooled, found))
    x = found if tokens else pooled
    if self.projection is not None:
      x = self.projection(x)
    if tokens:
      return Tokens(x.astype(jnp.float32), words_alone(text_length, text.shape[1]))
    return normalize(x, self.normalize)
