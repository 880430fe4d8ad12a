"""Scores of tokens with tokens for ranking: float32 blocks from the device with a bound of their
rounding, and the float64 score that decides.
"""

import concurrent.futures
import functools
import hashlib
import math
import os
from collections.abc import Iterator

import jax
import numpy as np
from tqdm import tqdm

from xmr.errors import UserError
from xmr.eval.blocks import padded
from xmr.ops import alignment
from xmr.ops.alignment import FORMS, Tokens

BLOCK_BYTES = 32 << 20  # of products of tokens that exist at a time
CHUNK = 1 << 20  # float64 numbers of exact scores that a core holds at a time


class Side:
  """One side's tokens on the host, checked; padding is filled so that it changes no maximum.

  Attributes:
    x: [N, R, D] float32.  mask: [N, R] bool.  top: [N] float64, the largest norm of a row's tokens.
    total: {mean: [N] float64}, the sum of a row's norms; divided by its tokens where mean is True.
    scale: power of two that brings the largest norm near 1.
  """

  def __init__(self, tokens, *, name):
    """Checks Tokens [N, R, D]; UserError for shapes, NaN, a row of no token."""
    x, mask = np.asarray(tokens.x), np.asarray(tokens.mask).astype(bool)
    if x.ndim != 3 or not x.size or mask.shape != x.shape[:2]:
      raise UserError(
        f"{name} has tokens of shape {x.shape} and a mask of shape {mask.shape}; expected "
        "[rows, tokens, dimensions], none of them 0, and [rows, tokens]"
      )
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
      raise UserError(
        f"{name} {empty[0]} has no token, its mask is empty ({len(empty)} of {len(x)} rows); "
        "expected at least one"
      )
    # Trailing tokens that no row has are left out.
    mask = mask[:, : int(np.flatnonzero(mask.any(axis=0))[-1]) + 1]
    self.mask, self.x = mask, np.array(x[:, : mask.shape[1]], np.float32, order="C")
    # Padding as `ops.alignment.filled` makes it: a copy of the first token, or zeros.
    for row in np.flatnonzero(~mask.all(axis=1)):
      self.x[row, ~mask[row]] = 0 if tokens.padding == "zero" else self.x[row, np.argmax(mask[row])]
    norm = np.sqrt(np.einsum("nrd,nrd->nr", self.x, self.x), dtype=np.float64) * mask
    if not np.isfinite(norm).all():
      row = int(np.argmin(np.isfinite(norm).all(axis=1)))
      raise UserError(f"{name} has NaN or infinity in row {row}; expected numbers")
    self.top = norm.max(axis=1)
    self.total = {False: norm.sum(axis=1), True: norm.sum(axis=1) / mask.sum(axis=1)}
    self.scale = float(2.0 ** -np.ceil(np.log2(max(self.top.max(), 1e-18))))

  def __len__(self):
    return len(self.x)

  def take(self, rows):
    """Some of the rows, by slice or index array."""
    part = object.__new__(Side)
    part.x, part.mask, part.top, part.scale = (
      self.x[rows],
      self.mask[rows],
      self.top[rows],
      self.scale,
    )
    part.total = {mean: total[rows] for mean, total in self.total.items()}
    return part

  def block(self, begin, size):
    """Rows begin .. begin + size on the device, scaled; beyond the end there is padding."""
    x = padded(self.x, begin, size)
    return Tokens(
      *jax.device_put((x if self.scale == 1 else x * self.scale, padded(self.mask, begin, size)))
    )

  @functools.cached_property
  def weights(self):
    """{mean: [N, R] float64}: what the best match of each token is multiplied by."""
    mask = self.mask.astype(np.float64)
    return {False: mask, True: mask / mask.sum(axis=1, keepdims=True)}

  @functools.cached_property
  def first_equal(self):
    """[N] int, the first row with the same bytes as each row."""
    first = {}
    return np.array(
      [
        first.setdefault(hashlib.blake2b(x.tobytes() + mask.tobytes()).digest(), i)
        for i, (x, mask) in enumerate(zip(self.x, self.mask, strict=True))
      ]
    )


def sides(first, second, *, names):
  """Both as `Side`; UserError where they do not fit each other."""
  first, second = (Side(x, name=name) for x, name in zip((first, second), names, strict=True))
  if first.x.shape[2] != second.x.shape[2]:
    raise UserError(
      f"{names[0]} has tokens of shape {first.x.shape} and {names[1]} {second.x.shape}; expected "
      "one D"
    )
  return first, second


def blocks(
  first, second, *, form, block=None, by_row=False
) -> Iterator[tuple[int, int, np.ndarray]]:
  """Yields (first row, first column, scores [n, m] float32) of all blocks of the score matrix.

  The device works on the next block while the host looks at one. A terminal shows a line of
  progress after five seconds.
  """
  (n, regions, _), (m, words, _) = first.x.shape, second.x.shape
  if block is None:
    block = block_of(regions, words)
  if block < 1:
    raise UserError(f"block is {block}; expected at least 1")
  rows, columns = min(n, block), min(m, block)
  places = [(r, c) for c in range(0, m, columns) for r in range(0, n, rows)]
  if by_row:
    places.sort()
  scale = 1 / (first.scale * second.scale)

  def scores(r, c, tile):
    tile = np.asarray(tile)[: n - r, : m - c]
    return r, c, tile if scale == 1 else tile * np.float32(scale)

  pending, kept = None, {}
  for r, c in tqdm(places, desc="alignments", unit="block", delay=5, disable=None):
    sides = []
    for name, side, begin, size in (("first", first, r, rows), ("second", second, c, columns)):
      if kept.get(name, (None,))[0] != begin:
        kept[name] = begin, side.block(begin, size)
      sides.append(kept[name][1])
    tile = of_block(*sides, form=form)
    if pending:
      yield scores(*pending)
    pending = r, c, tile
  if pending:
    yield scores(*pending)


of_block = jax.jit(alignment.block, static_argnames="form")


def block_of(regions, words):
  """Returns rows of either side that are scored at a time."""
  return max(1, math.isqrt(BLOCK_BYTES // (4 * regions * words)))


def slack_of(first, second, rows, columns, *, form):
  """Bound of |float32 score - exact score| of some rows and columns, [n, m] float64.

  A product of two tokens errs by at most D u |a| |b| with unit roundoff u; a sum of the best adds
  one u of the whole per term. 64 more are granted for products of split operands.
  """
  of_words, of_regions, mean = FORMS[form]
  terms = first.x.shape[2] + first.x.shape[1] + second.x.shape[1] + 64
  top, total = (
    (first.top[rows], second.top[columns]),
    (first.total[mean][rows], second.total[mean][columns]),
  )
  whole = of_words * top[0][:, None] * total[1] + of_regions * total[0][:, None] * top[1]
  return terms * np.finfo(np.float32).eps / 2 * 1.01 * whole + 1e-30


def pair_scores(first, second, i, j, *, form):
  """Scores of the pairs (row i[m] of first, row j[m] of second), [M] float64.

  One float64 product per pair, of one shape: the score depends on the two rows alone, so equal rows
  tie exactly, in blocks of any size.
  """
  of_words, of_regions, mean = FORMS[form]
  code = first.first_equal[i].astype(np.int64) * len(second) + second.first_equal[j]
  code, index = np.unique(code, return_inverse=True)
  i, j = np.divmod(code, len(second))
  scores = np.empty(len(code))
  (_, regions, dim), (_, words, _) = first.x.shape, second.x.shape
  step = max(1, CHUNK // ((regions + words) * dim))

  def chunk(begin):
    a, b = i[begin : begin + step], j[begin : begin + step]
    x, y = first.x[a].astype(np.float64), second.x[b].astype(np.float64)
    cells = np.matmul(x, y.transpose(0, 2, 1))
    found = np.zeros(len(a))
    if of_words:
      found += of_words * (cells.max(axis=1) * second.weights[mean][b]).sum(axis=1)
    if of_regions:
      found += of_regions * (cells.max(axis=2) * first.weights[mean][a]).sum(axis=1)
    scores[begin : begin + step] = found

  begins = range(0, len(code), step)
  if len(begins) < 2:
    list(map(chunk, begins))
  else:
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
      list(pool.map(chunk, begins))
  return scores[index]
