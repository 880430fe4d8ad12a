"""The best k of a gallery, in blocks on the device, exact for every block size and number of
devices.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32, Real

from xmr.errors import UserError
from xmr.eval import alignment, candidates, exact, resident
from xmr.eval.blocks import (
  BLOCK,
  ROW_UNIT,
  block_of,
  factors_of,
  mesh_of,
  placement_of,
  products,
  score_factor,
  steps_of,
)
from xmr.ops.alignment import NAMES, Tokens
from xmr.ops.arrays import Array

SPARE = 8  # candidates that are kept beyond k


def top_k(
  query: Real[Array, "Q D"] | Tokens,
  gallery: Real[Array, "G D"] | Tokens,
  k: int,
  *,
  kind: str = "cosine",
  text_query: bool = False,
  block: int = BLOCK,
) -> tuple[Float32[np.ndarray, "Q k"], Int32[np.ndarray, "Q k"]]:
  """The k best gallery items of each query, best first; of equal scores the lowest index comes
  first.

  The best k and a few more are kept in float32 and merged block by block. `exact.pair_scores`
  orders neighbours that are closer than the rounding error, so the indices depend on the rows
  alone. Scores are right to the rounding of float32.

  Args:
    k: 1 to G.  kind, text_query: as `similarity`.
    block: queries at a time; twice as many gallery rows at a time.
  Returns:
    (scores, indices).
  Raises:
    UserError: shapes, NaN (names the array and the row), an unknown kind, k outside 1 to G.
  """
  query, gallery, kind = alignment.means(query, gallery, kind=kind, names=("query", "gallery"))
  if kind in NAMES:
    task = "t2i" if text_query else "i2t"
    return alignment.top_k(query, gallery, k, form=kind, task=task)
  mesh = mesh_of(query, gallery)
  queries, items = exact.sides(query, gallery, kind=kind, text_query=text_query)
  _check_k(k, items)
  find = resident.best if resident.stays(mesh) else _best_by_blocks
  bests = find(queries, items, _kept(k, items), kind=kind, block=block, mesh=mesh)
  factor = score_factor(factors_of(queries, items, kind=kind), kind=kind)
  return _collected(queries, items, bests, k, kind=kind, factor=factor)


def _best_by_blocks(queries, items, keep, *, kind, block, mesh):
  """As `resident.best`, with the gallery sent to the device block by block."""
  rows, columns = steps_of(len(queries), len(items), block, mesh)
  factors = factors_of(queries, items, kind=kind)
  to_rows, to_columns = placement_of(mesh)
  merge = candidates.merge_of(mesh)
  bests = []
  for r in range(0, len(queries), rows):
    block_of_queries = jax.device_put(block_of(queries, r, rows, factors[0], kind), to_rows)
    blocks = (
      (
        c,
        products(
          block_of_queries,
          jax.device_put(block_of(items, c, columns, factors[1], kind), to_columns),
          order=kind == "order",
        ),
      )
      for c in range(0, len(items), columns)
    )
    best = jax.device_put(candidates.empty(rows, keep), to_rows)
    for c, scores in _one_ahead(blocks):
      best = merge(best, scores, (r, c), (len(queries), len(items)))
    bests.append(best)
  return bests


def top_k_of_both(
  first: Real[Array, "N D"],
  second: Real[Array, "M D"] | None,
  k: int,
  *,
  kind: str = "cosine",
  text_query: bool = False,
  block: int = BLOCK,
) -> tuple[
  tuple[Float32[np.ndarray, "N k"], Int32[np.ndarray, "N k"]],
  tuple[Float32[np.ndarray, "rows k"], Int32[np.ndarray, "rows k"]],
]:
  """top_k of two sides in each other, and of one in itself, with every product taken once.

  Args:
    second: None is `first` again.
    k, kind, block: as `top_k`.  text_query: whether `first` are texts.
  Returns:
    (top_k of first in second, top_k of second in first); the same twice where second is None.
  Raises:
    UserError: as `top_k`.
  """
  same, other = second is None, first if second is None else second
  if kind == "order" or mesh_of(first, other):
    found = top_k(first, other, k, kind=kind, text_query=text_query, block=block)
    return found, found if same else top_k(
      other, first, k, kind=kind, text_query=not text_query, block=block
    )
  one, two = exact.sides(first, first[:1] if same else other, kind=kind, names=("first", "second"))
  two = one if same else two
  for side in (one, two):
    _check_k(k, side)
  factors = factors_of(one, two, kind=kind)
  rows, columns = steps_of(len(one), len(two), block, None)
  if same:
    # Square, and of the same size.
    rows = columns = steps_of(len(one), len(one), block, None)[0]
  merge = candidates.merge_of(None)
  best_of_one = [candidates.empty(rows, _kept(k, two)) for _ in range(0, len(one), rows)]
  best_of_two = (
    best_of_one
    if same
    else [candidates.empty(columns, _kept(k, one)) for _ in range(0, len(two), columns)]
  )
  for i, j, scores in _one_ahead(_blocks_of_both(one, two, rows, columns, factors, kind)):
    starts, ends = (i * rows, j * columns), (len(one), len(two))
    best_of_one[i] = merge(best_of_one[i], scores, starts, ends)
    if not (same and i == j):
      best_of_two[j] = merge(best_of_two[j], scores, starts[::-1], ends[::-1], by_column=True)
  factor = score_factor(factors, kind=kind)
  found = _collected(one, two, best_of_one, k, kind=kind, factor=factor)
  return found, found if same else _collected(two, one, best_of_two, k, kind=kind, factor=factor)


def _blocks_of_both(one, two, rows, columns, factors, kind):
  """Yields (i, j, products of block i of `one` with block j of `two`); of one side with itself
  where i <= j.
  """
  for j, c in enumerate(range(0, len(two), columns)):
    items = jax.device_put(block_of(two, c, columns, factors[1], kind))
    for i, r in enumerate(range(0, len(one), rows)):
      if two is one and i > j:
        break
      queries = (
        items if two is one and i == j else jax.device_put(block_of(one, r, rows, factors[0], kind))
      )
      yield i, j, products(queries, items, order=False)


def _one_ahead(found) -> Iterator[Any]:
  """Yields each item when it is ready and the next one is under way: the device computes while the
  host merges.
  """
  found = iter(found)
  last = next(found)
  for item in found:
    yield jax.block_until_ready(last)
    last = item
  yield last


def _check_k(k, gallery):
  if not 1 <= k <= len(gallery):
    raise UserError(f"k is {k}; expected 1 to {len(gallery)}, the size of the gallery")


def _kept(k, gallery):
  return min(k + SPARE, len(gallery))


def _collected(query, gallery, bests, k, *, kind, factor):
  """Scores and indices [Q, k] from the candidates of each block of queries."""
  slack = exact.slack(query, gallery, kind=kind, epsilon=float(np.finfo(np.float32).eps))[0]
  scores, indices = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int32)
  r = 0
  for best in bests:
    at = slice(r, min(r + len(best[0]), len(query)))
    score, index = candidates.in_order([np.asarray(x)[: at.stop - r] for x in best])
    scores[at], indices[at] = _settled(
      query, gallery, r, score.astype(np.float64) / factor, index, 2 * slack[at], k, kind
    )
    r = at.stop
  return scores, indices


def _settled(query, gallery, first, score, index, gap, k, kind):
  """Orders candidates [q, keep] (float64 scores of float32 products) where neighbours are within
  `gap` [q].
  """
  close = score[:, :-1] - score[:, 1:] <= gap[:, None]
  unclear = np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)))
  # An item only matters where its run of close neighbours begins within the first k.
  run = np.cumsum(np.pad(~close, ((0, 0), (1, 0))), axis=1)
  unclear &= run <= run[:, k - 1 : k]
  i, j = np.nonzero(unclear)
  score[i, j] = exact.pair_scores(query, gallery, i + first, index[i, j], kind=kind)
  order = np.lexsort((index, -score), axis=1)[:, :k]
  # Where the run that holds the k-th item reaches the end of the candidates, items beyond it may
  # belong before it.
  open_ended = np.flatnonzero((run[:, -1] == run[:, k - 1]) & (index.shape[1] < len(gallery)))
  score, index = (np.take_along_axis(x, order, axis=1) for x in (score, index))
  for begin in range(0, len(open_ended), ROW_UNIT):
    rows = open_ended[begin : begin + ROW_UNIT]
    for i, (row_score, row_index) in zip(
      rows, _settled_rows(query.take(rows + first), gallery, k, kind), strict=True
    ):
      score[i], index[i] = row_score, row_index
  return score, index


def _settled_rows(query, gallery, k, kind):
  """Yields (scores [k], indices [k]) of each query over the whole gallery, for queries whose best
  items float32 cannot tell apart.
  """
  distinct, of = gallery.distinct
  score = exact.all_scores(query, distinct, kind=kind)
  slack = exact.slack(query, gallery, kind=kind, epsilon=float(np.finfo(np.float64).eps))[0]
  for i, row in enumerate(score):
    least = np.partition(row[of], len(of) - k)[len(of) - k] - 2 * slack[i]
    hopeful = np.flatnonzero(row >= least)
    row = np.full(len(row), -np.inf)
    row[hopeful] = exact.pair_scores(query, distinct, np.full(len(hopeful), i), hopeful, kind=kind)
    items = np.flatnonzero(row[of] > -np.inf)
    items = items[np.argsort(-row[of[items]], kind="stable")[:k]]
    yield row[of[items]], items
