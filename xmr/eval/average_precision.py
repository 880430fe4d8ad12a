"""Average precision and precision-recall curves where items of the query's category are
relevant.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float64, Real, Shaped

from xmr.errors import UserError
from xmr.eval import exact
from xmr.ops.arrays import Array

PAIRS = 1 << 20  # scores held at a time
LEVELS = tuple(np.linspace(0, 1, 11))


def mean_average_precision(
  query: Real[Array, "Q D"],
  gallery: Real[Array, "G D"],
  query_label: Shaped[Array, " Q"] | Sequence,
  gallery_label: Shaped[Array, " G"] | Sequence,
  *,
  at: int | None = None,
  kind: str = "cosine",
) -> float:
  """Mean over queries of the average precision of the gallery ranked for each.

  AP = 1 / #{k <= R : rel(k)} sum over k <= R of P(k) rel(k), P(k) the precision of the first k and
  rel(k) = 1 where the k-th item has the query's category; 0 where none has. R = G where `at` is
  None, else `at`: the divisor then counts what is relevant within the first R alone, as the group's
  released code does (trec_eval's map_cut divides by all). Of items that score equal, those of other
  categories come first.

  Args:
    query_label, gallery_label: categories.
    at: R, at least 1, or None for the whole gallery.  kind: "cosine", "dot" or "order" (the query
      side is the image).
  Returns:
    A number in [0, 1].
  Raises:
    UserError: shapes, NaN (names the array and the row), an unknown kind, `at` below 1.
  References:
    SCKR, Yu et al., and keras_gcn, as released (R = 100); all R: scikit-learn
    `average_precision_score`, trec_eval `map`.
  """
  return float(
    np.mean(average_precisions(query, gallery, query_label, gallery_label, at=at, kind=kind))
  )


def average_precisions(
  query: Real[Array, "Q D"],
  gallery: Real[Array, "G D"],
  query_label: Shaped[Array, " Q"] | Sequence,
  gallery_label: Shaped[Array, " G"] | Sequence,
  *,
  at: int | None = None,
  kind: str = "cosine",
) -> Float64[np.ndarray, " Q"]:
  """Average precision of each query: what `mean_average_precision` averages, for paired tests."""
  blocks = _relevance_in_order(query, gallery, query_label, gallery_label, kind=kind)
  return np.concatenate([average_precision(relevant, at=at) for relevant in blocks])


def average_precision(
  relevant: Bool[np.ndarray, "Q G"] | Sequence, *, at: int | None = None
) -> Float64[np.ndarray, " Q"]:
  """Average precision of rankings: relevance of the items, best first; `at` as above."""
  if at is not None and at < 1:
    raise UserError(f"at is {at}; expected at least 1, or None for the whole gallery")
  relevant = np.asarray(relevant)[:, :at]
  precision = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
  return (precision * relevant).sum(axis=1) / np.maximum(relevant.sum(axis=1), 1)


def precision_recall(
  query: Real[Array, "Q D"],
  gallery: Real[Array, "G D"],
  query_label: Shaped[Array, " Q"] | Sequence,
  gallery_label: Shaped[Array, " G"] | Sequence,
  *,
  levels: Sequence[float] = LEVELS,
  kind: str = "cosine",
) -> Float64[np.ndarray, " L"]:
  """Interpolated precision at levels of recall, averaged over queries.

  p(r) = max of P(k) over the k whose recall is at least r; queries with nothing relevant count 0.

  Args:
    query, gallery, query_label, gallery_label, kind: as `mean_average_precision`.
    levels: [L] recalls in [0, 1].
  Returns:
    [L] float64 in [0, 1], falling.
  References:
    Manning, Raghavan, Schuetze, Introduction to Information Retrieval, 8.4.
  """
  wanted = np.asarray(levels, np.float64)
  total, n = np.zeros(len(wanted)), 0
  for relevant in _relevance_in_order(query, gallery, query_label, gallery_label, kind=kind):
    hits = np.cumsum(relevant, axis=1)
    precision = hits / np.arange(1, hits.shape[1] + 1)
    best_from = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row_hits, row_best in zip(hits, best_from, strict=True):
      if row_hits[-1]:
        # Whole hits, not recalls, are compared: 3 / 10 and 0.3 are different floats.
        needed = np.ceil(wanted * row_hits[-1] - 1e-9)
        total += row_best[np.searchsorted(row_hits, needed)]
    n += len(relevant)
  return total / n


def _relevance_in_order(query, gallery, query_label, gallery_label, *, kind):
  """Yields [q, G] bool for blocks of queries: whether each item, best first, has the query's
  category.
  """
  query, gallery = exact.sides(query, gallery, kind=kind)
  labels = []
  for name, label, rows in (
    ("query_label", query_label, query),
    ("gallery_label", gallery_label, gallery),
  ):
    label = np.asarray(label)
    if label.shape != (len(rows),):
      raise UserError(f"{name} has shape {label.shape}; expected ({len(rows)},)")
    labels.append(label)
  step = max(1, PAIRS // len(gallery))
  # Equal items get one score, so they tie whatever the rounding.
  distinct, of = gallery.distinct
  for begin in range(0, len(query), step):
    rows = slice(begin, begin + step)
    relevant = labels[0][rows, None] == labels[1][None, :]
    scores = exact.all_scores(query.take(rows), distinct, kind=kind)[:, of]
    order = np.lexsort((relevant, -scores), axis=1)
    yield np.take_along_axis(relevant, order, axis=1)
