"""The graph of frequent words with near vectors, its Laplacian, and texts as signals on it."""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib

import numpy as np

from xmr.data.text import SPECIAL, Vocabulary, load_glove
from xmr.errors import UserError
from xmr.ops.unit import unit
from xmr.storage import files

BLOCK = 1024  # words whose similarities to all are held at a time
SIGNALS = ("count", "log", "tfidf")


@dataclasses.dataclass(frozen=True)
class TextGraph:
  """Words and their rescaled Laplacian L~ in compressed rows.

  Attributes:
    words: [N] str, sorted.
    values: [E] float32.  columns: [E] int32.  starts: [N + 1] int32.
    idf: [N] float32, ln(T / number of training texts with the word).
    report: counts for the log: words, edges, isolated, largest and mean degree, training tokens in
      the graph.
  """

  words: list[str]
  values: np.ndarray
  columns: np.ndarray
  starts: np.ndarray
  idf: np.ndarray
  report: dict


def build(
  token_lists,
  *,
  min_count=9,
  neighbours=8,
  vectors="word2vec",
  dim=50,
  epochs=5,
  seed=0,
  cache_dir=None,
):
  """Returns the graph of the training texts' words, from the cache if it holds the same inputs'.

  Vertices are the words that occur at least `min_count` times. i - j is an edge where i is among
  the k nearest words of j or j among those of i, by cosine of their vectors, exactly. L = I -
  D^-1/2 A D^-1/2 and, with lmax = 2, L~ = 2 L / lmax - I = -D^-1/2 A D^-1/2. A word without a
  vector (or alone) is an isolated vertex: its row of L~ is zero, so it keeps its own signal through
  the even terms and takes none from others.

  The group counts 6,973 English Wikipedia words of more than 8 occurrences and 5,907 of more than
  10. The training texts here give 6,498 and 5,525 in lower case, 6,876 and 5,818 with their
  capitals.

  Args:
    token_lists: T lists of str, training texts only.
    min_count: 9 is the group's "> 8".  neighbours: k.
    vectors: "word2vec", trained on these texts by gensim (window 5, min_count 1, as the group; one
      thread, so that a seed gives one graph), or the path of a GloVe text file.
    dim, epochs, seed: of word2vec.
    cache_dir: folder of built graphs, or None.
  Returns:
    TextGraph.
  Raises:
    UserError: fewer words than k + 1, no gensim, a bad GloVe file, a cache that cannot be written.
  References:
    yul_graph_build and the first author's notes on arXiv 1802.00985: k = 8, word2vec of size 50.
  """
  counts = collections.Counter(word for tokens in token_lists for word in tokens)
  words = sorted(
    word for word, count in counts.items() if count >= min_count and word not in SPECIAL
  )
  if len(words) <= neighbours:
    raise UserError(
      f"config.graph.min_count={min_count} leaves {len(words)} words; expected more than "
      f"config.graph.neighbours={neighbours}"
    )
  settings = {
    "min_count": min_count,
    "k": neighbours,
    "vectors": vectors,
    "dim": dim,
    "epochs": epochs,
    "seed": seed,
  }
  path = _cache_path(cache_dir, settings, token_lists)
  arrays = _read(path) if path else None
  if arrays is None:
    matrix = _vectors(
      token_lists, words, counts, vectors=vectors, dim=dim, epochs=epochs, seed=seed
    )
    arrays = laplacian(nearest(matrix, neighbours), len(words))
    if path:
      _write(path, arrays)
  present = collections.Counter(word for tokens in token_lists for word in set(tokens))
  degree = np.diff(arrays["starts"])
  report = {
    "words": len(words),
    "edges": int(degree.sum()) // 2,
    "isolated": int(np.sum(degree == 0)),
    "largest_degree": int(degree.max()),
    "mean_degree": round(float(degree.mean()), 2),
    "tokens": counts.total(),
    "tokens_in_graph": sum(counts[word] for word in words),
  }
  idf = np.log(len(token_lists) / np.array([present[word] for word in words])).astype(np.float32)
  return TextGraph(words, **arrays, idf=idf, report=report)


def nearest(vectors, k):
  """The k nearest other rows of each row by cosine, exactly, a block of rows at a time.

  Args:
    vectors: [N, d] float; a row of zeros has no neighbours and is nobody's.
    k: int, below N.
  Returns:
    [N, k] int32, -1 where a row has fewer; ties go to the lower row.
  """
  rows = unit(np.asarray(vectors, np.float32))
  empty = ~rows.any(axis=1)
  found = np.empty((len(rows), k), np.int32)
  for start in range(0, len(rows), BLOCK):
    scores = rows[start : start + BLOCK] @ rows.T
    scores[:, empty] = -np.inf
    scores[np.arange(len(scores)), np.arange(start, start + len(scores))] = -np.inf
    found[start : start + BLOCK] = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found[start : start + BLOCK][
      np.take_along_axis(scores, found[start : start + BLOCK], axis=1) == -np.inf
    ] = -1
  found[empty] = -1
  return found


def laplacian(neighbours, nodes):
  """L~ = -D^-1/2 A D^-1/2 of the graph with an edge where either end counts the other among its
  nearest.

  Args:
    neighbours: [N, k] int, -1 for none.  nodes: N.
  Returns:
    {"values": [E] float32, "columns": [E] int32, "starts": [N + 1] int32}, symmetric, columns
    rising within a row.
  """
  from scipy import sparse

  rows = np.repeat(np.arange(nodes), neighbours.shape[1])
  columns = neighbours.ravel()
  rows, columns = rows[columns >= 0], columns[columns >= 0]
  adjacency = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(nodes, nodes)).tocsr()
  adjacency = ((adjacency + adjacency.T) > 0).astype(np.float64).tocsr()
  adjacency.sort_indices()
  degree = np.diff(adjacency.indptr)
  root = 1 / np.sqrt(np.maximum(degree, 1))
  values = -np.repeat(root, degree) * root[adjacency.indices]
  return {
    "values": values.astype(np.float32),
    "columns": adjacency.indices.astype(np.int32),
    "starts": adjacency.indptr.astype(np.int32),
  }


def signal(token_lists, graph, *, kind="count", names=None):
  """Texts as signals on the graph.

  count: occurrences of the word (as the group).   log: ln(1 + count).   tfidf: log times idf, in
  unit rows times sqrt(N) / 10, so that an entry is of the order of a count.

  Args:
    token_lists: T lists of str.  graph: TextGraph of N words.  kind: as above.
    names: T str that name the texts in errors, or None.
  Returns:
    [T, N] float32.
  Raises:
    UserError: unknown kind, or a text without a word of the graph.
  """
  if kind not in SIGNALS:
    raise UserError(f"config.graph.signal is {kind!r}; expected one of {', '.join(SIGNALS)}")
  number = {word: i for i, word in enumerate(graph.words)}
  result = np.zeros((len(token_lists), len(number)), np.float32)
  for row, tokens in enumerate(token_lists):
    for word in tokens:
      if word in number:
        result[row, number[word]] += 1
  empty = np.flatnonzero(~result.any(axis=1))
  if len(empty):
    name = f" ({names[empty[0]]})" if names else ""
    raise UserError(
      f"text {empty[0]}{name} has none of the {len(number):,} words of the graph ({len(empty)} "
      "such texts); "
      "expected at least one: lower config.graph.min_count"
    )
  if kind == "count":
    return result
  result = np.log1p(result)
  if kind == "tfidf":
    result *= graph.idf
    norm = np.linalg.norm(result, axis=1, keepdims=True)
    result *= np.sqrt(len(number)) / 10 / np.where(norm > 0, norm, 1)
  return result


def _vectors(token_lists, words, counts, *, vectors, dim, epochs, seed):
  if vectors != "word2vec":
    vocabulary = Vocabulary(
      [*SPECIAL, *words], [0] * len(SPECIAL) + [counts[word] for word in words]
    )
    matrix, report = load_glove(os.path.expanduser(vectors), vocabulary, seed=0)
    other, _ = load_glove(os.path.expanduser(vectors), vocabulary, seed=1)
    matrix[(matrix != other).any(axis=1)] = (
      0  # Random vectors of words that the file does not have.
    )
    if report["types_found"] <= 1:
      raise UserError(
        f"{vectors} has {report['types_found']} of the {len(words):,} words of the graph; "
        "expected most of them"
      )
    return matrix[len(SPECIAL) :]
  try:
    from gensim.models import Word2Vec
  except ImportError:
    raise UserError(
      "config.graph.vectors=word2vec needs gensim: pip install -e '.[graph]'; or name a GloVe file"
    ) from None
  # Hashes of strings differ from process to process; gensim seeds with them unless told otherwise.
  model = Word2Vec(
    token_lists,
    vector_size=dim,
    window=5,
    min_count=1,
    workers=1,
    epochs=epochs,
    seed=seed,
    hashfxn=lambda text: int.from_bytes(hashlib.md5(text.encode()).digest()[:4]),
  )
  return np.stack([model.wv[word] for word in words])


def _cache_path(cache_dir, settings, token_lists):
  if cache_dir is None:
    return None
  vectors = settings["vectors"]
  if vectors != "word2vec":
    status = (
      os.stat(os.path.expanduser(vectors)) if os.path.exists(os.path.expanduser(vectors)) else None
    )
    settings = settings | {"file": [status.st_size, status.st_mtime_ns] if status else None}
  digest = hashlib.sha256(json.dumps([1, settings], sort_keys=True).encode())
  for tokens in token_lists:
    digest.update("\0".join(tokens).encode() + b"\1")
  return pathlib.Path(cache_dir).expanduser() / f"text_graph-{digest.hexdigest()[:16]}.npz"


def _read(path):
  """Returns the arrays of a kept graph; None where there is none, or a damaged or another one."""
  try:
    found = files.read_arrays(path)
  except UserError:
    return None
  same = str(found.pop("of", "")) == path.name
  return found if same and found.keys() == {"values", "columns", "starts"} else None


def _write(path, arrays):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its own name, which says what it was built of: a file of another name is another graph.
    files.write_arrays(path, arrays | {"of": np.array(path.name)}, compressed=False)
  except OSError as error:
    raise UserError(
      f"config.data.cache_dir: cannot write {path}: {error.strerror}; expected a writable folder"
    ) from None
