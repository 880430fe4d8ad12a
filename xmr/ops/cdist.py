"""Sums over features of a function of x - y for all pairs of rows, and their gradients, without the
[N, M, D] array.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float

from xmr.ops import outer_sums, tiles
from xmr.ops.arrays import Array, custom_gradient
from xmr.ops.memory import zeros_after


class Term(NamedTuple):
  """A function f of u = x - y; (w, x, y) -> w f'(u); and the name of the term of f(-u)."""

  value: Callable
  weighted_slope: Callable
  mirrored: str


TERMS = {
  # Compared, not subtracted: exactly 0 between equal features. Two masks, not one inside the other:
  # a third faster.
  "absolute": Term(
    jnp.abs, lambda w, x, y: jnp.where(x > y, w, 0) - jnp.where(x < y, w, 0), "absolute"
  ),
  "shortfall_squared": Term(
    lambda u: jnp.square(jnp.minimum(u, 0)),
    lambda w, x, y: 2 * w * jnp.minimum(x - y, 0),
    "excess_squared",
  ),
  "excess_squared": Term(
    lambda u: jnp.square(jnp.maximum(u, 0)),
    lambda w, x, y: 2 * w * jnp.maximum(x - y, 0),
    "shortfall_squared",
  ),
}


def plain(
  measure: str, x: Float[Array, "N D"], y: Float[Array, "M D"] | None = None
) -> Float[jax.Array, "N M"] | Float[jax.Array, "N N"]:
  """Measure of all pairs of rows by its definition, [N, D], [M, D] -> [N, M]; y: None is x.

  l1: sum_d |u_d|, msd: sum_d u_d^2, l2: its root, with u = x_n - y_m; dot: x_n.y_m;
  cosine_distance: 1 - x_n.y_m. It needs N x M x D memory; tests compare other forms with it.
  """
  x, y = x[:, None], (x if y is None else y)[None]
  if measure in ("dot", "cosine_distance"):
    product = jnp.sum(x * y, axis=2)
    return product if measure == "dot" else 1 - product
  if measure == "l1":
    return jnp.sum(jnp.abs(x - y), axis=2)
  square = jnp.sum(jnp.square(x - y), axis=2)
  # The slope of a root at 0 is 0 here.
  return square if measure == "msd" else jnp.sqrt(jnp.where(square > 0, square, 1)) * (square > 0)


# Features (forward) and rows (backward) that one fused pass over the accumulator takes. With 8
# XLA's CPU backend does not vectorise the pass, which is then six times slower; the bench `losses`
# shows it.
UNROLL = 16
# One tile takes all rows up to this number: each pass over a tile starts and joins the cores.
WHOLE = 512


@custom_gradient(0, 3)
def sum_over_features(term, x, y, tiled=None):
  """out[n, m] = sum over d of f(x[n, d] - y[m, d]).

  Args:
    term: key of TERMS: "absolute" (L1 distance) or "shortfall_squared" (max(0, y - x)^2).
    x: [N, D] float.  y: [M, D] float.
    tiled: compute tiles one after another, or all at once; None: as `tiles.by_tiles` decides.
  Returns:
    [N, M]; temporaries of the forward and backward pass are of this size or of the inputs'.
  """

  def in_tiles(x, y):
    rows, columns = _tile(len(x)), _tile(len(y))
    x_padded, y_padded = _padded(x, rows), _padded(y, columns)
    corners = [
      (i, j) for i in range(0, len(x_padded), rows) for j in range(0, len(y_padded), columns)
    ]
    corners = jnp.asarray(np.array(corners, np.int32))

    def one(tile, out):
      i, j = corners[tile]
      part = _sum_over_features(term, _rows(x_padded, i, rows), _rows(y_padded, j, columns))
      return lax.dynamic_update_slice(out, part, (i, j))

    out = jnp.zeros_like(x, shape=(len(x_padded), len(y_padded)))
    return lax.fori_loop(0, len(corners), one, out)[: len(x), : len(y)]

  return tiles.by_tiles(
    in_tiles,
    functools.partial(_sum_over_features, term),
    x,
    y,
    tiled=tiled,
    kernels={"cuda": functools.partial(value_on_gpu, term)},
  )


def sum_over_pairs(
  term: str,
  x: Float[Array, "N D"],
  *,
  after: Float[Array, ""] | None = None,
  tiled: bool | None = None,
) -> Float[jax.Array, "N N"]:
  """`sum_over_features` of all pairs of rows of x, [N, D] -> [N, N], where f(u) = f(-u): half of
  the tiles are mirrored. Not differentiable.

  `after`: [] float that is computed before the tiles; None: nothing is.
  """
  after = x[0, 0] if after is None else after

  def in_tiles(x, after):
    rows = _tile(len(x))
    padded = _padded(x, rows)
    starts = range(0, len(padded), rows)
    corners = jnp.asarray(np.array([(i, j) for i in starts for j in starts if i <= j], np.int32))

    def one(tile, out):
      i, j = corners[tile]
      part = _sum_over_features(term, _rows(padded, i, rows), _rows(padded, j, rows))
      return lax.dynamic_update_slice(lax.dynamic_update_slice(out, part, (i, j)), part.T, (j, i))

    out = zeros_after(after, (len(padded), len(padded)), x.dtype)
    return lax.fori_loop(0, len(corners), one, out)[: len(x), : len(x)]

  return tiles.by_tiles(
    in_tiles,
    lambda x, after: _sum_over_features(term, x, x),
    x,
    after,
    tiled=tiled,
    kernels={"cuda": lambda x, after: value_on_gpu(term, x, x)},
  )


def weighted_slopes(
  term: str,
  weight: Float[Array, "M N"],
  x: Float[Array, "N D"],
  y: Float[Array, "M D"],
  *,
  tiled: bool | None = None,
) -> Float[jax.Array, "N D"]:
  """out[n, d] = sum over m of weight[m, n] f'(x[n, d] - y[m, d]); [M, N], [N, D], [M, D] -> [N, D];
  tiled as above.
  """
  steps = -(-len(y) // UNROLL)

  def slopes(weight, x, y):
    slope = TERMS[term].weighted_slope
    y, weight = (_padded(array, UNROLL) for array in (y, weight))

    def add(step, total):
      b, w = (_rows(array, step * UNROLL, UNROLL) for array in (y, weight))
      return total + sum(slope(w[k][:, None], x, b[k][None, :]) for k in range(UNROLL))

    return lax.fori_loop(0, steps, add, jnp.zeros_like(x))

  def in_tiles(weight, x, y):
    rows, columns = _tile(x.shape[0]), _tile(x.shape[1])
    x_padded = _padded(_padded(x, rows).T, columns).T
    y, weight = (_padded(array, UNROLL) for array in (y, weight))
    y, weight = _padded(y.T, columns).T, _padded(weight.T, rows).T
    across = x_padded.shape[1] // columns

    def one(tile, out):
      i, j = tile // across * rows, tile % across * columns
      part = slopes(
        lax.dynamic_slice_in_dim(weight, i, rows, 1),
        lax.dynamic_slice(x_padded, (i, j), (rows, columns)),
        lax.dynamic_slice_in_dim(y, j, columns, 1),
      )
      return lax.dynamic_update_slice(out, part, (i, j))

    out = lax.fori_loop(0, len(x_padded) // rows * across, one, jnp.zeros_like(x_padded))
    return out[: x.shape[0], : x.shape[1]]

  kernels = {"cuda": outer_sums.on_gpu, "tpu": outer_sums.on_tpu}
  return tiles.by_tiles(
    in_tiles,
    slopes,
    weight,
    x,
    y,
    tiled=tiled,
    kernels={name: functools.partial(slopes_by, by, term) for name, by in kernels.items()},
  )


def value_on_gpu(term, x, y, **options):
  """`sum_over_features` as a kernel. TPUs need none: XLA keeps the sums in a core's memory."""
  value = TERMS[term].value
  return outer_sums.on_gpu(lambda x, y, _: value(x - y), x.T, y.T, **options)


def slopes_by(kernel, term, weight, x, y, **options):
  """`weighted_slopes` by a kernel of outer_sums."""
  slope = TERMS[term].weighted_slope
  return kernel(lambda w, y, x: slope(w, x, y), weight, y, x, **options)


def _sum_over_features(term, x, y):
  value = TERMS[term].value
  steps = -(-y.shape[1] // UNROLL)
  # Padding with equal features adds f(0) = 0.
  x_by_feature, y_by_feature = _padded(x.T, UNROLL), _padded(y.T, UNROLL)

  def add(step, total):
    a, b = (_rows(array, step * UNROLL, UNROLL) for array in (x_by_feature, y_by_feature))
    return total + sum(value(a[k][:, None] - b[k][None, :]) for k in range(UNROLL))

  return lax.fori_loop(0, steps, add, jnp.zeros_like(x, shape=(x.shape[0], y.shape[0])))


def _tile(size):
  """Returns the rows of a tile: all, or at most tiles.ROWS, evenly filled; a multiple of UNROLL."""
  count = 1 if size <= WHOLE else -(-size // tiles.ROWS)
  return -(-size // (count * UNROLL)) * UNROLL


def _padded(x, unit):
  """Rows of zeros up to a multiple of unit."""
  return jnp.pad(x, ((0, -len(x) % unit), (0, 0)))


def _rows(x, start, size):
  return lax.dynamic_slice_in_dim(x, start, size)


def _forward(term, x, y, tiled):
  return sum_over_features(term, x, y, tiled), (x, y)


def _backward(term, tiled, residuals, cotangent):
  x, y = residuals
  mirrored = TERMS[term].mirrored
  return (
    weighted_slopes(term, cotangent.T, x, y, tiled=tiled),
    weighted_slopes(mirrored, cotangent, y, x, tiled=tiled),
  )


sum_over_features.defvjp(_forward, _backward)
