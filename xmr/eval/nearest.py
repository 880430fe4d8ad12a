"""The best k of a gallery, in blocks on the device, exact for every block size and number of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from xmr.errors import UserError
from xmr.eval import exact
from xmr.eval.blocks import BLOCK, ROW_UNIT, block_of, factors_of, placement_of, score_factor, steps_of
from xmr.losses.similarity import similarity

SPARE = 8  # candidates that are kept beyond k


def top_k(query, gallery, k, *, kind="cosine", text_query=False, block=BLOCK):
  """The k best gallery items of each query, best first; of equal scores the lowest index comes first.

  The device keeps the best k and a few more in float32, merged block by block; neighbours closer than its rounding error
  are ordered by `exact.pair_scores`, so the indices depend on the rows alone. Scores are float32, right to its rounding.

  Args:
    query: [Q, D] float.  gallery: [G, D] float.
    k: 1 to G.  kind, text_query: as `similarity`.
    block: queries at a time; twice as many gallery rows at a time.
  Returns:
    (scores [Q, k] float32, indices [Q, k] int32).
  Raises:
    UserError: shapes, NaN (names the array and the row), an unknown kind, k outside 1 to G.
  """
  placement = placement_of(query)
  query, gallery = exact.sides(query, gallery, kind=kind, text_query=text_query)
  _check_k(k, gallery)
  rows, columns = steps_of(len(query), len(gallery), block, placement)
  factors = factors_of(query, gallery, kind=kind)
  to_rows, to_columns = placement or (None, None)
  bests = []
  for r in range(0, len(query), rows):
    queries = jax.device_put(block_of(query, r, rows, factors[0], kind), to_rows)
    best = jax.device_put(_nothing(rows, k, len(gallery)), to_rows)
    for c in range(0, len(gallery), columns):
      items = jax.device_put(block_of(gallery, c, columns, factors[1], kind), to_columns)
      best = _merge(best, queries, items, c, len(gallery), order=kind == "order")
    bests.append([np.asarray(x) for x in best])
  return _collected(query, gallery, bests, k, kind=kind, factor=score_factor(factors, kind=kind))


def top_k_of_both(first, second, k, *, kind="cosine", text_query=False, block=BLOCK):
  """top_k of two sides in each other, and of one in itself, with every product taken once.

  Args:
    first: [N, D] float.  second: [M, D] float; None: `first` again.
    k, kind, block: as `top_k`.  text_query: whether `first` are texts.
  Returns:
    (top_k of first in second, top_k of second in first); the same twice where second is None.
  Raises:
    UserError: as `top_k`.
  """
  same = second is None
  if kind == "order" or placement_of(first) or (not same and placement_of(second)):
    found = top_k(first, first if same else second, k, kind=kind, text_query=text_query, block=block)
    return found, found if same else top_k(second, first, k, kind=kind, text_query=not text_query, block=block)
  one, two = exact.sides(first, first[:1] if same else second, kind=kind, names=("first", "second"))
  two = one if same else two
  for side in (one, two):
    _check_k(k, side)
  factors = factors_of(one, two, kind=kind)
  rows, columns = steps_of(len(one), len(two), block, None)
  if same:
    # Square, and of the same size.
    rows = columns = steps_of(len(one), len(one), block, None)[0]
  bests = [[_nothing(rows, k, len(two)) for _ in range(0, len(one), rows)]]
  bests.append(bests[0] if same else [_nothing(columns, k, len(one)) for _ in range(0, len(two), columns)])
  for j, c in enumerate(range(0, len(two), columns)):
    items = jax.device_put(block_of(two, c, columns, factors[1], kind))
    for i, r in enumerate(range(0, len(one), rows)):
      if same and r > c:
        break
      queries = items if same and r == c else jax.device_put(block_of(one, r, rows, factors[0], kind))
      if same and r == c:
        bests[0][i] = _merge(bests[0][i], queries, items, c, len(two), order=False)
      else:
        bests[0][i], bests[1][j] = _merge_both(bests[0][i], bests[1][j], queries, items, (r, c), (len(one), len(two)))
    # Or all blocks would wait in memory.
    jax.block_until_ready(bests[1][j])
  factor = score_factor(factors, kind=kind)
  found = _collected(one, two, bests[0], k, kind=kind, factor=factor)
  return found, found if same else _collected(two, one, bests[1], k, kind=kind, factor=factor)


def _check_k(k, gallery):
  if not 1 <= k <= len(gallery):
    raise UserError(f"k is {k}; expected 1 to {len(gallery)}, the size of the gallery")


def _nothing(rows, k, n_gallery):
  """The best of no items: scores and indices [rows, k and a few more]."""
  keep = min(k + SPARE, n_gallery)
  return np.full((rows, keep), -np.inf, np.float32), np.zeros((rows, keep), np.int32)


def _collected(query, gallery, bests, k, *, kind, factor):
  """Scores and indices [Q, k] from the candidates of each block of queries."""
  slack = exact.slack(query, gallery, kind=kind, epsilon=np.finfo(np.float32).eps)[0]
  scores, indices = np.empty((len(query), k), np.float32), np.empty((len(query), k), np.int32)
  r = 0
  for best in bests:
    at = slice(r, min(r + len(best[0]), len(query)))
    score, index = (np.asarray(x)[: at.stop - r] for x in best)
    scores[at], indices[at] = _settled(query, gallery, r, score.astype(np.float64) / factor, index, 2 * slack[at], k, kind)
    r = at.stop
  return scores, indices


@functools.partial(jax.jit, static_argnames=("order",))
def _merge(best, query, gallery, start, end, *, order):
  """Merges a block of the gallery, whose first row is `start` and which ends at `end`, into the best so far."""
  return _better(best, similarity(query, gallery, kind="order" if order else "dot"), start, end)


@jax.jit
def _merge_both(best_of_first, best_of_second, first, second, starts, ends):
  """Merges one block of products into the best so far of its rows and of its columns."""
  scores = similarity(first, second, kind="dot")
  return _better(best_of_first, scores, starts[1], ends[1]), _better(best_of_second, scores.T, starts[0], ends[0])


def _better(best, scores, start, end):
  index = start + jnp.arange(scores.shape[1], dtype=jnp.int32)
  scores = jnp.where(index[None, :] < end, scores, -jnp.inf)
  keep = best[0].shape[1]
  block_scores, block_index = jax.lax.top_k(scores, min(keep, scores.shape[1]))
  scores = jnp.concatenate([best[0], block_scores], axis=1)
  index = jnp.concatenate([best[1], block_index + start], axis=1)
  scores, at = jax.lax.top_k(scores, keep)
  return scores, jnp.take_along_axis(index, at, axis=1)


def _settled(query, gallery, first, score, index, gap, k, kind):
  """Orders candidates [q, keep] (float64 scores of float32 products) where neighbours are within `gap` [q]."""
  close = score[:, :-1] - score[:, 1:] <= gap[:, None]
  unclear = np.pad(close, ((0, 0), (1, 0))) | np.pad(close, ((0, 0), (0, 1)))
  # An item only matters where its run of close neighbours begins within the first k.
  run = np.cumsum(np.pad(~close, ((0, 0), (1, 0))), axis=1)
  unclear &= run <= run[:, k - 1 : k]
  i, j = np.nonzero(unclear)
  score[i, j] = exact.pair_scores(query, gallery, i + first, index[i, j], kind=kind)
  order = np.lexsort((index, -score), axis=1)[:, :k]
  # Where the run that holds the k-th item reaches the end of the candidates, items beyond it may belong before it.
  open_ended = np.flatnonzero((run[:, -1] == run[:, k - 1]) & (index.shape[1] < len(gallery)))
  score, index = (np.take_along_axis(x, order, axis=1) for x in (score, index))
  for begin in range(0, len(open_ended), ROW_UNIT):
    rows = open_ended[begin : begin + ROW_UNIT]
    for i, (row_score, row_index) in zip(rows, _settled_rows(query.take(rows + first), gallery, k, kind), strict=True):
      score[i], index[i] = row_score, row_index
  return score, index


def _settled_rows(query, gallery, k, kind):
  """Yields (scores [k], indices [k]) of each query over the whole gallery, where float32 cannot say what is best."""
  distinct, of = gallery.distinct
  score = exact.all_scores(query, distinct, kind=kind)
  slack = exact.slack(query, gallery, kind=kind, epsilon=np.finfo(np.float64).eps)[0]
  for i, row in enumerate(score):
    least = np.partition(row[of], len(of) - k)[len(of) - k] - 2 * slack[i]
    hopeful = np.flatnonzero(row >= least)
    row = np.full(len(row), -np.inf)
    row[hopeful] = exact.pair_scores(query, distinct, np.full(len(hopeful), i), hopeful, kind=kind)
    items = np.flatnonzero(row[of] > -np.inf)
    items = items[np.argsort(-row[of[items]], kind="stable")[:k]]
    yield row[of[items]], items
