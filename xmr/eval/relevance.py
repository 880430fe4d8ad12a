"""Where graded relevance of captions for images comes from: ROUGE-L, a SPICE file, categories."""

import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Int32, Integer, Shaped
from rapidfuzz import process
from rapidfuzz.distance import LCSseq

from xmr.errors import UserError
from xmr.eval.graded import checked_relevance
from xmr.eval.positives import checked_image_of_text
from xmr.eval.readers import open_npy
from xmr.storage import files

BLOCK_PAIRS = 1 << 22  # caption pairs whose common subsequences are held at a time


def rouge_l(
  texts: Sequence[str],
  image_of_text: Integer[np.ndarray, " T"] | Sequence[int],
  *,
  n_images: int | None = None,
  beta: float = 1.2,
  cache_dir: str | os.PathLike | None = None,
  workers: int = -1,
) -> Float32[np.ndarray, "T N"]:
  """Relevance of every caption for every image: ROUGE-L of the caption against the captions of the
  image.

  Words are text.lower().split(" "). With LCS the longest common subsequence of words, over the
  captions r of image j:
    P = max_r LCS(q, r) / len(q);  Rc = max_r LCS(q, r) / len(r);
    relevance[q, j] = (1 + beta^2) P Rc / (Rc + beta^2 P), and 0 where no word is shared.
  A caption has relevance 1 for its own image.

  Args:
    texts: T captions; image_of_text: [T] int, the image (0..N-1) of each, in any order and number.
    n_images: N; None is the largest image_of_text + 1.
    beta: weight of recall; 1.2 as released.
    cache_dir: folder that keeps the matrix under a hash of captions, assignment and beta; None
      computes anew.
    workers: threads; -1 is one per core.

  Returns:
    [T, N] float32 in [0, 1]; memory-mapped and read-only with a cache.

  Raises:
    UserError: image_of_text does not fit texts or n_images, or leaves an image without a caption.

  References:
    Messina et al., TERAN 2021 and Mallea et al. 2023, as released (the same arithmetic as COCO's
    ROUGE-L).
  """
  if n_images is None:
    n_images = int(np.max(image_of_text, initial=-1)) + 1
  image_of_text = checked_image_of_text(image_of_text, n_texts=len(texts), n_images=n_images)
  if cache_dir is None:
    return _rouge_l(texts, image_of_text, n_images, beta, workers)
  path = _cache_path(cache_dir, "rouge_l 1", texts, image_of_text, n_images, beta)
  cached = _read_cache(path, (len(texts), n_images), np.float32)
  if cached is not None:
    return cached
  matrix = _rouge_l(texts, image_of_text, n_images, beta, workers)
  _write_cache(path, matrix)
  # Memory-mapped, so that the matrix itself can go.
  cached = _read_cache(path, matrix.shape, np.float32)
  return matrix if cached is None else cached


def rouge_l_above(
  texts: Sequence[str],
  image_of_text: Integer[np.ndarray, " T"] | Sequence[int],
  *,
  above: float,
  n_images: int | None = None,
  beta: float = 1.2,
  cache_dir: str | os.PathLike | None = None,
  workers: int = -1,
) -> Int32[np.ndarray, "P 2"]:
  """The pairs of a caption and an image that is not its own whose ROUGE-L relevance exceeds a
  bound.

  Captions are compared in blocks, so that memory holds the pairs found and never [T, N].

  Args:
    texts, image_of_text, n_images, beta, cache_dir, workers: as of `rouge_l`; the cache keeps the
    pairs.
    above: bound in [0, 1); a pair with relevance > above is listed.
  Returns:
    [P, 2] int32: caption and image, ordered by caption, then by image; memory-mapped with a cache.
  Raises:
    UserError: as `rouge_l`, or above is outside [0, 1).
  """
  if not 0 <= above < 1:
    raise UserError(f"the bound on relevance is {above}; expected from 0 to below 1")
  if n_images is None:
    n_images = int(np.max(image_of_text, initial=-1)) + 1
  image_of_text = checked_image_of_text(image_of_text, n_texts=len(texts), n_images=n_images)
  path = None
  if cache_dir is not None:
    path = _cache_path(
      cache_dir, f"rouge_l_above 1 {above!r}", texts, image_of_text, n_images, beta
    )
    cached = _read_cache(path, (None, 2), np.int32)
    if cached is not None:
      return cached
  found = []
  for rows, relevance in _rouge_l_blocks(texts, image_of_text, n_images, beta, workers):
    relevance[np.arange(len(relevance)), image_of_text[rows]] = 0
    text, image = np.nonzero(relevance > above)
    found.append(np.stack([text + rows.start, image], axis=1).astype(np.int32))
  pairs = np.concatenate(found) if found else np.zeros((0, 2), np.int32)
  if path is not None:
    _write_cache(path, pairs)
  return pairs


def load_spice(path: str | os.PathLike, *, n_texts: int, n_images: int) -> Float[np.ndarray, "T N"]:
  """Opens a relevance file in the released layout, e.g. f30k_precomp-test-spice.npy, without
  reading it into memory.

  The layout is float32 [T, N] in row-major order, row = caption and column = image of the split,
  without a header (despite the name); a true .npy file of the same array is read as well. -1 marks
  entries that were never computed.

  Args:
    path: the file; n_texts, n_images: T and N of the split.

  Returns:
    [T, N] float32, memory-mapped.

  Raises:
    UserError: no such file, the size of another split, NaN or values outside [0, 1].

  References:
    Messina et al., TERAN, compute_relevance.py as released.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no relevance file {path}")
  with path.open("rb") as file:
    has_header = file.read(6) == b"\x93NUMPY"
  if has_header:
    relevance = open_npy(path)
  else:
    size, expected = path.stat().st_size, 4 * n_texts * n_images
    if size != expected:
      raise UserError(
        f"{path} holds {size // 4} float32 values ({size} bytes); expected {n_texts * n_images} "
        f"({expected} bytes) for "
        f"{n_texts} captions and {n_images} images: is it of another split?"
      )
    relevance = np.memmap(path, np.float32, "r", shape=(n_texts, n_images))
  if relevance.size and relevance.min() == -1:
    raise UserError(
      f"{path} holds {(relevance == -1).sum()} entries of -1: its computation was never finished"
    )
  return checked_relevance(relevance, n_texts=n_texts, n_images=n_images, name=str(path))


def category_relevance(
  text_label: Shaped[np.ndarray, " T"] | Sequence, image_label: Shaped[np.ndarray, " N"] | Sequence
) -> Float32[np.ndarray, "T N"]:
  """Returns [T, N] float32: 1 where caption and image have the same category ([T] and [N] int),
  else 0.
  """
  return (np.asarray(text_label)[:, None] == np.asarray(image_label)[None]).astype(np.float32)


def _rouge_l(texts, image_of_text, n_images, beta, workers):
  relevance = np.zeros((len(texts), n_images), np.float32)
  for rows, block in _rouge_l_blocks(texts, image_of_text, n_images, beta, workers):
    relevance[rows] = block
  return relevance


def _rouge_l_blocks(texts, image_of_text, n_images, beta, workers):
  """Yields (slice of captions, their relevance for all images [rows, N] float32)."""
  words = [text.lower().split(" ") for text in texts]
  number = {
    word: index
    for index, word in enumerate(sorted({word for sentence in words for word in sentence}))
  }
  sequences = [[number[word] for word in sentence] for sentence in words]
  length = np.array([len(sentence) for sentence in sequences], np.float32)
  order, images, levels = _by_level(image_of_text, n_images)
  choices, choice_length = [sequences[index] for index in order], length[order]

  # One byte per pair lets rapidfuzz compare many captions in one vector register.
  kind = np.uint8 if length.max(initial=0) < 256 else np.uint32
  block = max(1, BLOCK_PAIRS // max(1, len(texts)))
  for start in range(0, len(texts), block):
    rows = slice(start, start + block)
    common = process.cdist(
      sequences[rows], choices, scorer=LCSseq.similarity, dtype=kind, workers=workers
    )
    share = common / choice_length
    # Images in descending number of captions: the l-th captions of all images that have one are a
    # prefix.
    longest = np.zeros((len(common), n_images), kind)
    recall = np.zeros((len(common), n_images), np.float32)
    for level in levels:
      count = level.stop - level.start
      np.maximum(longest[:, :count], common[:, level], out=longest[:, :count])
      np.maximum(recall[:, :count], share[:, level], out=recall[:, :count])
    precision = longest / length[rows, None]
    weight = np.float32(beta) ** 2
    below = recall + weight * precision
    score = np.divide(
      (1 + weight) * precision * recall, below, out=np.zeros_like(below), where=below > 0
    )
    relevance = np.empty_like(score)
    relevance[:, images] = np.minimum(score, 1)
    yield rows, relevance


def _by_level(image_of_text, n_images):
  """Orders captions so that each image's first caption comes in the first run, its second in the
  second, and so on.

  Returns:
    order: [T] rows of captions; images: [N] in descending number of captions; levels: list of
      slices of order, where entry m of each slice belongs to images[m].
  """
  count = np.bincount(image_of_text, minlength=n_images)
  images = np.argsort(-count, kind="stable")
  rank = np.empty(n_images, np.int64)
  rank[images] = np.arange(n_images)
  grouped = np.argsort(image_of_text, kind="stable")
  first = np.cumsum(count) - count
  level = np.empty(len(image_of_text), np.int64)
  level[grouped] = np.arange(len(grouped)) - first[image_of_text[grouped]]
  order = np.lexsort((rank[image_of_text], level))
  edges = np.concatenate([[0], np.cumsum(np.bincount(level))])
  return order, images, [slice(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True)]


def _cache_path(cache_dir, kind, texts, image_of_text, n_images, beta):
  digest = hashlib.sha256(f"{kind} {n_images} {float(beta)!r}".encode())
  digest.update(image_of_text.astype("<i8").tobytes())
  for text in texts:
    digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
  return pathlib.Path(cache_dir).expanduser() / f"{kind.split()[0]}-{digest.hexdigest()[:32]}.npy"


def _read_cache(path, shape, dtype):
  """Opens a cached array of a shape, where None stands for any size; None where there is none, or
  another.
  """
  try:
    array = files.read_array(path, key=path.name)
  except (OSError, ValueError):  # none, damaged, or another's under this name: computed anew
    return None
  fits = array.ndim == len(shape) and all(
    want in (None, n) for want, n in zip(shape, array.shape, strict=True)
  )
  return array if fits and array.dtype == dtype else None


def _write_cache(path, matrix):
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_array(path, matrix, key=path.name)
  except OSError as error:
    raise UserError(
      f"cannot write relevance to {path}: {error.strerror}; expected a cache_dir with room"
    ) from None
