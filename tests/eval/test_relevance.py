"""ROUGE-L against the textbook recursion and rouge-score; relevance files of the wrong kind are
refused.
"""

import gzip
import json
import time

import numpy as np
import pytest

from xmr.errors import UserError
from xmr.eval import relevance


def slow_lcs(a, b):
  table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
  for i, x in enumerate(a):
    for j, y in enumerate(b):
      table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
  return table[-1][-1]


def slow_rouge_l(texts, image_of_text, n_images, beta=1.2):
  words = [text.lower().split(" ") for text in texts]
  out = np.zeros((len(texts), n_images))
  for q, query in enumerate(words):
    for j in range(n_images):
      references = [r for r, owner in zip(words, image_of_text, strict=True) if owner == j]
      precision = max((slow_lcs(query, r) / len(query) for r in references), default=0)
      recall = max((slow_lcs(query, r) / len(r) for r in references), default=0)
      if precision and recall:
        out[q, j] = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
  return out


def sentences(seed=0, images=7, captions=(3, 1, 5, 2)):
  rng = np.random.default_rng(seed)
  image_of_text = np.repeat(np.arange(images), np.resize(captions, images))
  rng.shuffle(image_of_text)
  vocabulary = ["A", "a", "dog", "runs", "on", "Grass", "grass", "", ".", "ship"]
  return [
    " ".join(rng.choice(vocabulary, rng.integers(1, 12))) for _ in image_of_text
  ], image_of_text


def captions_of(path):
  with gzip.open(path, "rt") as file:
    images = json.load(file)["images"]
  return [[sentence["raw"] for sentence in image["sentences"]] for image in images]


@pytest.mark.parametrize("beta", [1.2, 0.5])
def test_rouge_l_equals_the_recursion_for_any_number_of_captions(beta):
  texts, image_of_text = sentences()
  ours = relevance.rouge_l(texts, image_of_text, beta=beta)
  np.testing.assert_allclose(ours, slow_rouge_l(texts, image_of_text, 7, beta), atol=1e-6)
  assert ours.dtype == np.float32
  np.testing.assert_array_equal(ours[np.arange(len(texts)), image_of_text], 1)


def test_blocks_do_not_change_rouge_l(monkeypatch):
  texts, image_of_text = sentences(1)
  whole = relevance.rouge_l(texts, image_of_text)
  monkeypatch.setattr(relevance, "BLOCK_PAIRS", 3 * len(texts))
  np.testing.assert_array_equal(relevance.rouge_l(texts, image_of_text), whole)


def test_captions_of_more_than_255_words_do_not_overflow():
  texts = ["w " * 299 + "w", "w " * 289 + "w x", "x"]
  ours = relevance.rouge_l(texts, [0, 1, 2])
  np.testing.assert_allclose(ours, slow_rouge_l(texts, [0, 1, 2], 3), atol=1e-6)


def test_rouge_l_of_real_captions_equals_the_recursion(shared):
  captions = captions_of(shared / "data/coco5k_text/dataset_coco_test5k.json.gz")[:8]
  texts, image_of_text = sum(captions, []), np.arange(40) // 5
  np.testing.assert_allclose(
    relevance.rouge_l(texts, image_of_text), slow_rouge_l(texts, image_of_text, 8), atol=1e-6
  )


def test_with_one_caption_each_it_is_the_f_measure_of_rouge_score():
  scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(
    ["rougeL"], use_stemmer=False
  )
  texts = ["a dog runs on grass", "a brown dog on the grass", "two ships at sea", "the sea"]
  ours = relevance.rouge_l(texts, np.arange(4), beta=1.0)
  theirs = [[scorer.score(r, q)["rougeL"].fmeasure for r in texts] for q in texts]
  np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_second_call_reads_the_cache_and_other_captions_do_not(tmp_path, monkeypatch):
  texts, image_of_text = sentences(2)
  first = relevance.rouge_l(texts, image_of_text, cache_dir=tmp_path)
  assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]
  calls = []
  compute = relevance._rouge_l
  monkeypatch.setattr(relevance, "_rouge_l", lambda *args: calls.append(1) or compute(*args))
  np.testing.assert_array_equal(relevance.rouge_l(texts, image_of_text, cache_dir=tmp_path), first)
  assert not calls
  for other in (
    {"texts": [*texts[:-1], texts[-1] + " x"]},
    {"image_of_text": image_of_text[::-1]},
    {"beta": 1.0},
  ):
    relevance.rouge_l(
      **({"texts": texts, "image_of_text": image_of_text, "cache_dir": tmp_path} | other)
    )
  assert len(calls) == 3


def test_damaged_cache_is_computed_anew(tmp_path):
  texts, image_of_text = sentences(3)
  first = np.array(relevance.rouge_l(texts, image_of_text, cache_dir=tmp_path))
  (path,) = tmp_path.iterdir()
  path.write_bytes(path.read_bytes()[:150])
  np.testing.assert_array_equal(relevance.rouge_l(texts, image_of_text, cache_dir=tmp_path), first)


def test_spice_is_read_in_the_released_layout(tmp_path):
  matrix = np.random.default_rng(0).random((10, 2)).astype(np.float32)
  matrix.tofile(tmp_path / "raw.npy")
  np.save(tmp_path / "header.npy", matrix)
  for name in ("raw.npy", "header.npy"):
    np.testing.assert_array_equal(
      relevance.load_spice(tmp_path / name, n_texts=10, n_images=2), matrix
    )


def test_bad_spice_files_are_one_clear_error(tmp_path):
  good = np.full((10, 2), 0.5, np.float32)
  cases = {
    "another split": (good[:5], "another split"),
    "nan": (np.where(np.arange(20).reshape(10, 2) == 7, np.nan, good), r"\[3, 1\] is nan"),
    "above": (good + 1, r"expected \[0, 1\]"),
    "unfinished": (np.where(np.arange(20).reshape(10, 2) == 7, -1, good), "never finished"),
  }
  for name, (matrix, message) in cases.items():
    path = tmp_path / f"{name}.npy"
    matrix.astype(np.float32).tofile(path)
    with pytest.raises(UserError, match=message):
      relevance.load_spice(path, n_texts=10, n_images=2)
  np.save(tmp_path / "header.npy", good)
  with pytest.raises(UserError, match="shape"):
    relevance.load_spice(tmp_path / "header.npy", n_texts=20, n_images=1)
  with pytest.raises(UserError, match="no relevance file"):
    relevance.load_spice(tmp_path / "absent.npy", n_texts=10, n_images=2)


def test_categories_are_relevant_where_equal():
  matrix = relevance.category_relevance([3, 1, 3], [1, 3])
  np.testing.assert_array_equal(matrix, [[0, 1], [1, 0], [0, 1]])


def test_wrong_assignment_is_one_clear_error():
  with pytest.raises(UserError, match="shape"):
    relevance.rouge_l(["a", "b"], [0])
  with pytest.raises(UserError, match="image 1 has no text"):
    relevance.rouge_l(["a", "b"], [0, 2])
  with pytest.raises(UserError, match="0 to 0"):
    relevance.rouge_l(["a", "b"], [0, 1], n_images=1)


def test_twenty_five_million_pairs_take_seconds(shared):
  captions = captions_of(shared / "data/coco5k_text/dataset_coco_test5k.json.gz")[:1000]
  texts, image_of_text = sum(captions, []), np.arange(5000) // 5
  start = time.process_time()
  matrix = relevance.rouge_l(texts, image_of_text)
  seconds = time.process_time() - start
  print(f"rouge_l: 25 M pairs in {seconds:.2f} s of all cores together")
  assert matrix.shape == (5000, 1000)
  assert seconds < 5


@pytest.mark.slow
def test_coco_5k_in_one_go(shared):
  captions = captions_of(shared / "data/coco5k_text/dataset_coco_test5k.json.gz")
  texts, image_of_text = sum(captions, []), np.arange(25000) // 5
  start = time.perf_counter()
  matrix = relevance.rouge_l(texts, image_of_text)
  print(f"rouge_l: 625 M pairs in {time.perf_counter() - start:.1f} s")
  np.testing.assert_array_equal(matrix[np.arange(25000), image_of_text], 1)
