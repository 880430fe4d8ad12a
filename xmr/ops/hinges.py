"""Hinges over the negatives of a batch's scores [B, B]: their sums, and the hardest of each query.

Each has a plain form, which follows its definition, and a form that reads the scores once.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int32

from xmr.ops import tiles
from xmr.ops.arrays import Array, custom_gradient

Indices = tuple[Int32[jax.Array, " N"], Int32[jax.Array, " M"]]


def plain_sums(
  margin: float,
  scores: Float[Array, "B B"],
  positive: Float[Array, " B"],
  negative: Bool[Array, "B B"],
) -> tuple[Float[jax.Array, ""], Float[jax.Array, ""], Float[jax.Array, ""]]:
  """Sums of [margin + S_nm - p_n]_+ and of [margin + S_nm - p_m]_+ over the negatives (n, m).

  Args:
    scores: S.  positive: p.  negative: which pairs count.
  Returns:
    (first sum, second sum, number of hinges above 0); the slope of a hinge at 0 is 0.
  """
  of_row = jnp.where(negative, jax.nn.relu(margin + scores - positive[:, None]), 0)
  of_column = jnp.where(negative, jax.nn.relu(margin + scores - positive[None, :]), 0)
  active = jnp.sum(of_row > 0) + jnp.sum(of_column > 0)
  return jnp.sum(of_row), jnp.sum(of_column), active.astype(scores.dtype)


def plain_hardest(scores: Float[Array, "N M"], negative: Bool[Array, "N M"]) -> Indices:
  """Index of the hardest negative of each row and of each column; of equal scores the lowest index.

  Returns:
    (column of each row, row of each column); without a negative the index has no meaning.
  """
  candidates = jnp.where(negative, scores, -jnp.inf)
  of_row, of_column = (jnp.argmax(candidates, axis=axis) for axis in (1, 0))
  return of_row.astype(jnp.int32), of_column.astype(jnp.int32)


def hardest(scores: Float[Array, "N M"], negative: Bool[Array, "N M"]) -> Indices:
  """`plain_hardest`, in one pass over tiles of the scores."""
  return tiles.largest_of_both(
    lambda row, part, negative: jnp.where(negative, part, -jnp.inf), scores, negative
  )


@custom_gradient(0)
def sums(margin, scores, positive, negative):
  """`plain_sums` in one pass; the gradient keeps a byte per pair instead of the scores."""
  return _forward(margin, scores, positive, negative)[0]


def _forward(margin, scores, positive, negative):
  def hinges(row, part, negative):
    own = positive[row][:, None], positive[None, :]
    costs = [jnp.where(negative, jax.nn.relu(margin + part - p), 0) for p in own]
    active = [cost > 0 for cost in costs]
    code = active[0].astype(jnp.uint8) + 2 * active[1].astype(jnp.uint8)
    of_row, of_column = (x.astype(part.dtype) for x in active)
    return (*costs, of_row), (of_column,), (code,)

  # The byte says which of its two hinges a pair is active in.
  (i2t, t2i, of_row), (of_column,), (code,) = tiles.one_pass(hinges, scores, negative)
  active = jnp.sum(of_row) + jnp.sum(of_column)
  return (jnp.sum(i2t), jnp.sum(t2i), active), (code, of_row, of_column)


def _backward(margin, residuals, cotangents):
  code, of_row, of_column = residuals
  i2t, t2i, _ = cotangents
  slopes = jnp.where(code % 2 > 0, i2t, 0) + jnp.where(code > 1, t2i, 0)
  return slopes, -(i2t * of_row + t2i * of_column), None


sums.defvjp(_forward, _backward)
