"""Mean average precision against loops, scikit-learn and trec_eval."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from xmr.errors import UserError
from xmr.eval import mean_average_precision
from xmr.eval.average_precision import average_precision, average_precisions, precision_recall


def example(seed=0, queries=30, items=80, width=16, categories=5):
  rng = np.random.default_rng(seed)
  query, gallery = (rng.normal(size=(n, width)).astype(np.float32) for n in (queries, items))
  return query, gallery, rng.integers(0, categories, queries), rng.integers(0, categories, items)


def loop_average_precision(relevant):
  hits, total = 0, 0.0
  for k, r in enumerate(relevant, start=1):
    if r:
      hits += 1
      total += hits / k
  return total / hits if hits else 0.0


def dot(query, gallery):
  return query.astype(np.float64) @ gallery.astype(np.float64).T


def test_equals_scikit_learn_without_ties():
  query, gallery, query_label, gallery_label = example()
  scores = dot(query, gallery)
  expected = np.mean(
    [
      average_precision_score(gallery_label == q, s)
      for q, s in zip(query_label, scores, strict=True)
    ]
  )
  found = mean_average_precision(query, gallery, query_label, gallery_label, kind="dot")
  assert isinstance(found, float) and found == pytest.approx(expected, abs=1e-12)
  each = average_precisions(query, gallery, query_label, gallery_label, kind="dot")
  assert each.shape == (len(query),) and each.mean() == pytest.approx(expected, abs=1e-12)
  unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (query, gallery)]
  cosine = mean_average_precision(query, gallery, query_label, gallery_label)
  assert cosine == pytest.approx(
    mean_average_precision(*unit, query_label, gallery_label, kind="dot"), abs=1e-12
  )


def test_equals_trec_eval_without_ties():
  pytrec_eval = pytest.importorskip("pytrec_eval")
  query, gallery, query_label, gallery_label = example(seed=6)
  scores = dot(query, gallery)
  # trec_eval keeps scores in float32: ties there would be its own.
  assert all(len(np.unique(row.astype(np.float32))) == len(row) for row in scores)
  relevance = {
    str(q): {str(g): int(a == b) for g, b in enumerate(gallery_label)}
    for q, a in enumerate(query_label)
  }
  run = {str(q): {str(g): float(s) for g, s in enumerate(row)} for q, row in enumerate(scores)}
  judged = pytrec_eval.RelevanceEvaluator(relevance, {"map"}).evaluate(run)
  expected = np.mean([v["map"] for v in judged.values()])
  found = mean_average_precision(query, gallery, query_label, gallery_label, kind="dot")
  assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("at", (1, 7, 80, 1000))
def test_first_r_equals_a_loop(at):
  query, gallery, query_label, gallery_label = example(seed=2, categories=20)
  order = np.argsort(-dot(query, gallery), axis=1)
  expected = [
    loop_average_precision((gallery_label[o] == q)[:at])
    for q, o in zip(query_label, order, strict=True)
  ]
  assert 0.0 in expected or at > 7
  found = mean_average_precision(query, gallery, query_label, gallery_label, at=at, kind="dot")
  assert found == pytest.approx(np.mean(expected), abs=1e-12)


def test_of_equal_items_other_categories_come_first():
  query, gallery = np.ones((1, 4), np.float32), np.ones((6, 4), np.float32)
  labels = np.array([1, 0, 1, 0, 0, 1])
  for kind in ("cosine", "dot", "order"):
    found = mean_average_precision(query, gallery, [1], labels, kind=kind)
    assert found == pytest.approx(np.mean([1 / 4, 2 / 5, 3 / 6]))
  assert mean_average_precision(query, gallery, [1], labels, at=3) == 0


def test_duplicate_items_tie_wherever_they_stand():
  query, gallery, query_label, _ = example(seed=3, items=37, width=129)
  gallery = np.tile(gallery, (9, 1))
  labels = np.random.default_rng(4).integers(0, 5, len(gallery))
  expected = []
  for q, row in zip(query_label, np.tile(dot(query, gallery[:37]), (1, 9)), strict=True):
    ranking = sorted(range(len(row)), key=lambda j, row=row, q=q: (-row[j], labels[j] == q))
    expected.append(loop_average_precision(labels[ranking] == q))
  found = mean_average_precision(query, gallery, query_label, labels, kind="dot")
  assert found == pytest.approx(np.mean(expected), abs=1e-12)


def test_query_without_anything_relevant_counts_zero():
  query, gallery, query_label, gallery_label = example()
  query_label[:15] = 99
  alone = mean_average_precision(query[15:], gallery, query_label[15:], gallery_label)
  assert mean_average_precision(query, gallery, query_label, gallery_label) == pytest.approx(
    alone / 2
  )


def test_blocks_of_queries_do_not_matter(monkeypatch):
  from xmr.eval import average_precision as module

  whole = mean_average_precision(*example())
  monkeypatch.setattr(module, "PAIRS", 200)
  assert mean_average_precision(*example()) == pytest.approx(whole, abs=1e-15)


def test_order_kind_ranks_by_what_the_item_adds():
  query = np.array([[1.0, 1.0]], np.float32)
  gallery = np.array([[3, 1], [1, 0], [2, 1]], np.float32)
  assert mean_average_precision(query, gallery, [0], [0, 1, 1], kind="order") == pytest.approx(
    1 / 3
  )


def test_precision_recall_equals_a_loop():
  query, gallery, query_label, gallery_label = example(seed=5)
  order = np.argsort(-dot(query, gallery), axis=1)
  expected = np.zeros(11)
  for q, o in zip(query_label, order, strict=True):
    relevant = gallery_label[o] == q
    for n in range(11):
      reached = [
        relevant[:k].mean()
        for k in range(1, 81)
        if 10 * int(relevant[:k].sum()) >= n * int(relevant.sum())
      ]
      expected[n] += max(reached) / len(query)
  found = precision_recall(query, gallery, query_label, gallery_label, kind="dot")
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_average_precision_of_a_known_ranking():
  np.testing.assert_allclose(average_precision([[1, 0, 1], [0, 0, 0]]), [(1 + 2 / 3) / 2, 0])


def test_bad_input_names_what_and_where():
  query, gallery, query_label, gallery_label = example()
  with pytest.raises(UserError, match="at is 0; expected at least 1"):
    mean_average_precision(query, gallery, query_label, gallery_label, at=0)
  with pytest.raises(UserError, match=r"gallery_label has shape \(79,\); expected \(80,\)"):
    mean_average_precision(query, gallery, query_label, gallery_label[:79])
  query[3, 3] = np.nan
  with pytest.raises(UserError, match="query has NaN or infinity in row 3"):
    mean_average_precision(query, gallery, query_label, gallery_label)
