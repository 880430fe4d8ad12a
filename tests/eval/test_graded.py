"""Graded retrieval against the released figures and against loops that spell the formulas out."""

import importlib
import itertools

import numpy as np
import pytest

from xmr.errors import UserError
from xmr.eval import consistency
from xmr.eval import lists as lists_lib

# xmr.eval.graded is the function of the same name.
graded = importlib.import_module("xmr.eval.graded")


def example(seed=0, images=12, captions=(1, 2, 5, 3), width=6):
  rng = np.random.default_rng(seed)
  image_of_text = np.repeat(np.arange(images), np.resize(captions, images))
  rng.shuffle(image_of_text)
  image = rng.normal(size=(images, width)).astype(np.float32)
  text = (image[image_of_text] + rng.normal(size=(len(image_of_text), width))).astype(np.float32)
  relevance = np.round(rng.random((len(text), images)), 2).astype(np.float32)
  relevance[rng.random(relevance.shape) < 0.5] = 0
  return image, text, image_of_text, relevance


def unit(x):
  x = np.asarray(x, np.float64)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def queries(task, image, text, image_of_text, relevance, include_self=True):
  """Yields (query embedding, gallery, relevance of each item, left out item, image of the query)
  per ranking.
  """
  if task == "i2t":
    yield from ((image[j], text, relevance[:, j], None, j) for j in range(len(image)))
  for q in range(len(text)):
    j = image_of_text[q]
    if task == "t2i":
      yield text[q], image, relevance[q], None, j
    if task == "i2i":
      yield image[j], image, relevance[q], None if include_self else j, j
    if task == "t2t":
      yield text[q], text, relevance[:, j], None if include_self else q, j


def slow_list_score(relevances, alpha, form):
  total, seen, cumulative = 0.0, 0.0, 0.0
  for r, rel in enumerate(relevances, start=1):
    gain = rel * (1 - alpha) ** seen
    cumulative += gain
    total += (cumulative if form == "released" else gain) / np.log2(r + 1)
    seen += rel
  return total


def slow_graded(task, image, text, image_of_text, relevance, *, k, alpha, form, include_self=True):
  """One query at a time, as the notebooks do it."""
  ndcg, gains, ideals, owners = [], [], [], []
  image, text = unit(image), unit(text)
  for query, gallery, rel, left_out, owner in queries(
    task, image, text, image_of_text, relevance, include_self
  ):
    kept = [x for x in range(len(gallery)) if x != left_out]
    ranked = sorted(kept, key=lambda x: (-gallery[x] @ query, x))[:k]
    ideal = sorted((float(rel[x]) for x in kept), reverse=True)[:k]
    found = [float(rel[x]) for x in ranked]
    dcg = [
      sum((2**x - 1) / np.log2(r + 2) for r, x in enumerate(values)) for values in (found, ideal)
    ]
    ndcg.append(dcg[0] / dcg[1] if dcg[1] else 0)
    gains.append(slow_list_score(found, alpha, form))
    ideals.append(slow_list_score(ideal, alpha, form))
    owners.append(owner)
  if form == "standard":
    kept = [x for x in range(len(ndcg)) if ideals[x] > 0]
    return np.mean([ndcg[x] for x in kept]), np.mean([gains[x] / ideals[x] for x in kept])
  if task == "t2t":
    last = {owner: x for x, owner in enumerate(owners)}.values()
    gains, ideals = [gains[x] for x in last], [ideals[x] for x in last]
  return np.mean([x for x in ndcg if x != 0]), np.mean(gains) / np.mean(ideals)


def test_equals_the_released_figures(golden):
  data = golden("graded_retrieval")
  image_of_text = np.arange(300) // 5
  for which in range(2):
    metrics = graded.graded(data["image"], data["text"], image_of_text, data["relevance"][which])
    for task in graded.TASKS:
      for name in ("ndcg", "alpha_ndcg"):
        assert metrics[f"{task}/{name}"] == pytest.approx(data[f"{name}_{task}"][which], abs=2e-7)
      assert metrics[f"{task}/self_information"] == pytest.approx(
        data[f"self_information_{task}"], abs=1e-9
      )


@pytest.mark.parametrize("include_self", [True, False])
@pytest.mark.parametrize("form", graded.FORMS)
def test_equals_one_query_at_a_time_with_any_number_of_captions(form, include_self):
  inputs = example()
  metrics = graded.graded(*inputs, k=4, alpha=0.3, form=form, include_self=include_self)
  for task in graded.TASKS:
    ndcg, alpha_ndcg = slow_graded(
      task, *inputs, k=4, alpha=0.3, form=form, include_self=include_self
    )
    assert metrics[f"{task}/ndcg"] == pytest.approx(ndcg, abs=1e-6), task
    assert metrics[f"{task}/alpha_ndcg"] == pytest.approx(alpha_ndcg, abs=1e-6), task


def test_ideal_without_the_query_loses_one_entry_even_among_equals():
  image, text, image_of_text, relevance = example(3)
  relevance[:] = 0.5
  metrics = graded.graded(
    image, text, image_of_text, relevance, k=11, include_self=False, form="standard"
  )
  assert metrics["i2i/ndcg"] == pytest.approx(1)
  assert metrics["t2t/alpha_ndcg"] == pytest.approx(1)


def test_standard_ideal_is_the_greedy_one():
  """Clarke's ideal takes at each rank the item with the largest gain; here that order is the order
  of relevance.
  """
  relevance, alpha = [0.2, 0.9, 0.5, 0.7, 0.1], 0.4
  left, order_, seen = list(relevance), [], 0.0
  while left and len(order_) < 3:
    best = max(left, key=lambda rel, seen=seen: rel * (1 - alpha) ** seen)
    left.remove(best)
    order_.append(best)
    seen += best
  ideal = graded._scores(
    np.array([sorted(relevance, reverse=True)[:3]]), alpha=alpha, form="standard"
  )[1][0]
  assert ideal == pytest.approx(slow_list_score(order_, alpha, "standard"))


def test_forms_differ_by_the_cumulative_gain():
  relevance = np.array([[1.0, 1.0, 0.0]])
  released = graded._scores(relevance, alpha=0.5, form="released")[1][0]
  standard = graded._scores(relevance, alpha=0.5, form="standard")[1][0]
  assert released == pytest.approx(1 + 1.5 / np.log2(3) + 1.5 / 2)
  assert standard == pytest.approx(1 + 0.5 / np.log2(3))


def test_several_relevances_share_the_lists():
  image, text, image_of_text, relevance = example()
  both = graded.graded_by(image, text, image_of_text, {"a": relevance, "b": 1 - relevance}, k=4)
  alone = graded.graded(image, text, image_of_text, 1 - relevance, k=4)
  assert both["b/t2t/ndcg"] == alone["t2t/ndcg"] != both["a/t2t/ndcg"]
  assert both["t2t/coverage"] == alone["t2t/coverage"]


def test_a_perfect_model_scores_one():
  image = np.eye(8, dtype=np.float32)
  image_of_text = np.repeat(np.arange(8), 3)
  relevance = (image_of_text[:, None] == np.arange(8)).astype(np.float32)
  for form in graded.FORMS:
    metrics = graded.graded(image, image[image_of_text], image_of_text, relevance, k=3, form=form)
    for task in graded.TASKS:
      assert [metrics[f"{task}/ndcg"], metrics[f"{task}/alpha_ndcg"]] == pytest.approx([1, 1])


def test_one_caption_per_image_works():
  image, text, image_of_text, relevance = example(captions=(1,))
  for include_self in (True, False):
    metrics = graded.graded(image, text, image_of_text, relevance, k=5, include_self=include_self)
    assert all(np.isfinite(list(metrics.values())))


def test_first_novelty_is_the_corrected_one_scaled_as_the_tables_show():
  image, text, image_of_text, relevance = example(captions=(5,), images=30)
  new = graded.graded(image, text, image_of_text, relevance, k=25)
  old = graded.graded(image, text, image_of_text, relevance, k=25, novelty="first")
  for task in ("t2i", "i2i", "t2t"):
    assert new[f"{task}/self_information"] == pytest.approx(0.4 * old[f"{task}/self_information"])
  assert new["i2t/self_information"] == pytest.approx(2 * old["i2t/self_information"] - np.log2(5))


def test_list_metrics_equal_their_pairwise_definition():
  rng = np.random.default_rng(1)
  lists = np.stack([rng.choice(20, 4, replace=False) for _ in range(9)])
  vectors = np.zeros((9, 20))
  np.put_along_axis(vectors, lists, 1, axis=1)
  pairs = [vectors[a] @ vectors[b] / 4 for a, b in itertools.combinations(range(9), 2)]
  assert lists_lib.list_cosine(lists, n_gallery=20) == pytest.approx(np.mean(pairs))
  assert lists_lib.list_cosine(lists[:1], n_gallery=20) == 0
  assert lists_lib.coverage(lists, n_gallery=20) == len(set(lists.ravel())) / 20
  assert lists_lib.coverage(lists, n_gallery=20, coverage_of=400) == len(set(lists.ravel())) / 400
  held = [sum(x in row for row in lists) for x in range(20)]
  assert lists_lib.self_information(lists) == pytest.approx(
    np.mean([-np.log2(held[x] / 9) for x in lists.ravel()])
  )


def test_blocks_do_not_change_the_ideal(monkeypatch):
  matrix = np.random.default_rng(0).random((23, 11)).astype(np.float32)
  monkeypatch.setattr(graded, "BLOCK_BYTES", 4 * 11 * 5)
  np.testing.assert_array_equal(
    graded._largest_in_rows(matrix, 3), -np.sort(-matrix, axis=1)[:, :3]
  )


@pytest.mark.parametrize(
  "spoil, message",
  [
    (lambda r: r[:-1], "expected"),
    (lambda r: r.T, "one row per caption"),
    (lambda r: np.where(r == r[0, 0], np.nan, r), "nan"),
    (lambda r: r + 0.5, "expected \\[0, 1\\]"),
    (lambda r: r - 0.5, "expected \\[0, 1\\]"),
    (lambda r: r.astype(str), "type"),
  ],
)
def test_bad_relevance_is_one_clear_error(spoil, message):
  image, text, image_of_text, relevance = example()
  with pytest.raises(UserError, match=message):
    graded.graded(image, text, image_of_text, spoil(relevance), k=3)


@pytest.mark.parametrize(
  "options, message",
  [
    ({"k": 25}, "k is 25 but the gallery has 12 images"),
    ({"k": 0}, "k is 0"),
    ({"k": 12, "include_self": False}, "without the query itself"),
    ({"k": 3, "form": "clarke"}, "released, standard"),
    ({"k": 3, "alpha": 1.5}, "alpha"),
    ({"k": 3, "novelty": "second"}, "novelty"),
  ],
)
def test_bad_options_are_one_clear_error(options, message):
  with pytest.raises(UserError, match=message):
    graded.graded(*example(), **options)


def test_image_of_text_outside_the_gallery_is_refused():
  image, text, image_of_text, relevance = example()
  with pytest.raises(UserError, match="0 to 11"):
    graded.graded(image, text, image_of_text + 1, relevance, k=3)
  with pytest.raises(UserError, match="has no text"):
    graded.graded(image, text, np.minimum(image_of_text, 10), relevance, k=3)
  with pytest.raises(UserError, match="image_of_text is"):
    graded.graded(image, text, image_of_text[:-1], relevance, k=3)


def test_order_consistency_equals_loops():
  image, text, image_of_text, _ = example(5)
  i, t = unit(image), unit(text)
  for margin in (0.0, 0.1):
    counts = np.zeros(3)
    outranked = 0
    for q, j in enumerate(image_of_text):
      others = [x for x in range(len(i)) if x != j]
      foreign = [x for x in range(len(t)) if image_of_text[x] != j]
      i_n, c_n = (
        max(others, key=lambda x, q=q: i[x] @ t[q]),
        max(foreign, key=lambda x, j=j: t[x] @ i[j]),
      )
      p = i[j] @ t[q]
      counts += [
        p > i[i_n] @ i[j] + margin,
        p > t[c_n] @ t[q] + margin,
        p > i[i_n] @ t[c_n] + margin,
      ]
      outranked += max(t[x] @ t[q] for x in foreign) >= p
    by_image = [
      max(i[x] @ i[j] for x in range(len(i)) if x != j) >= max(t[image_of_text == j] @ i[j])
      for j in range(len(i))
    ]
    shares = consistency.order_consistency(image, text, image_of_text, margin=margin)
    assert list(shares.values()) == pytest.approx(
      [*counts / len(t), np.mean(by_image), outranked / len(t)]
    )


def test_order_consistency_needs_a_second_image():
  with pytest.raises(UserError, match="at least 2"):
    consistency.order_consistency(np.ones((1, 2)), np.ones((4, 2)), np.zeros(4, int))


def test_i2i_diversity_counts_an_image_once_or_once_per_caption():
  image, text, owner, relevance = example(images=20)
  found = {
    diversity: graded.graded(image, text, owner, relevance, k=6, diversity=diversity)
    for diversity in graded.DIVERSITY
  }
  ranked = graded.ranked_lists(image, text, k=6)["i2i"]
  for diversity, queries in (("once", np.arange(20)), ("released", owner)):
    pairs = [
      len(set(ranked[queries[a]]) & set(ranked[queries[b]])) / 6
      for a, b in itertools.permutations(range(len(queries)), 2)
    ]
    assert found[diversity]["i2i/list_cosine"] == pytest.approx(np.mean(pairs))
  assert found["released"]["i2i/list_cosine"] > found["once"]["i2i/list_cosine"]
  same = {name for name in found["once"] if found["once"][name] == found["released"][name]}
  assert set(found["once"]) - same == {"i2i/list_cosine"}
  with pytest.raises(UserError, match="diversity is 'twice'; expected one of once, released"):
    graded.graded(image, text, owner, relevance, k=6, diversity="twice")
