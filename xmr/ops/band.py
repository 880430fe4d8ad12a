"""Arithmetic of the intra-modal constraint on a block of distances: the whole batch or a part."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from xmr.ops import cdist, tiles
from xmr.ops.arrays import custom_gradient
from xmr.ops.memory import zeros_after
from xmr.ops.similarity import PRECISION, safe_sqrt

# The released row norm is at least this.
EPSILON = 1e-12


class Setting(NamedTuple):
  """The measure (l1, l2, msd, dot, cosine_distance) and the band, as quantiles of row 0 or as fixed
  values.
  """

  measure: str
  quantile: bool
  lower: float
  upper: float


class Bounds(NamedTuple):
  """Quantile thresholds on row-normalised distances: lower, upper []; and first [B] bool, True for
  the distances of row 0 inside the band.
  """

  lower: jax.Array
  upper: jax.Array
  first: jax.Array


class Rows(NamedTuple):
  """Statistics of each distance's row, broadcast to the block: its scale and total, whether it is
  row 0 of the batch, and whether the distance's column is in the band of row 0.
  """

  scale: jax.Array
  total: jax.Array | float
  is_first: jax.Array
  first: jax.Array


def all_distances(measure, x, after=None, diagonal=None):
  """Measure of all pairs of rows, computed after the number `after`; [B, D] -> [B, B] symmetric.

  It is exactly 0 where `diagonal` is True, by default on the diagonal; with False, rounding errors
  remain there. L1 is always exact.
  """
  if measure == "l1":
    return cdist.sum_over_pairs("absolute", x, after=after)
  if after is not None:
    x = x + zeros_after(after, (), x.dtype)
  diagonal = jnp.eye(x.shape[0], dtype=bool) if diagonal is None else diagonal
  x, squares = prepared(measure, x, jnp.mean(x, axis=0))
  return distances(measure, x, x, squares, squares, diagonal)


def prepared(measure, x, mean):
  """Returns rows for `distances` and their squared lengths; l2 and msd are centred.

  After centring, rounding errors of the Gram matrix depend on the spread of the batch, not on the
  length of its rows.
  """
  if measure in ("l2", "msd"):
    x = x - mean
  return x, jnp.sum(jnp.square(x), axis=1)


def distances(measure, x, y, x_squares, y_squares, diagonal):
  """Measure of all pairs of prepared rows, 0 where `diagonal`; [N, D], [M, D] -> [N, M].

  l2 and msd within rounding error of 0 become 0, so that equal rows have distance 0, as in exact
  arithmetic.
  """
  if measure == "l1":
    return cdist.sum_over_features("absolute", x, y)
  products = jnp.matmul(x, y.T, precision=PRECISION)
  if measure == "dot":
    return jnp.where(diagonal, 0, products)
  if measure == "cosine_distance":
    return jnp.where(diagonal, 0, 1 - products)
  size = x_squares[:, None] + y_squares[None, :]
  square = size - 2 * products
  square = jnp.where(diagonal | (square <= 16 * jnp.finfo(x.dtype).eps * size), 0, square)
  return square if measure == "msd" else safe_sqrt(square)


def pull_back(measure, slopes, distances, x, y):
  """Gradient in x of sum(slopes * distances); both [M, N] with y in rows, x [N, D], y [M, D] -> [N,
  D].

  Columns are the rows of x because the whole batch's arrays are symmetric, and L1 would need a
  transposed copy.
  """
  if measure == "l1":
    return cdist.weighted_slopes("absolute", slopes, x, y)
  if measure == "dot":
    return jnp.matmul(slopes.T, y, precision=PRECISION)
  if measure == "cosine_distance":
    return -jnp.matmul(slopes.T, y, precision=PRECISION)
  apart = distances > 0
  weight = 2 * slopes if measure == "msd" else slopes / jnp.where(apart, distances, 1)
  weight = jnp.where(apart, weight, 0)
  return jnp.sum(weight, axis=0)[:, None] * x - jnp.matmul(weight.T, y, precision=PRECISION)


def in_fixed_band(setting, distances):
  """Which distances lie inside the fixed band."""
  return (setting.lower < distances) & (distances < setting.upper)


def fixed_values(setting, distances):
  """Distances inside the fixed band, 0 elsewhere."""
  return jnp.where(in_fixed_band(setting, distances), distances, 0)


def fixed_slopes(setting, distances):
  """Slope of the sum of `fixed_values` over (n, m) and (m, n) together."""
  return jnp.where(in_fixed_band(setting, distances), 2.0, 0.0).astype(distances.dtype)


def row_scale(squares):
  """Length of each row of distances, at least EPSILON, from the sum of its squares."""
  return jnp.maximum(jnp.sqrt(squares), EPSILON)


def quantile_bounds(setting, first_row):
  """Thresholds from row 0 of the normalised distances, [B] -> Bounds.

  Their indices in the sorted row are lower B and upper B, rounded (halves to even), at most B - 1.
  """
  batch = first_row.shape[0]
  low, high = (min(round(share * batch), batch - 1) for share in (setting.lower, setting.upper))
  ordered, order = jax.lax.sort((first_row, jnp.arange(batch)), num_keys=1)
  # Row 0 is compared inside the sorted copy: a compiler may round its second computation
  # differently, and the entry that is the threshold must not exceed it.
  inside = (ordered > ordered[low]) & (ordered < ordered[high])
  return Bounds(ordered[low], ordered[high], jnp.zeros(batch, bool).at[order].set(inside))


def quantile_values(bounds, distances, rows):
  """Row-normalised distances inside the band, 0 elsewhere."""
  shares = distances / rows.scale
  return jnp.where(_inside(bounds, shares, rows), shares, 0)


def quantile_slopes(bounds, distances, rows):
  """Slope of the sum of a row's `quantile_values` in each distance, including the slope through the
  row's normalisation.
  """
  shares = distances / rows.scale
  through_scale = jnp.where(rows.scale > EPSILON, shares * rows.total, 0)
  return (_inside(bounds, shares, rows) - through_scale) / rows.scale


def _inside(bounds, shares, rows):
  return jnp.where(rows.is_first, rows.first, (bounds.lower < shares) & (shares < bounds.upper))


@custom_gradient(0)
def constraints(setting, modalities, after):
  """The constraint of each [B, D] modality in turn, after the number `after`; only one [B, B] array
  exists at a time.
  """
  values = []
  for x in modalities:
    values.append(_measure(setting, x, after)[0])
    after = values[-1]
  return tuple(values)


def _measure(setting: Setting, x, after) -> tuple[jax.Array, jax.Array, Any]:
  """Returns the constraint, the distances [B, B], and what the gradient needs: which distances are
  in a fixed band, or statistics of the rows.
  """
  if not setting.quantile:
    distances = all_distances(setting.measure, x, after, diagonal=False)

    def parts(row, part):
      inside = in_fixed_band(setting, part) & (row[:, None] != jnp.arange(len(x)))
      return (jnp.where(inside, part, 0),), (), (inside,)

    (total,), _, (inside,) = tiles.one_pass(parts, distances)
    return jnp.sum(total) / x.shape[0], distances, inside
  distances = all_distances(setting.measure, x, after)
  scale = row_scale(jnp.sum(jnp.square(distances), axis=1))
  bounds = quantile_bounds(setting, distances[0] / scale[0])

  def values(row, part):
    return quantile_values(
      bounds, part, Rows(scale[row, None], 0.0, (row == 0)[:, None], bounds.first[None, :])
    )

  total = tiles.sum_of_rows(values, distances)
  return jnp.sum(total) / x.shape[0], distances, (scale, total, bounds)


@functools.partial(jax.jit, static_argnums=0)  # Traced once for both modalities.
def _value_and_gradient(setting, x, after):
  value, distances, found = _measure(setting, x, after)
  if not setting.quantile:
    # A distance counts for its row and for its column.
    slopes = jnp.where(found, 2.0, 0.0).astype(x.dtype)
  else:
    scale, total, bounds = found
    first = jnp.arange(x.shape[0]) == 0
    columns = Rows(scale[None, :], total[None, :], first[None, :], bounds.first[:, None])

    def slopes_of(row, part):
      rows = Rows(scale[row, None], total[row, None], first[row, None], bounds.first[None, :])
      own = columns._replace(first=columns.first[row])
      return quantile_slopes(bounds, part, rows) + quantile_slopes(bounds, part, own)

    # Only L1 does not need the distances again.
    slopes = tiles.map_rows(slopes_of, distances, tiled=None if setting.measure == "l1" else False)
  return value, pull_back(setting.measure, slopes, distances, x, x) / x.shape[0]


def _constraints_forward(setting, modalities, after):
  # The gradients are computed here, so that [B, D] waits for the backward pass and not [B, B].
  values, gradients = [], []
  for x in modalities:
    value, gradient = _value_and_gradient(setting, x, after)
    values.append(value)
    gradients.append(gradient)
    after = gradient[0, 0]
  return tuple(values), tuple(gradients)


def _constraints_backward(setting, gradients, cotangents):
  return tuple(c * g for c, g in zip(cotangents, gradients, strict=True)), None


constraints.defvjp(_constraints_forward, _constraints_backward)
