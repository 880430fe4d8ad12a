"""Encoders of word sequences: word vectors, a one- or bidirectional LSTM or GRU, and a readout."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmr.models.borders import Encoded, Lengths, Words
from xmr.models.features import dense
from xmr.models.normalize import normalize
from xmr.ops import rnn
from xmr.ops.alignment import Tokens
from xmr.ops.rnn_cells import CELLS

READOUTS = ("last", "ends", "mean", "max")


def _uniform(limit):
  """Returns an initializer U(-limit, limit)."""
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -limit, limit)


WORD_INITS = {
  "xavier": nn.initializers.glorot_uniform(),
  "uniform": _uniform(0.1),
  "normal": nn.initializers.normal(1.0),
}


class Direction(nn.Module):
  """Parameters of one direction, initialised with U(-1/sqrt(H), 1/sqrt(H)) as in PyTorch; called
  without arguments.

  Attributes:
    features: size of a word vector.  hidden: units H.
    cell: "lstm" (gates i, f, g, o) or "gru" (r, z, n).
  """

  features: int
  hidden: int
  cell: str

  @nn.compact
  def __call__(self):
    """Returns recurrent.Weights."""
    init, columns = _uniform(self.hidden**-0.5), CELLS[self.cell].gates * self.hidden
    return rnn.Weights(
      self.param("input_kernel", init, (self.features, columns)),
      self.param("hidden_kernel", init, (self.hidden, columns)),
      self.param("input_bias", init, (columns,)),
      self.param("hidden_bias", init, (columns,)),
    )


class Recurrent(nn.Module):
  """Encodes words: f(w) = n(readout(RNN(dropout(E[w])))).

  With two directions a step's state is (forward + backward) / 2. Readouts, for a text of n words:
    last: the state at step n - 1, as released; its backward part has read only the last word, so
      that one cell computes it.
    ends: forward at step n - 1 and backward at step 0, averaged (the paper).
    mean, max: over the n steps, per unit.
  With one direction `last` and `ends` are the same. Without a projection, a text without words
  gives a row of zeros.

  Attributes:
    dim: width D of the joint space.
    vocabulary_size: rows of the word embedding.
    cell: "lstm" or "gru".  bidirectional: read in both directions, with separate parameters.
    word_dim: size of a word vector.
    hidden: units per direction; 0 is dim. Any other number adds a linear projection to dim (not in
      the papers).
    dropout: share of the word vectors' entries set to zero in training (0.4 as released, 0.5 in the
      paper, 0 in VSE++).
    readout: "last", "ends", "mean" or "max".
    word_init: initial word embedding without word_vectors: "xavier" (IMC 'bow'), "uniform" in
      [-0.1, 0.1] (VSE++) or "normal" N(0, 1).
    word_vectors: [vocabulary_size, word_dim] float, initial word embedding (GloVe); ignored when
      modules, which jit hashes, are compared.
    normalize: "l2", "abs" or "none", see `normalize.normalize`.
    dtype: of products; parameters, cell state and readout are float32.
  References:
    Chen et al., IMC, ICIP 2022, as released (`EncoderText`), whose unused projection is left out.
    Faghri et al., VSE++, BMVC 2018, as released (one-directional GRU).
  """

  dim: int
  vocabulary_size: int
  cell: str = "lstm"
  bidirectional: bool = True
  word_dim: int = 300
  hidden: int = 0
  dropout: float = 0.4
  readout: str = "last"
  word_init: str = "xavier"
  word_vectors: Any = dataclasses.field(default=None, compare=False, repr=False)
  normalize: str = "l2"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, text: Words, text_length: Lengths, *, train: bool = False, tokens: bool = False
  ) -> Encoded:
    """Encodes words.

    Args:
      text: [B, L] int, rows of the embedding; entries from text_length on are not read.
      text_length: [B] int, number of words.
      train: True turns dropout on (rng "dropout").  tokens: True returns the steps as tokens.
    Returns:
      [B, D] float32, or Tokens [B, L, D] before they are normalised: the projected steps of the
      words, without <start> and <end>.
    Raises:
      ValueError: a shape, type or attribute that does not fit.
    """
    self._check(text, text_length)
    vectors = embedded(self, text)
    vectors = nn.Dropout(self.dropout)(vectors, deterministic=not train)
    hidden = self.hidden or self.dim
    names = ("forward", "backward") if self.bidirectional else ("forward",)
    weights = [Direction(self.word_dim, hidden, self.cell, name=name)() for name in names]
    if tokens:
      x = self._steps(vectors, text_length, weights)
    else:
      x = self._read(vectors, text_length, weights)
    if hidden != self.dim:
      x = dense(self.dim, dtype=self.dtype, name="projection")(x)
    if tokens:
      return Tokens(x.astype(jnp.float32), words_alone(text_length, text.shape[1]))
    return normalize(x, self.normalize)

  def _check(self, text, text_length):
    check_words(text, text_length, self.word_init)
    if self.cell not in CELLS:
      raise ValueError(f"cell is {self.cell!r}; expected one of {', '.join(CELLS)}")
    if self.readout not in READOUTS:
      raise ValueError(f"readout is {self.readout!r}; expected one of {', '.join(READOUTS)}")

  def _steps(self, vectors, length, weights):
    """Returns the states of all steps, [B, L, H] float32, zero from `length` on."""
    steps = [
      rnn.recurrent(vectors, length, w, reverse=reverse, cell=self.cell, dtype=self.dtype)[0]
      for w, reverse in zip(weights, (False, True), strict=False)
    ]
    return _mean(steps)

  def _read(self, vectors, length, weights):
    """Returns the readout [B, H] float32."""
    options = {"cell": self.cell, "dtype": self.dtype}
    if self.readout in ("last", "ends"):
      states = [rnn.final_state(vectors, length, weights[0], **options)]
      if self.bidirectional and self.readout == "ends":
        states.append(rnn.final_state(vectors, length, weights[1], reverse=True, **options))
      elif self.bidirectional:
        last = jnp.maximum(length - 1, 0)[:, None, None]
        word = jnp.take_along_axis(vectors, last, axis=1)[:, 0]
        states.append(
          jnp.where(length[:, None] > 0, rnn.single_step(word, weights[1], **options), 0)
        )
      return _mean(states)
    steps = self._steps(vectors, length, weights)
    if self.readout == "mean":
      return jnp.sum(steps, axis=1) / jnp.maximum(length, 1)[:, None]
    inside = (jnp.arange(steps.shape[1]) < length[:, None])[..., None]
    return jnp.where(length[:, None] > 0, jnp.max(steps, axis=1, where=inside, initial=-jnp.inf), 0)


def _mean(arrays) -> jax.Array:
  """Mean of arrays of one shape, in float32."""
  first, *others = (x.astype(jnp.float32) for x in arrays)
  return sum(others, first) / len(arrays)


def check_words(text, text_length, word_init):
  """Raises ValueError unless text is [B, L] int, text_length [B] int and word_init known."""
  if text.ndim != 2 or not jnp.issubdtype(text.dtype, jnp.integer):
    raise ValueError(
      f"text has shape {tuple(text.shape)} and type {text.dtype}; expected [B, L] of an "
      "integer type"
    )
  if text_length.shape != text.shape[:1] or not jnp.issubdtype(text_length.dtype, jnp.integer):
    found = f"text_length has shape {tuple(text_length.shape)} and type {text_length.dtype}"
    raise ValueError(f"{found}; expected {tuple(text.shape[:1])} of an integer type")
  if word_init not in WORD_INITS:
    raise ValueError(f"word_init is {word_init!r}; expected one of {', '.join(WORD_INITS)}")


def embedded(encoder, text):
  """Vectors [B, L, word_dim] of words [B, L] from an encoder's parameter "embedding"."""
  shape = (encoder.vocabulary_size, encoder.word_dim)
  if encoder.word_vectors is None:
    table = encoder.param("embedding", WORD_INITS[encoder.word_init], shape)
  elif encoder.word_vectors.shape != shape:
    raise ValueError(f"word_vectors have shape {encoder.word_vectors.shape}; expected {shape}")
  else:
    table = encoder.param("embedding", lambda key: jnp.asarray(encoder.word_vectors, jnp.float32))
  return jnp.take(table, text, axis=0, mode="clip")


def words_alone(text_length, length, *, first=1):
  """The mask [B, L] of a caption's words, without the `first` tokens before them (<start>) and the
  one after them (<end>).
  """
  step = jnp.arange(length)
  return (step >= first) & (step < text_length[:, None] - 1)
