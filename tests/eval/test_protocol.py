"""Recall against loops and the released metrics."""

import importlib

import numpy as np
import pytest

from xmr.errors import UserError
from xmr.eval import positives, recall

similarity = importlib.import_module("xmr.eval.ranks")
NAMES = [f"{d}/{n}" for d in ("i2t", "t2i") for n in ("r1", "r5", "r10", "medr", "meanr")]


def example(seed=0, images=20, captions=(1, 2, 5, 3), width=5, low=-2, high=3):
  """Small whole numbers, so that scores are exact and often tie; texts in any order, 1 to 5 per
  image.
  """
  rng = np.random.default_rng(seed)
  image_of_text = np.repeat(np.arange(images), np.resize(captions, images))
  rng.shuffle(image_of_text)
  image = rng.integers(low, high, (images, width)).astype(np.float32)
  text = image[image_of_text] + rng.integers(-1, 2, (len(image_of_text), width)).astype(np.float32)
  return image, text, image_of_text


def loop_recall(scores, image_of_text):
  n_images, n_texts = scores.shape
  i2t, t2i, ties = [], [], {"i2t": 0, "t2i": 0}
  for i in range(n_images):
    best = max(scores[i, t] for t in range(n_texts) if image_of_text[t] == i)
    others = [scores[i, t] for t in range(n_texts) if image_of_text[t] != i]
    i2t.append(sum(s >= best for s in others))
    ties["i2t"] += any(s == best for s in others)
  for t in range(n_texts):
    own = scores[image_of_text[t], t]
    others = [scores[i, t] for i in range(n_images) if i != image_of_text[t]]
    t2i.append(sum(s >= own for s in others))
    ties["t2i"] += any(s == own for s in others)
  out = {}
  for name, ranks in (("i2t", i2t), ("t2i", t2i)):
    for k in (1, 5, 10):
      out[f"{name}/r{k}"] = 100 * sum(r < k for r in ranks) / len(ranks)
    out[f"{name}/medr"] = np.floor(np.median(ranks)) + 1
    out[f"{name}/meanr"] = np.mean(ranks) + 1
  out["rsum"] = sum(out[f"{d}/r{k}"] for d in ("i2t", "t2i") for k in (1, 5, 10))
  return out | {f"{d}/ties": n for d, n in ties.items()}


def order_scores(image, text):
  return -np.sqrt((np.maximum(text[None].astype(np.float64) - image[:, None], 0) ** 2).sum(-1))


def test_recall_equals_the_released_found(golden):
  for name in ("recall_ranks_small", "recall_ranks_1k"):
    data = golden(name)
    n = len(data["image"])
    found = recall(data["image"], data["text"], np.arange(5 * n) // 5)
    expected = dict(zip(NAMES, [*data["i2t"], *data["t2i"]], strict=True))
    assert {key: found[key] for key in NAMES} == pytest.approx(expected, rel=1e-12)
    assert found["rsum"] == pytest.approx(data["i2t"][:3].sum() + data["t2i"][:3].sum())
    assert found["i2t/ties"] == found["t2i/ties"] == 0


@pytest.mark.parametrize("block", (1, 7, 512))
@pytest.mark.parametrize("kind", ("dot", "order"))
def test_recall_with_ties_equals_a_loop(kind, block):
  image, text, image_of_text = example()
  scores = image @ text.T if kind == "dot" else order_scores(image, text)
  found = recall(image, text, image_of_text, kind=kind, block=block)
  expected = loop_recall(scores, image_of_text)
  assert found == pytest.approx(expected)
  assert found["i2t/ties"] > 0 and found["t2i/ties"] > 0


def test_text_queries_of_order_embeddings_keep_the_direction(golden):
  data = golden("order_similarity")
  image, text = data["image"], data["text"][:12]
  found = recall(image, text, np.arange(12), kind="order")
  assert found == pytest.approx(loop_recall(data["order_similarity"][:, :12], np.arange(12)))


def test_order_of_texts_does_not_matter():
  image, text, image_of_text = example()
  order = np.argsort(image_of_text, kind="stable")
  assert recall(image, text[order], image_of_text[order]) == recall(image, text, image_of_text)


def test_one_caption_per_image():
  image, text, image_of_text = example(captions=(1,))
  assert recall(image, text, image_of_text, kind="dot") == pytest.approx(
    loop_recall(image @ text.T, image_of_text)
  )


def test_collapsed_model_recalls_nothing():
  rows = np.full((50, 8), 8**-0.5, np.float32)
  found = recall(rows, np.repeat(rows, 5, axis=0), np.arange(250) // 5)
  assert found["rsum"] == 0
  assert found["i2t/ties"] == 50 and found["t2i/ties"] == 250


def test_folds_are_scored_apart_and_averaged():
  image, text, image_of_text = example(images=24)
  found = recall(image, text, image_of_text, folds=4, kind="dot")
  parts = []
  for f in range(4):
    own = image_of_text // 6 == f
    parts.append(loop_recall(image[6 * f : 6 * f + 6] @ text[own].T, image_of_text[own] - 6 * f))
  assert {n: found[n] for n in NAMES} == pytest.approx(
    {n: np.mean([p[n] for p in parts]) for n in NAMES}
  )
  assert found["rsum"] == pytest.approx(np.mean([p["rsum"] for p in parts]))
  assert found["i2t/ties"] == sum(p["i2t/ties"] for p in parts)


def test_both_directions_take_one_product_per_block(monkeypatch):
  calls, tile = [], similarity.tile_counts
  monkeypatch.setattr(similarity, "tile_counts", lambda *a, **k: calls.append(1) or tile(*a, **k))
  image, text, image_of_text = example(images=300)
  recall(image, text, image_of_text, block=128)
  assert len(calls) == 3 * -(-len(text) // 256)


def test_bad_ground_truth_names_what_and_where():
  image, text, image_of_text = example()
  with pytest.raises(
    UserError, match=r"image_of_text is int64 of shape \(3,\); expected integers of shape"
  ):
    recall(image, text, image_of_text[:3])
  with pytest.raises(UserError, match="image_of_text is float64"):
    recall(image, text, image_of_text * 1.0)
  wrong = image_of_text.copy()
  wrong[7] = 20
  with pytest.raises(UserError, match=r"image_of_text\[7\] is 20; expected 0 to 19"):
    recall(image, text, wrong)
  wrong[image_of_text == 4] = 5
  wrong[7] = image_of_text[7]
  with pytest.raises(UserError, match=r"image 4 has no text \(1 of 20 have none\)"):
    recall(image, text, wrong)
  text[11, 0] = np.nan
  with pytest.raises(UserError, match="text has NaN or infinity in row 11"):
    recall(image, text, image_of_text, folds=2)
  with pytest.raises(UserError, match="folds is 3; expected a divisor of the 20 images"):
    recall(image, image[image_of_text], image_of_text, folds=3)


def test_nothing_to_score_is_one_line():
  with pytest.raises(UserError, match="0 images and 0 texts; expected at least one of each"):
    positives.checked_image_of_text([], n_texts=0, n_images=0)
