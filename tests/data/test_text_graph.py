"""The graph of words against dense NumPy, its cache, and texts as signals on it."""

import numpy as np
import pytest
from scipy import sparse

from xmr.data import text_graph
from xmr.errors import UserError

TEXTS = [["a", "b", "b", "c"], ["a", "c", "d"], ["a", "b", "d", "e"], ["c", "c", "f"]]


@pytest.fixture
def glove(tmp_path):
  """A vector file in which f has no vector."""
  path = tmp_path / "vectors.txt"
  rng = np.random.default_rng(0)
  path.write_text(
    "".join(f"{word} {' '.join(f'{x:.4f}' for x in rng.normal(size=4))}\n" for word in "abcde")
  )
  return str(path)


def test_nearest_is_exact_for_every_block(monkeypatch):
  vectors = np.random.default_rng(0).normal(size=(23, 5)).astype(np.float32)
  unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
  scores = unit @ unit.T
  np.fill_diagonal(scores, -np.inf)
  for block in (1, 7, 100):
    monkeypatch.setattr(text_graph, "BLOCK", block)
    np.testing.assert_array_equal(
      text_graph.nearest(vectors, 4), np.argsort(-scores, axis=1)[:, :4]
    )


def test_laplacian_equals_the_dense_formula_with_edges_from_either_side():
  neighbours = np.array([[1, 2], [2, 0], [0, 1], [0, 4], [3, 0], [-1, -1]])
  adjacency = np.zeros((6, 6))
  for row, found in enumerate(neighbours):
    for other in found[found >= 0]:
      adjacency[row, other] = adjacency[other, row] = 1
  degree = adjacency.sum(axis=1)
  root = np.divide(1, np.sqrt(degree), out=np.zeros(6), where=degree > 0)
  normalised = np.eye(6) - root[:, None] * adjacency * root[None, :]
  found = text_graph.laplacian(neighbours, 6)
  dense = sparse.csr_matrix(
    (found["values"], found["columns"], found["starts"]), shape=(6, 6)
  ).toarray()
  np.testing.assert_allclose(dense, 2 * normalised / 2 - np.eye(6), atol=1e-7)
  assert np.abs(np.linalg.eigvalsh(dense)).max() <= 1 + 1e-6
  assert not dense[5].any()


def test_words_need_the_minimum_count(glove):
  assert text_graph.build(TEXTS, min_count=1, neighbours=2, vectors=glove).words == list("abcdef")
  assert text_graph.build(TEXTS, min_count=3, neighbours=2, vectors=glove).words == list("abc")


def test_a_word_without_a_vector_is_isolated(glove):
  graph = text_graph.build(TEXTS, min_count=1, neighbours=2, vectors=glove)
  assert graph.report["isolated"] == 1 and graph.starts[6] == graph.starts[5]
  assert graph.report["words"] == 6 and graph.report["edges"] * 2 == len(graph.values)


def test_the_cache_gives_the_same_graph_and_other_inputs_another(glove, tmp_path, monkeypatch):
  cache = tmp_path / "cache"

  def build(texts=TEXTS, **more):
    options = {"min_count": 1, "neighbours": 2, "vectors": glove, "cache_dir": cache}
    return text_graph.build(texts, **options | more)

  first = build()
  with monkeypatch.context() as patch:
    patch.setattr(text_graph, "_vectors", None)
    again = build()
  np.testing.assert_array_equal(first.values, again.values)
  build(neighbours=1)
  build([*TEXTS, ["a"]])
  assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("harm", ["cut", "of another"])
def test_a_damaged_graph_or_another_one_in_the_cache_is_built_again(glove, tmp_path, harm):
  def build(k=2):
    return text_graph.build(
      TEXTS, min_count=1, neighbours=k, vectors=glove, cache_dir=tmp_path / "cache"
    )

  first = build()
  (path,) = (tmp_path / "cache").iterdir()
  whole = path.read_bytes()
  build(k=1)
  (other,) = {*(tmp_path / "cache").iterdir()} - {path}
  path.write_bytes(whole[:40] if harm == "cut" else other.read_bytes())
  np.testing.assert_array_equal(build().columns, first.columns)
  assert path.read_bytes() == whole


def test_signals_are_counts_their_logarithm_or_weighted(glove):
  graph = text_graph.build(TEXTS, min_count=1, neighbours=2, vectors=glove)
  count = text_graph.signal(TEXTS, graph)
  np.testing.assert_array_equal(count[0], [1, 2, 1, 0, 0, 0])
  np.testing.assert_allclose(text_graph.signal(TEXTS, graph, kind="log"), np.log1p(count))
  weighted = text_graph.signal(TEXTS, graph, kind="tfidf")
  expected = np.log1p(count) * np.log(4 / (count > 0).sum(axis=0))
  expected *= np.sqrt(6) / 10 / np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(weighted, expected, rtol=1e-5)


def test_a_text_without_words_of_the_graph_is_named(glove):
  graph = text_graph.build(TEXTS, min_count=3, neighbours=2, vectors=glove)
  with pytest.raises(UserError, match=r"text 1 \(second\) has none of the 3 words"):
    text_graph.signal([["a"], ["f", "zzz"]], graph, names=["first", "second"])


@pytest.mark.parametrize(
  "arguments, message",
  [
    ({"min_count": 9}, "min_count=9 leaves 0 words; expected more than config.graph.neighbours=2"),
    ({"vectors": "absent.txt"}, "absent.txt"),
  ],
)
def test_what_gives_no_graph_is_said(glove, arguments, message):
  with pytest.raises(UserError, match=message):
    text_graph.build(TEXTS, **{"min_count": 1, "neighbours": 2, "vectors": glove} | arguments)


def test_unknown_signal_is_refused(glove):
  graph = text_graph.build(TEXTS, min_count=1, neighbours=2, vectors=glove)
  with pytest.raises(UserError, match="config.graph.signal is 'bm25'; expected one of count"):
    text_graph.signal(TEXTS, graph, kind="bm25")


def test_word2vec_gives_one_graph_for_one_seed():
  pytest.importorskip("gensim", reason="the extra 'graph'", exc_type=ImportError)
  rng = np.random.default_rng(0)
  texts = [[f"w{i}" for i in rng.integers(0, 30, 60)] for _ in range(20)]
  one, two = (text_graph.build(texts, min_count=1, neighbours=3, dim=8, epochs=1) for _ in range(2))
  np.testing.assert_array_equal(one.columns, two.columns)
  assert not np.array_equal(
    one.columns, text_graph.build(texts, min_count=1, neighbours=3, dim=8, epochs=1, seed=1).columns
  )


def test_without_gensim_it_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "gensim", None)
  monkeypatch.setitem(__import__("sys").modules, "gensim.models", None)
  with pytest.raises(UserError, match=r"pip install -e '.\[graph\]'"):
    text_graph.build(TEXTS, min_count=1, neighbours=2)
