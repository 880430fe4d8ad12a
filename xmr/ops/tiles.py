"""Passes over [N, M] arrays, a few rows at a time where one CPU device has them all.

What a tile needs stays in the cache of a core. Its temporaries stay small, too: beyond some 32 MB
the C library gives memory back after every step and gets it again page by page, which at B 2,048
costs as much as half a matrix product.
"""

import jax
import jax.numpy as jnp
from jax import lax

ROWS = 256


def in_tiles(tiled=None):
  """Returns whether passes go by tiles: as asked, or where one CPU device has all rows.

  Over several devices the compiler splits the whole array, and would gather it for tiles. A GPU
  wants all at once.
  """
  return jax.default_backend() == "cpu" and jax.device_count() == 1 if tiled is None else tiled


def one_pass(function, *arrays, tiled=None):
  """Sums and maps that need each entry of some arrays once.

  Args:
    function: (row numbers [n], rows [n, M] of each array) -> (to_rows, to_columns, kept), three
      tuples of [n, M] arrays.
    arrays: [N, M] each.
    tiled: as `in_tiles`.
  Returns:
    (sums of the rows [N] of each of to_rows, sums of the columns [M] of each of to_columns, kept
    whole [N, M] each).
  """
  if not in_tiles(tiled):
    to_rows, to_columns, kept = function(jnp.arange(len(arrays[0])), *arrays)
    return (
      tuple(jnp.sum(x, axis=1) for x in to_rows),
      tuple(jnp.sum(x, axis=0) for x in to_columns),
      kept,
    )
  count, width = arrays[0].shape
  shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((count,), jnp.int32), *arrays)
  none = [
    tuple(jnp.zeros(size, x.dtype) for x in part)
    for size, part in zip((count, width, (count, width)), shapes, strict=True)
  ]

  def one(start, new, row, parts, out):
    of_rows, of_columns, whole = out
    to_rows, to_columns, kept = function(row, *parts)
    # What a tile sees again is the same, but columns would count it twice.
    return [
      tuple(
        lax.dynamic_update_slice(y, jnp.sum(x, axis=1), (start,))
        for x, y in zip(to_rows, of_rows, strict=True)
      ),
      tuple(
        y + jnp.sum(jnp.where(new[:, None], x, 0), axis=0)
        for x, y in zip(to_columns, of_columns, strict=True)
      ),
      tuple(lax.dynamic_update_slice(y, x, (start, 0)) for x, y in zip(kept, whole, strict=True)),
    ]

  return over_tiles(one, count, arrays, none)


def sum_of_rows(function, *arrays, tiled=None):
  """Sum of each row of `function(row numbers [n], rows [n, M] of each array)`, an [n, M] array; [N,
  M]... -> [N].
  """
  return one_pass(lambda *parts: ((function(*parts),), (), ()), *arrays, tiled=tiled)[0][0]


def map_rows(function, x, *, tiled=None):
  """`function` of what `sum_of_rows` takes of one array, [N, M], in its memory."""
  if not in_tiles(tiled):
    return function(jnp.arange(len(x)), x)

  def one(start, new, row, parts, x):
    part = lax.dynamic_slice_in_dim(x, start, len(row))
    part = jnp.where(new[:, None], function(row, part), part)
    return lax.dynamic_update_slice(x, part, (start, 0))

  return over_tiles(one, len(x), (), x)


def largest(x, *, axis):
  """The largest entry along an axis of [N, M] and its lowest index: two [N] or [M] arrays.

  Two passes, each of one result: XLA's CPU backend does not vectorise an argmax, whose pass has
  two.
  """
  top = jnp.max(x, axis=axis, keepdims=True)
  place = lax.broadcasted_iota(jnp.int32, x.shape, axis)
  # NaN equals nothing; the last index is then inside.
  first = jnp.min(jnp.where(x == top, place, x.shape[axis] - 1), axis=axis)
  return jnp.squeeze(top, axis), first


def largest_of_both(function, *arrays, tiled=None):
  """Index of the largest entry of each row and of each column of what `sum_of_rows` takes: [N] and
  [M] int32.

  Of equal entries the one of lowest index.
  """
  if not in_tiles(tiled):
    x = function(jnp.arange(len(arrays[0])), *arrays)
    return largest(x, axis=1)[1], largest(x, axis=0)[1]

  def one(start, new, row, parts, best):
    of_row, top, of_column = best
    x = function(row, *parts)
    of_row = lax.dynamic_update_slice(of_row, largest(x, axis=1)[1], (start,))
    value, place = largest(x, axis=0)
    better = value > top
    return of_row, jnp.where(better, value, top), jnp.where(better, start + place, of_column)

  count, width = arrays[0].shape
  none = (
    jnp.zeros(count, jnp.int32),
    jnp.full_like(arrays[0], -jnp.inf, shape=width),
    jnp.zeros(width, jnp.int32),
  )
  of_row, _, of_column = over_tiles(one, count, arrays, none)
  return of_row, of_column


def over_tiles(one, count, arrays, out):
  """Calls one(first row, which rows are new [n], row numbers [n], parts, out) for all tiles;
  returns the last out.
  """
  rows = min(ROWS, count)

  def step(tile, out):
    # The last tile reaches back instead of being short, and sees some rows again.
    start = jnp.minimum(tile * rows, count - rows)
    row = start + jnp.arange(rows)
    return one(
      start,
      row >= tile * rows,
      row,
      [lax.dynamic_slice_in_dim(x, start, rows) for x in arrays],
      out,
    )

  return lax.fori_loop(0, -(-count // rows), step, out)
