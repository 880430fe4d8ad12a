"""Ranks in a gallery, in blocks on the device, exact for every block size and number of devices."""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Int32, Integer, Real

from xmr.eval import alignment, exact, resident
from xmr.eval.blocks import (
  BLOCK,
  block_of,
  factors_of,
  mesh_of,
  padded,
  placement_of,
  score_factor,
  steps_of,
  tile_counts,
)
from xmr.eval.positives import pairs_of
from xmr.eval.token_scores import sides
from xmr.ops.alignment import NAMES, Tokens
from xmr.ops.arrays import Array

NEAR_IN_WORD = np.uint64(0x0303030303030303)
# A part of a block where more pairs than this share lie too close to call is scored in float64 as a
# whole.
CROWDED = 1 / 64
PART = (256, 1024)


def ranks(
  query: Real[Array, "Q D"] | Tokens,
  gallery: Real[Array, "G D"] | Tokens,
  positives: Integer[Array, " Q"] | Integer[Array, "Q P"] | Sequence,
  *,
  kind: str = "cosine",
  text_query: bool = False,
  block: int = BLOCK,
) -> Int32[np.ndarray, " Q"]:
  """Rank of the best positive of each query: the number of gallery items that stand before it.

  rank = #{j : s_j > s_p} + #{j not positive : s_j = s_p}, with p the best positive: ties count
  against the query, so a model that maps everything to one point ranks last, not first.

  Nothing is sorted: the device counts in float32 what is certainly above, and `exact.pair_scores`
  decides in float64 between scores that are closer than the rounding error. The result depends on
  the rows alone, not on blocks, devices or the matrix kernel. Sides that are on devices are scored
  there; accelerators keep the scores and bring back counts (`resident`).

  Args:
    positives: the one positive of each query, or several, padded with -1.
    kind, text_query: as `similarity`.
    block: queries at a time; twice as many gallery rows at a time.
  Returns:
    Ranks, from 0.
  Raises:
    UserError: shapes, NaN (names the array and the row), an unknown kind, a query without a
      positive, or one outside the gallery.
  """
  query, gallery, kind = alignment.means(query, gallery, kind=kind, names=("query", "gallery"))
  if kind in NAMES:
    task = "t2i" if text_query else "i2t"
    return alignment.ranks(query, gallery, positives, form=kind, task=task)
  rows = exact.sides(query, gallery, kind=kind, text_query=text_query)
  pairs = pairs_of(positives, n_queries=len(rows[0]), n_gallery=len(rows[1]))
  mesh = mesh_of(query, gallery)
  return count(*rows, pairs, kind=kind, block=block, mesh=mesh, both=False)[0]["rank"]


def outcomes(image, text, pairs, *, kind):
  """Ranks and ties of both directions, [images, texts] as `count`; pairs: ([M], [M]) int."""
  image, text, kind = alignment.means(image, text, kind=kind, names=("image", "text"))
  if kind in NAMES:
    rows = sides(image, text, names=("image", "text"))
    return alignment.count(*rows, pairs, form=kind)
  rows = exact.sides(image, text, kind=kind, names=("image", "text"))
  return count(*rows, pairs, kind=kind, mesh=mesh_of(image, text))


def count(query, gallery, pairs, *, kind, block=BLOCK, mesh=None, both=True):
  """Ranks of the best positive in both directions, from one pass over the products.

  Args:
    query, gallery: exact.Rows.
    pairs: ([M], [M]) int, query and gallery row of every positive pair; each row that is scored has
      at least one.
    kind, block: as `ranks`.  mesh: whose devices do it; None: one device.
    both: False scores the queries alone.
  Returns:
    [queries, items], or [queries] unless `both`: dicts of "rank" [.] int32 and "ties" [.] int32,
    the number of non-positives that score as the best positive.
  """
  job = _Count(query, gallery, pairs, kind=kind, both=both)
  if not resident.stays(mesh):
    _count_by_blocks(job, range(len(query)), range(len(gallery)), block, mesh)
  else:
    options = {"kind": kind, "block": block, "mesh": mesh, "both": both}
    for rows, columns, found in resident.counts(query, gallery, job.limits, **options):
      if found is None:
        _count_by_blocks(job, rows, columns, block, mesh)
      else:
        above, near = found
        job.add_above(rows, columns, *above)
        job.decide(*near)
  sides = [
    {"rank": (above + ties).astype(np.int32), "ties": ties.astype(np.int32)}
    for above, ties in job.counts
  ]
  return sides[: 1 + both]


def _count_by_blocks(job, some, others, block, mesh):
  """Counts the queries of one range against the items of another; the host sees every pair."""
  query, gallery, kind = job.query, job.gallery, job.kind
  rows, columns = steps_of(len(some), len(others), block, mesh)
  factors = factors_of(query, gallery, kind=kind)
  to_rows, to_columns = placement_of(mesh)
  pending = None
  for c in others[::columns]:
    items = jax.device_put(block_of(gallery, c, columns, factors[1], kind), to_columns)
    item_limits = jax.device_put([padded(x, c, columns) for x in job.limits[1]], to_columns)
    for r in some[::rows]:
      queries = jax.device_put(block_of(query, r, rows, factors[0], kind), to_rows)
      limits = jax.device_put([padded(x, r, rows) for x in job.limits[0]], to_rows)
      part = range(r, min(r + rows, some.stop)), range(c, min(c + columns, others.stop))
      left = some.stop - r, others.stop - c
      tile = tile_counts(
        queries, items, limits, item_limits, left, order=kind == "order", both=job.both
      )
      # The host decides near ties while the device works on the next block.
      if pending:
        job.add(*pending)
      pending = *part, tile
  if pending:
    job.add(*pending)


class _Count:
  """What the host keeps while blocks arrive: best positives, limits around them, counts."""

  def __init__(self, query, gallery, pairs, *, kind, both):
    self.query, self.gallery, self.kind, self.both = query, gallery, kind, both
    i, j = pairs
    self.positive = np.unique(i.astype(np.int64) * len(gallery) + j)
    score = exact.pair_scores(query, gallery, i, j, kind=kind)
    self.best = [np.full(len(query), -np.inf), np.full(len(gallery), -np.inf)]
    np.maximum.at(self.best[0], i, score)
    np.maximum.at(self.best[1], j, score)
    factor = score_factor(factors_of(query, gallery, kind=kind), kind=kind)
    slack = exact.slack(query, gallery, kind=kind, epsilon=float(np.finfo(np.float32).eps))
    self.limits = [
      [((best + sign * s) * factor).astype(np.float32) for sign in (-1, 1)]
      for best, s in zip(self.best, slack, strict=True)
    ]
    self.slack64 = exact.slack(query, gallery, kind=kind, epsilon=float(np.finfo(np.float64).eps))
    self.counts = [np.zeros((2, len(query)), np.int64), np.zeros((2, len(gallery)), np.int64)]

  def add_above(self, some, others, of_queries, of_items):
    """Adds what is certainly above, for a range of queries and one of items."""
    self.counts[0][0, some.start : some.stop] += of_queries[: len(some)]
    if self.both:
      self.counts[1][0, others.start : others.stop] += of_items[: len(others)]

  def add(self, some, others, tile):
    """Adds the counts of the block of a range of queries and one of items."""
    queries, items, code = (np.asarray(x) for x in tile)
    self.add_above(some, others, queries, items)
    (r, c), (rows, columns) = (some.start, others.start), (len(some), len(others))
    for a in range(0, rows, PART[0]):
      part = code[a : a + PART[0]]
      # Eight pairs at a time: hardly any is near.
      words = np.flatnonzero(part.reshape(-1).view(np.uint64) & NEAR_IN_WORD)
      if len(words) <= CROWDED * part.size:
        where = (words[:, None] * 8 + np.arange(8)).reshape(-1)
        near = part.reshape(-1)[where] & 3
        where, near = where[near > 0], near[near > 0]
        i, j = np.divmod(where, part.shape[1])
        self.decide(i + r + a, j + c, near)
      else:
        for b in range(0, columns, PART[1]):
          self.decide_crowded(r + a, c + b, part[: rows - a, b : min(b + PART[1], columns)] & 3)

  def decide(self, i, j, near):
    """Counts the listed pairs (query i, item j), near as in `tile_counts`, by exact scores."""
    i, j, near = (x[~self._is_positive(i, j)] for x in (i, j, near))
    for side, own in enumerate((i, j)[: 1 + self.both]):
      mine = (near & (1 + side)) > 0
      own = own[mine]
      score = exact.pair_scores(self.query, self.gallery, i[mine], j[mine], kind=self.kind)
      np.add.at(self.counts[side][0], own[score > self.best[side][own]], 1)
      np.add.at(self.counts[side][1], own[score == self.best[side][own]], 1)

  def decide_crowded(self, r, c, near):
    """Counts a part [a, b] with many near pairs: equal rows are scored once, others by a float64
    product first.
    """
    rows, columns = slice(r, r + near.shape[0]), slice(c, c + near.shape[1])
    query_first, query_of = np.unique(self.query.first_equal[rows], return_inverse=True)
    gallery_first, gallery_of = np.unique(self.gallery.first_equal[columns], return_inverse=True)
    if len(query_first) * len(gallery_first) * 4 <= np.count_nonzero(near) or self.kind == "order":
      i, j = np.meshgrid(query_first, gallery_first, indexing="ij")
      score = exact.pair_scores(
        self.query, self.gallery, i.reshape(-1), j.reshape(-1), kind=self.kind
      )
      score = score.reshape(i.shape)[np.ix_(query_of, gallery_of)]
      positive = self._is_positive(*np.ogrid[rows, columns])
    else:
      score = exact.all_scores(self.query.take(rows), self.gallery.take(columns), kind=self.kind)
      positive = None
    left = np.zeros_like(near)
    for side, own in enumerate((rows, columns)[: 1 + self.both]):
      mine = (near & (1 + side)) > 0
      above, ties = (x[own] for x in self.counts[side])
      gap = score - np.expand_dims(self.best[side][own], 1 - side)
      if positive is not None:
        above += np.count_nonzero(mine & (gap > 0), axis=1 - side)
        ties += np.count_nonzero(mine & (gap == 0) & ~positive, axis=1 - side)
      else:
        slack = np.expand_dims(self.slack64[side][own], 1 - side)
        above += np.count_nonzero(mine & (gap > slack), axis=1 - side)
        left += (1 + side) * (mine & (np.abs(gap) <= slack)).astype(np.uint8)
    i, j = np.nonzero(left)
    self.decide(i + r, j + c, left[i, j])

  def _is_positive(self, i, j):
    code = i.astype(np.int64) * len(self.gallery) + j
    at = np.minimum(np.searchsorted(self.positive, code), len(self.positive) - 1)
    return self.positive[at] == code
