"""The best few of each query, merged block by block: both forms against a sort, and the bound
against counting.
"""

import numpy as np
import pytest

from xmr.eval import candidates

QUERIES, ITEMS = 12, 640


def scores_of(kind):
  rng = np.random.default_rng(0)
  scores = rng.normal(size=(QUERIES, ITEMS)).astype(np.float32)
  if kind == "few values":
    scores = np.round(scores)
  elif kind == "ascending":  # every block is better than the one before
    scores.sort(axis=1)
  elif kind == "descending":
    scores = -np.sort(-scores, axis=1)
  elif kind == "equal":
    scores[:] = -3
  elif kind == "best at the end":
    scores[:, -5:] += 100
  return scores


@pytest.mark.parametrize(
  "kind", ["random", "few values", "ascending", "descending", "equal", "best at the end"]
)
@pytest.mark.parametrize("block", [1, 37, 256, ITEMS])
@pytest.mark.parametrize("merge", [candidates.merge_on_host, candidates.merge_on_device])
def test_merged_blocks_hold_the_best_of_a_sort(kind, block, merge):
  scores, keep = scores_of(kind), 19
  for by_column in (False, True):
    best = candidates.empty(QUERIES, keep)
    for start in range(0, ITEMS, block):
      # Blocks have one shape; what lies beyond the gallery would win if it were looked at.
      part = np.pad(
        scores[:, start : start + block],
        ((0, 0), (0, max(0, start + block - ITEMS))),
        constant_values=1000,
      )
      best = merge(
        best, part.T if by_column else part, (0, start), (QUERIES, ITEMS), by_column=by_column
      )
    score, index = candidates.in_order([np.asarray(x) for x in best])
    np.testing.assert_array_equal(score, -np.sort(-scores, axis=1)[:, :keep])
    np.testing.assert_array_equal(np.take_along_axis(scores, index, axis=1), score)
    assert all(len(set(row)) == keep for row in index)


def test_queries_beyond_the_last_are_left_alone():
  padded = np.pad(scores_of("random"), ((0, 4), (0, 0)))
  best = candidates.merge_on_host(
    candidates.empty(QUERIES + 4, 5), padded, (0, 0), (QUERIES, ITEMS)
  )
  assert np.isfinite(best[0][:QUERIES]).all() and np.isneginf(best[0][QUERIES:]).all()


@pytest.mark.parametrize("kind", ["random", "few values", "ascending", "equal"])
@pytest.mark.parametrize("keep", [1, 19, 80, 81])
def test_the_first_bound_is_reached_by_enough(kind, keep):
  scores = scores_of(kind)
  bound = candidates.reached(scores, keep)
  assert ((scores >= bound[:, None]).sum(axis=1) >= keep).all()
  assert np.isneginf(bound).all() == (keep > ITEMS // candidates.GROUPS)
