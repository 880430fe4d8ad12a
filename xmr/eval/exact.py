"""The score that decides ranks and ties: float64, summed in one fixed order, so that it depends
only on two rows.
"""

import concurrent.futures
import functools
import hashlib
import os

import numpy as np
from jaxtyping import Float32, Float64, Integer, Shaped

from xmr import parallel
from xmr.errors import UserError
from xmr.ops.arrays import Array

KINDS = ("cosine", "dot", "order")
# Norms this close to 1 are those of rows that were normalised in float32; dividing again would only
# add rounding.
UNIT_SLACK = 1e-6
CHUNK = 1 << 17  # float64 entries that a core holds at a time: they stay in its cache
COLUMNS = 1024  # gallery rows held in float64 at a time


class Rows:
  """One side's embeddings on the host, checked: `.x` [N, D] float32, `.norm` and `.weight` [N]
  float64.

  `weight` is what a row is multiplied by before the product: 1 / |x| for cosine (1 where |x| is 1
  to float32 precision, 0 for a row of zeros), 1 for the other kinds.
  """

  def __init__(self, x, *, name, kind):
    self.x = embeddings(x, name=name)
    self.norm = np.empty(len(self.x))
    step = max(1, CHUNK // max(1, self.x.shape[1]))
    for begin in range(0, len(self.x), step):
      square = self.x[begin : begin + step].astype(np.float64)
      square *= square
      total = tree_sum(square)
      if not np.isfinite(total).all():
        raise UserError(
          f"{name} has NaN or infinity in row {begin + int(np.argmin(np.isfinite(total)))}; "
          "expected numbers"
        )
      self.norm[begin : begin + step] = np.sqrt(total)
    self.weight = np.ones(len(self.x))
    if kind == "cosine":
      self.weight = np.divide(1.0, self.norm, out=np.zeros_like(self.norm), where=self.norm > 0)
      self.weight[np.abs(self.norm - 1) <= UNIT_SLACK] = 1

  def __len__(self):
    return len(self.x)

  def take(self, index):
    """Some of the rows, by slice or index array."""
    part = object.__new__(Rows)
    part.x, part.norm, part.weight = self.x[index], self.norm[index], self.weight[index]
    return part

  @functools.cached_property
  def top(self):
    """The largest norm."""
    return self.norm.max()

  @functools.cached_property
  def first_equal(self):
    """[N] int, the first row with the same bytes as each row."""
    first = {}
    digests = (hashlib.blake2b(row, digest_size=16).digest() for row in self.x)
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)])

  @functools.cached_property
  def distinct(self):
    """(Rows without repetition, [N] int that says which of them each row is)."""
    first, of = np.unique(self.first_equal, return_inverse=True)
    return (self if len(first) == len(self) else self.take(first)), of


def embeddings(x: Shaped[Array, "N D"], *, name: str) -> Float32[np.ndarray, "N D"]:
  """Returns the whole array on the host; UserError for another shape."""
  x = parallel.gather(x) if hasattr(x, "is_fully_addressable") else np.asarray(x)
  if x.ndim != 2 or not x.size:
    raise UserError(f"{name} has shape {x.shape}; expected [rows, dimensions], none of them 0")
  if x.dtype.kind not in "fiuV":
    raise UserError(f"{name} holds {x.dtype}; expected float32")
  return np.ascontiguousarray(x, np.float32)


def sides(query, gallery, *, kind, names=("query", "gallery"), text_query=False):
  """Returns both sides as Rows of one width; UserError for an unknown kind or different widths.

  "order" takes the query for the image; where it is the text, both sides change their sign, which
  swaps the roles: max(0, q - g) = max(0, (-g) - (-q)).
  """
  if kind not in KINDS:
    raise UserError(f"kind is {kind!r}; expected one of {', '.join(KINDS)}")
  query, gallery = Rows(query, name=names[0], kind=kind), Rows(gallery, name=names[1], kind=kind)
  if query.x.shape[1] != gallery.x.shape[1]:
    raise UserError(
      f"{names[0]} has shape {query.x.shape} and {names[1]} {gallery.x.shape}; expected [Q, D] "
      "and [G, D]"
    )
  if text_query and kind == "order":
    query.x, gallery.x = -query.x, -gallery.x
  return query, gallery


def pair_scores(
  query: Rows,
  gallery: Rows,
  i: Integer[np.ndarray, " M"],
  j: Integer[np.ndarray, " M"],
  *,
  kind: str,
) -> Float64[np.ndarray, " M"]:
  """Scores of the pairs (query row i[m], gallery row j[m]).

  cosine, dot: (sum over d of q_d g_d) w_q w_g with the weights of Rows; order: -sqrt(sum over d of
  max(0, g_d - q_d)^2). Products of two float32 are exact in float64, and the sum is a fixed tree,
  so the score of a pair depends on the two rows alone: equal rows tie exactly, on any machine and
  in blocks of any size.
  """
  scores = np.empty(len(i))
  step = max(1, CHUNK // query.x.shape[1])

  def chunk(begin):
    a, b = i[begin : begin + step], j[begin : begin + step]
    terms = gallery.x[b].astype(np.float64)
    if kind == "order":
      terms -= query.x[a]
      np.maximum(terms, 0, out=terms)
      terms *= terms
      scores[begin : begin + step] = -np.sqrt(tree_sum(terms))
    else:
      terms *= query.x[a]
      scores[begin : begin + step] = tree_sum(terms) * query.weight[a] * gallery.weight[b]

  begins = range(0, len(i), step)
  if len(begins) < 2:
    list(map(chunk, begins))
  else:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(chunk, begins))
  return scores


def all_scores(query: Rows, gallery: Rows, *, kind: str) -> Float64[np.ndarray, "Q G"]:
  """Scores of all pairs, right to the rounding of float64 (`slack`).

  "order" has no faster form than `pair_scores`.
  """
  if kind == "order":
    i, j = (x.reshape(-1) for x in np.indices((len(query), len(gallery))))
    return pair_scores(query, gallery, i, j, kind=kind).reshape(len(query), len(gallery))
  found, wide = np.empty((len(query), len(gallery))), query.x.astype(np.float64)
  for begin in range(0, len(gallery), COLUMNS):
    piece = slice(begin, begin + COLUMNS)
    found[:, piece] = wide @ gallery.x[piece].astype(np.float64).T
  found *= query.weight[:, None]
  found *= gallery.weight
  return found


def tree_sum(x: Float64[np.ndarray, "M D"]) -> Float64[np.ndarray, " M"]:
  """Sum of each row of x, which is overwritten: halves are added to halves, so no library chooses
  the order.
  """
  n = x.shape[1]
  while n > 1:
    half = n // 2
    x[:, :half] += x[:, n - half : n]
    n -= half
  return x[:, 0].copy()


def slack(
  query: Rows, gallery: Rows, *, kind: str, epsilon: float
) -> tuple[Float64[np.ndarray, " Q"], Float64[np.ndarray, " G"]]:
  """Bounds of |rounded score - exact score|, per query against every item and per item against
  every query.

  A sum of D products, in any order, with or without fused multiply-add, errs by at most D u |q| |g|
  (Higham, Accuracy and Stability, 3.1) in arithmetic of unit roundoff u = epsilon / 2; 64 more are
  granted for the scaling and for products of split operands.

  Returns:
    [Q] and [G] float64.
  """
  unit = (query.x.shape[1] + 64) * epsilon / 2 * 1.01
  q, g = query.norm * query.weight, gallery.norm * gallery.weight
  if kind == "order":
    # The squares of small differences vanish in float32: their root is at most 1e-15 of the largest
    # norm.
    floor = 1e-15 * max(q.max(), g.max())
    return unit * (q + g.max()) + floor, unit * (g + q.max()) + floor
  floor = 1e-30 * q.max() * g.max()
  return unit * q * g.max() + floor, unit * g * q.max() + floor
