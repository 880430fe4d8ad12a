"""Products of two sides that stay on the devices: each holds a part of the queries and one of the
gallery, the gallery's parts go around, and counts and candidates come back instead of scores.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from xmr import parallel
from xmr.eval import candidates
from xmr.eval.blocks import (
  COLUMN_UNIT,
  GALLERY_BLOCKS,
  ROW_UNIT,
  block_of,
  factors_of,
  padded,
  products,
  tile_counts,
)

TILES = 4  # blocks of queries that a device handles in a call
GALLERY_BYTES = 1 << 28  # of the gallery that a device holds at a time, and as many under way
ROOM = 1 << 20  # pairs too close to call that a device lists in a call
SPARSE = 128  # or one pair of so many, where that is less
LEAST_ROOM = 1024


def stays(mesh):
  """Says whether the devices of a mesh (or None) keep what they compute."""
  return mesh is not None and not parallel.on_host(mesh.devices.reshape(-1))


def counts(query, gallery, limits, *, kind, block, mesh, both):
  """Counts what is certainly above the best positives, and lists what float32 cannot tell.

  Args:
    query, gallery: exact.Rows.
    limits: ((low, high) [Q] each, (low, high) [G] each) float32, as of `tile_counts`.
    kind, block: as `ranks`.  mesh: whose devices do it.  both: False counts for queries alone.
  Yields:
    (rows, columns, found) of a part of all pairs: the ranges of its queries and items, and ((counts
    per query, per item) int32, near (i, j, bits as of `tile_counts`)). None for found: there were
    more near pairs than the devices have room for, and nothing is known.
  """
  parts = _Parts(query, gallery, kind=kind, block=block, mesh=mesh)
  pending = []
  for columns, items in parts.items():
    item_limits = [parts.on_devices(x, columns, parts.columns) for x in limits[1]]
    for rows, queries in parts.queries():
      found = count_around(
        queries,
        items,
        [parts.on_devices(x, rows, parts.rows) for x in limits[0]],
        item_limits,
        (len(rows), len(columns)),
        mesh=mesh,
        order=kind == "order",
        both=both,
        tile=parts.tile,
        room=parts.room,
      )
      # The host decides near ties while the devices work on the next part.
      if pending:
        yield _brought(pending.pop(), parts.room)
      pending.append((rows, columns, found))
  yield _brought(pending.pop(), parts.room)


def best(query, gallery, keep, *, kind, block, mesh):
  """Returns the best `keep` items of each query in float32, in any order, as a list of (scores,
  indices) [q, keep] of consecutive queries on the devices; the last one may be longer than what is
  left.

  Args:
    as `counts`.
  """
  parts = _Parts(query, gallery, kind=kind, block=block, mesh=mesh)
  sharding = parallel.sharded(mesh)
  bests = {}
  for columns, items in parts.items():
    for rows, queries in parts.queries():
      start = bests.get(rows.start)
      if start is None:
        start = jax.device_put(candidates.empty(parts.rows * mesh.size, keep), sharding)
      bests[rows.start] = best_around(
        start,
        queries,
        items,
        (columns.start, columns.stop),
        mesh=mesh,
        order=kind == "order",
        tile=parts.tile,
      )
  return list(bests.values())


@functools.partial(jax.jit, static_argnames=("mesh", "order", "both", "tile", "room"))
def count_around(query, gallery, limits, item_limits, ends, *, mesh, order, both, tile, room):
  """Counts of all pairs of scaled rows [P R, D] and [P C, D], split over the P devices.

  Args:
    limits, item_limits: (low, high), [P R] and [P C] each, as `tile_counts`.
    ends: how many of the rows and columns are real.
    tile: rows and columns of a tile, which divide R and C.
    room: pairs that a device lists.
  Returns:
    Counts above [P R] and [P C] int32; listed [P room, 2] int32 of (4 row + bits, column), bits as
    `tile_counts`; and how many each device has found [P] int32: above `room` some are missing.
  """
  devices = mesh.size

  def local(query, gallery, limits, item_limits, ends):
    me = jax.lax.axis_index(parallel.DATA)
    n_rows, n_columns = len(query), len(gallery)
    queries = _split((query, limits), tile[0])

    def of_items(listed, part, first):
      items, item_limits, c = part

      def of_queries(listed, part):
        queries, limits, r = part
        r, c_here = me * n_rows + r, first + c
        left = ends[0] - r, ends[1] - c_here
        *above, code = tile_counts(
          queries, items, limits, item_limits, left, order=order, both=both
        )
        return _listed(listed, code & 3, r, c_here), above

      listed, (above, above_items) = jax.lax.scan(
        of_queries, listed, (*queries, tile[0] * jnp.arange(n_rows // tile[0]))
      )
      return listed, (above, jnp.sum(above_items, axis=0))

    def turn(carry, number):
      going, above, above_items, listed = carry
      # Under way to the next device while this one computes.
      coming = _passed_on(going, devices)
      first = (me - number) % devices * n_columns
      starts = tile[1] * jnp.arange(n_columns // tile[1])
      listed, (more, more_items) = jax.lax.scan(
        lambda listed, part: of_items(listed, part, first),
        listed,
        (*_split(going, tile[1]), starts),
      )
      above += jnp.sum(more, axis=0).reshape(-1)
      above_items += more_items.reshape(-1)
      return (coming, above, _passed_on(above_items, devices), listed), None

    nothing = [jnp.zeros(n, jnp.int32) for n in (n_rows, n_columns)]
    listed = jnp.zeros((room, 2), jnp.int32), jnp.zeros((), jnp.int32)
    carry = (gallery, item_limits), *nothing, listed
    (_, above, above_items, (pairs, found)), _ = jax.lax.scan(turn, carry, jnp.arange(devices))
    return above, above_items, pairs, found[None]

  return _on(mesh, local)(query, gallery, limits, item_limits, ends)


@functools.partial(jax.jit, static_argnames=("mesh", "order", "tile"), donate_argnums=0)
def best_around(best, query, gallery, ends, *, mesh, order, tile):
  """The best of (scores, indices) [P R, keep] and of the products of scaled rows [P R, D] and
  [P C, D]; ends: numbers of the first item and behind the last one; mesh, tile: `count_around`.
  """
  devices = mesh.size

  def local(best, query, gallery, ends):
    me = jax.lax.axis_index(parallel.DATA)
    n_columns = len(gallery)
    queries = _split(query, tile[0])

    def turn(carry, number):
      going, best = carry
      coming = _passed_on(going, devices)
      first = ends[0] + (me - number) % devices * n_columns

      def of_items(best, part):
        items, c = part

        def of_queries(_, part):
          best, queries = part
          scores = products(queries, items, order=order)
          return None, candidates.merge_on_device(best, scores, (0, first + c), (0, ends[1]))

        return jax.lax.scan(of_queries, None, (best, queries))[1], None

      starts = tile[1] * jnp.arange(n_columns // tile[1])
      best, _ = jax.lax.scan(of_items, best, (_split(going, tile[1]), starts))
      return (coming, best), None

    carry = gallery, _split(best, tile[0])
    (_, best), _ = jax.lax.scan(turn, carry, jnp.arange(devices))
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), best)

  return _on(mesh, local)(best, query, gallery, ends)


def layout(queries, items, dim, *, block, devices):
  """Returns how so many queries and items of dim numbers are cut: (rows and columns of a tile),
  (rows and columns that a device holds in a call), and how many pairs it lists in a call.
  """
  most = max(1, GALLERY_BYTES // (4 * dim))
  row, rows = _cut(queries, devices, block, block * TILES, ROW_UNIT)
  column, columns = _cut(items, devices, block * GALLERY_BLOCKS, most, COLUMN_UNIT)
  room = max(min(LEAST_ROOM, ROOM), min(ROOM, rows * columns * devices // SPARSE))
  return (row, column), (rows, columns), room


class _Parts:
  """Both sides cut into what the devices hold in a call, in equal tiles."""

  def __init__(self, query, gallery, *, kind, block, mesh):
    self.query, self.gallery, self.kind, self.mesh = query, gallery, kind, mesh
    self.factors = factors_of(query, gallery, kind=kind)
    shape = len(query), len(gallery), query.x.shape[1]
    self.tile, (self.rows, self.columns), self.room = layout(*shape, block=block, devices=mesh.size)

  def queries(self):
    """Yields (range of queries, their rows on the devices)."""
    return self._of(self.query, self.rows, self.factors[0])

  def items(self):
    """Yields (range of items, their rows on the devices)."""
    return self._of(self.gallery, self.columns, self.factors[1])

  def _of(self, side, rows, factor):
    size = rows * self.mesh.size
    for begin in range(0, len(side), size):
      part = functools.partial(block_of, side, factor=factor, kind=self.kind)
      yield (
        range(begin, min(begin + size, len(side))),
        self._placed(part, begin, rows, side.x.shape[1:]),
      )

  def on_devices(self, x, span, rows):
    """Puts a number of each row of a span on the devices."""
    return self._placed(functools.partial(padded, x), span.start, rows, ())

  def _placed(self, part, begin, rows, width):
    # Each device's own rows alone: the whole would be a copy of a side.
    return jax.make_array_from_callback(
      (rows * self.mesh.size, *width),
      parallel.sharded(self.mesh),
      lambda index: part(begin=begin + (index[0].start or 0), size=rows),  # pyright: ignore
    )


def _cut(n, devices, size, most, unit):
  """Returns (rows of a tile, rows of a device in a call): tiles of at most `size` rows and calls of
  at most `most` (or one tile), equally full, rounded up to whole units.
  """
  of_device = -(-n // devices)
  of_call = -(-of_device // -(-of_device // most))
  tiles = -(-of_call // size)
  tile = -(-of_call // tiles)
  tile += -tile % unit
  return tile, tile * tiles


def _split(tree, size):
  return jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), tree)


def _passed_on(tree, devices):
  around = [(i, (i + 1) % devices) for i in range(devices)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, parallel.DATA, around), tree)


def _on(mesh, local):
  """Returns shard_map of a function whose last argument is the same everywhere."""
  split, whole = jax.P(parallel.DATA), jax.P()

  def call(*arguments):
    specs = (split,) * (len(arguments) - 1) + (whole,)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
    return mapped(*arguments)

  return call


def _listed(listed, near, r, c):
  """Adds the pairs of a tile, which begins at (r, c), where near [rows, columns] uint8 is not 0.

  listed: (pairs [room, 2], number found). One of each row is added at a time: few rows have two.
  """
  column_of = jax.lax.broadcasted_iota(jnp.int32, near.shape, 1)
  row = r + jnp.arange(len(near), dtype=jnp.int32)

  def more(state):
    near, pairs, found = state
    return jnp.any(near > 0) & (found <= len(pairs))

  def add(state):
    near, pairs, found = state
    column = jnp.argmax(near > 0, axis=1).astype(jnp.int32)
    here = column_of == column[:, None]
    bits = jnp.sum(jnp.where(here, near, 0), axis=1, dtype=jnp.int32)
    has = bits > 0
    number = jnp.cumsum(has.astype(jnp.int32))
    # What does not belong, or has no room, is dropped.
    at = jnp.where(has, found + number - 1, len(pairs))
    pair = jnp.stack([4 * row + bits, c + column], axis=1)
    return jnp.where(here, 0, near), pairs.at[at].set(pair, mode="drop"), found + number[-1]

  return jax.lax.while_loop(more, add, (near, *listed))[1:]


def _brought(call, room):
  """Brings what a call has found to the host, of the lists what they hold; see `counts`."""
  rows, columns, (above, above_items, pairs, number) = call
  if (np.asarray(number) > room).any():
    return rows, columns, None
  lists = []
  for part, count in zip(pairs.addressable_shards, number.addressable_shards, strict=True):
    count = int(count.data[0])
    # Powers of two, as each size is a program of its own.
    lists.append(np.asarray(part.data[: min(room, 1 << count.bit_length())])[:count])
  row, j = np.concatenate(lists).T.astype(np.int64)
  near = (row >> 2) + rows.start, j + columns.start, (row & 3).astype(np.uint8)
  above = np.asarray(above)[: len(rows)], np.asarray(above_items)[: len(columns)]
  return rows, columns, (above, near)
