"""Scores of pairs: of two texts (the siamese network that labels) and of a text and an image (the
retrieval network).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from xmr.models.graph import ACTIVATIONS, GraphEncoder, Laplacian
from xmr.ops.arrays import Array

NORMALIZED = ("none", "text", "both")


class Siamese(nn.Module):
  """Similarity of two texts: q(t, t') = sigmoid(z), z = w . (g(t) * g(t')) + b, with one encoder g
  for both sides.

  A reconstruction: the paper names a siamese network of semantic similarity, but its form could not
  be read; this is the group's two-channel text network (yul_gcn) with shared weights.

  Attributes:
    encoder: GraphEncoder of dim D.  dropout: rate on the product, of D numbers, in training.
  """

  encoder: GraphEncoder
  dropout: float = 0.0

  def setup(self):
    self.head = Head(self.encoder.dim, self.dropout)

  def __call__(
    self,
    signal: Float[Array, "U N"],
    laplacian: Laplacian,
    first: Integer[Array, " M"],
    second: Integer[Array, " M"],
    *,
    train: bool = False,
  ) -> Float[jax.Array, " M"]:
    """Logits of M pairs.

    Args:
      signal: [U, N] float32 texts.  laplacian: Laplacian of N words.
      first, second: [M] int32, rows of `signal`.
      train: True turns dropout on (rng "dropout").
    Returns:
      z: [M] float32; sigmoid(z) is the similarity.
    """
    embedding = self.encoder(signal, laplacian, train=train)
    return self.head(embedding, embedding, first, second, train=train)

  def encode(self, signal, laplacian):
    """g(t): [U, N] -> [U, D]."""
    return self.encoder(signal, laplacian)

  def all_pairs(self, first, second):
    """Logits of every pair of encoded texts: [U, D], [V, D] -> [U, V]."""
    return self.head.fold(first) @ second.T + self.head.bias


class PairScore(nn.Module):
  """Score of a text and an image: s = w . (h_t * h_i) + b, h_t from the graph, h_i a linear layer
  of the image's features.

  The score is linear, without a sigmoid, as the loss on means and variances requires. In retrieval
  s = (w * h_t) . h_i + b is a dot product of two embeddings plus a constant, so similarity, top-k
  and MAP of kind "dot" apply.

  Attributes:
    text: GraphEncoder of dim D; h_i has its activation too.
    dropout: rate on h_t * h_i in training.
    unit_dropout: rate on the units of h_t in training, drawn per text and not per pair, so that a
      grid of pairs stays one matrix product.
    image_dropout: rate on the image's features in training.
    head_start: factor on the initial w. The global loss favours scores of about 0.1 (means m apart
      cost too much variance), and a network that starts at 1 spends its training on shrinking them.
    normalize: rows scaled to a mean square of 1 before the product: "none" (the group), "text" or
      "both". Otherwise a text with many known words scores high with every image.

  References:
    GIN / SCKR, as released: FC 1024 on both sides, dropout 0.2 (yul_gcn) or 0.4 (SCKR).
  """

  text: GraphEncoder
  dropout: float = 0.2
  unit_dropout: float = 0.0
  image_dropout: float = 0.0
  head_start: float = 1.0
  normalize: str = "none"

  def setup(self):
    if self.normalize not in NORMALIZED:
      raise ValueError(f"normalize is {self.normalize!r}; expected one of {', '.join(NORMALIZED)}")
    self.drop_units, self.drop = nn.Dropout(self.unit_dropout), nn.Dropout(self.image_dropout)
    self.image = nn.Dense(self.text.dim, kernel_init=nn.initializers.xavier_uniform())
    self.head = Head(self.text.dim, self.dropout, self.head_start)

  def __call__(
    self,
    signal: Float[Array, "U N"],
    laplacian: Laplacian,
    image: Float[Array, "V F"],
    text_of_pair: Integer[Array, " M"],
    image_of_pair: Integer[Array, " M"],
    *,
    train: bool = False,
  ) -> Float[jax.Array, " M"]:
    """Scores of M pairs.

    Args:
      signal: [U, N] float32 texts.  laplacian: Laplacian of N words.  image: [V, F] float32
        features.
      text_of_pair, image_of_pair: [M] int32, rows of `signal` and `image`.
      train: True turns dropout on (rng "dropout").
    Returns:
      [M] float32.
    Raises:
      ValueError: shapes that do not fit.
    """
    if image.ndim != 2:
      raise ValueError(f"image has shape {image.shape}; expected (images, features)")
    text = self.drop_units(self._text(signal, laplacian, train=train), deterministic=not train)
    image = self.encode_image(self.drop(image, deterministic=not train))
    return self.head(text, image, text_of_pair, image_of_pair, train=train)

  def encode_text(self, signal, laplacian):
    """w * h_t: [U, N] -> [U, D]."""
    return self.head.fold(self._text(signal, laplacian))

  def encode_image(self, image):
    """h_i: [V, F] -> [V, D]."""
    image = ACTIVATIONS[self.text.activation](self.image(image))
    return _unit_mean_square(image) if self.normalize == "both" else image

  def _text(self, signal, laplacian, *, train=False):
    text = self.text(signal, laplacian, train=train)
    return text if self.normalize == "none" else _unit_mean_square(text)


def _unit_mean_square(x):
  # The constant keeps rows that a ReLU has set to zero, and their gradients, finite.
  return x / jnp.sqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + 1e-4)


class Head(nn.Module):
  """w . dropout(x * y) + b for pairs of rows [D]; `start` is a factor on the initial w."""

  dim: int
  dropout: float = 0.0
  start: float = 1.0

  def setup(self):
    # One-dimensional like a bias, so that config.optimizer.l2 skips it: a penalty would shrink all
    # scores.
    self.kernel = self.param(
      "kernel", lambda key: self.start * nn.initializers.xavier_uniform()(key, (self.dim, 1))[:, 0]
    )
    self.bias = self.param("bias", nn.initializers.zeros, ())
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x, y, first, second, *, train=False):
    """Scores of M pairs of rows: x [U, D], y [V, D], first and second [M] int32 -> [M]."""
    if (train and self.dropout) or len(x) * len(y) > 4 * len(first):
      return self.drop(x[first] * y[second], deterministic=not train) @ self.kernel + self.bias
    # A grid of pairs is one matrix product, which never holds [M, D].
    return (self.fold(x) @ y.T + self.bias)[first, second]

  def fold(self, x):
    """w * x: [M, D] -> [M, D], so that a dot product with y is the score without its constant."""
    return x * self.kernel
