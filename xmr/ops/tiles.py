"""Passes over [N, M] arrays, a few rows at a time where one CPU device has them all.

A tile's data stay in the cache of a core. Its temporaries stay small, too: beyond some 32 MB the C
library frees memory after every step and gets it back page by page, which at B 2,048 costs as much
as half a matrix product.
"""

import math
import os

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType

ROWS = 256


def devices_of(*arrays):
  """Returns the largest number of devices over which the compiler may split one of some arrays.

  It is 1 without a mesh, and inside `jax.shard_map`, where a device sees only its own rows. It is
  known while a program is traced, even for devices that are not there.
  """
  meshes = [jax.typeof(x).sharding.mesh for x in jax.tree.leaves(arrays)]
  return max(
    math.prod(
      size
      for size, kind in zip(mesh.axis_sizes, mesh.axis_types, strict=True)
      if kind is not AxisType.Manual
    )
    for mesh in meshes
  )


def by_tiles(in_tiles, at_once, *arrays, tiled=None, kernels=None):
  """Calls in_tiles(*arrays) where one CPU device has all rows, and at_once(*arrays) elsewhere.

  Over several devices the compiler splits the whole array and would gather it for tiles. GPUs and
  TPUs are faster without tiles.

  Args:
    in_tiles, at_once: two forms of one function.
    arrays: their arguments.
    tiled: True or False takes one of the forms; None decides by the mesh of the arrays, and by the
      platform that the program is lowered for.
    kernels: {platform: a form for it} where one device has all rows, None for none; with
      XMR_KERNELS=0 in the environment none is taken, as GPUs older than Ampere compile none.
  """
  if tiled is None and devices_of(*arrays) == 1:
    kernels = {} if os.environ.get("XMR_KERNELS") == "0" else kernels or {}
    return lax.platform_dependent(*arrays, cpu=in_tiles, default=at_once, **kernels)
  return (in_tiles if tiled else at_once)(*arrays)


def one_pass(function, *arrays, tiled=None):
  """Computes sums and maps that read each entry of some arrays once.

  Args:
    function: (row numbers [n], rows [n, M] of each array) -> (to_rows, to_columns, kept), three
      tuples of [n, M] arrays.
    arrays: [N, M] each.
    tiled: as in `by_tiles`.
  Returns:
    (sums of the rows [N] of each of to_rows, sums of the columns [M] of each of to_columns, kept
    whole [N, M] each).
  """

  def at_once(*arrays):
    to_rows, to_columns, kept = function(jnp.arange(len(arrays[0])), *arrays)
    return (
      tuple(jnp.sum(x, axis=1) for x in to_rows),
      tuple(jnp.sum(x, axis=0) for x in to_columns),
      kept,
    )

  def in_tiles(*arrays):
    count, width = arrays[0].shape
    shapes = jax.eval_shape(function, jax.ShapeDtypeStruct((count,), jnp.int32), *arrays)
    none = [
      tuple(jnp.zeros_like(arrays[0], x.dtype, shape=size) for x in part)
      for size, part in zip((count, width, (count, width)), shapes, strict=True)
    ]
    return tuple(over_tiles(one, count, arrays, none))

  def one(start, new, row, parts, out):
    of_rows, of_columns, whole = out
    to_rows, to_columns, kept = function(row, *parts)
    # Rows that a tile sees again give the same result, but columns would count them twice.
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

  return by_tiles(in_tiles, at_once, *arrays, tiled=tiled)


def sum_of_rows(function, *arrays, tiled=None):
  """Sum of each row of the [n, M] array `function(row numbers [n], rows [n, M] of each array)`;
  [N, M]... -> [N].
  """
  return one_pass(lambda *parts: ((function(*parts),), (), ()), *arrays, tiled=tiled)[0][0]


def map_rows(function, x, *, tiled=None):
  """Replaces rows of x by `function(row numbers [n], rows [n, M])`, in the memory of x: [N, M]."""

  def one(start, new, row, parts, x):
    part = lax.dynamic_slice_in_dim(x, start, len(row))
    part = jnp.where(new[:, None], function(row, part), part)
    return lax.dynamic_update_slice(x, part, (start, 0))

  return by_tiles(
    lambda x: over_tiles(one, len(x), (), x),
    lambda x: function(jnp.arange(len(x)), x),
    x,
    tiled=tiled,
  )


def largest(x, *, axis):
  """The largest entry along an axis of [N, M] and its lowest index: two [N] or [M] arrays.

  It takes two passes with one result each: XLA's CPU backend does not vectorise an argmax, a pass
  with two results.
  """
  top = jnp.max(x, axis=axis, keepdims=True)
  index = lax.broadcasted_iota(jnp.int32, x.shape, axis)
  # NaN equals nothing; the index then stays at most the last one.
  first = jnp.min(jnp.where(x == top, index, x.shape[axis] - 1), axis=axis)
  return jnp.squeeze(top, axis), first


def largest_of_both(function, *arrays, tiled=None):
  """Index (int32) of the largest entry of each row [N] and of each column [M] of an [N, M] array,
  `function(row numbers [n], rows [n, M] of each array)`. Ties go to the lowest index.
  """

  def at_once(*arrays):
    x = function(jnp.arange(len(arrays[0])), *arrays)
    return largest(x, axis=1)[1], largest(x, axis=0)[1]

  def one(start, new, row, parts, best):
    of_row, top, of_column = best
    x = function(row, *parts)
    of_row = lax.dynamic_update_slice(of_row, largest(x, axis=1)[1], (start,))
    value, index = largest(x, axis=0)
    better = value > top
    return of_row, jnp.where(better, value, top), jnp.where(better, start + index, of_column)

  def in_tiles(*arrays):
    count, width = arrays[0].shape
    none = (
      jnp.zeros_like(arrays[0], jnp.int32, shape=count),
      jnp.full_like(arrays[0], -jnp.inf, shape=width),
      jnp.zeros_like(arrays[0], jnp.int32, shape=width),
    )
    of_row, _, of_column = over_tiles(one, count, arrays, none)
    return of_row, of_column

  return by_tiles(in_tiles, at_once, *arrays, tiled=tiled)


def over_tiles(one, count, arrays, out):
  """Calls out = one(first row, which rows are new [n], row numbers [n], parts, out) for all tiles;
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
