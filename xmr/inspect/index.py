"""A folder of images as a gallery: encoded once, kept on disk, searched in milliseconds."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import uuid

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from xmr.errors import UserError
from xmr.eval import similarity
from xmr.inspect.pictures import IMAGE_ENDINGS
from xmr.ops.unit import unit
from xmr.storage import files

BLOCK = 256  # images encoded and saved at a time
ROUNDING = 4e-6  # error of a float32 sum of some thousand products, relative to the norms


@dataclasses.dataclass(frozen=True)
class Gallery:
  """Images of a folder.

  Attributes:
    folder: pathlib.Path.
    names: [N] paths relative to it, sorted.
    embeddings: [N, D] float32.
    skipped: [(name, reason)] of images that could not be read.
    encoded: int, images that were not in the cache.
  """

  folder: pathlib.Path
  names: list[str]
  embeddings: np.ndarray
  skipped: list[tuple[str, str]]
  encoded: int


def encode_folder(run, folder, *, cache_dir=None, progress=True):
  """Encodes those images of a folder and its subfolders that the cache does not hold yet.

  An image is encoded again when its size or modification time has changed. The work is saved every
  BLOCK images, so a command that was stopped goes on from there. Unreadable images are left out and
  listed; every call tries them again.

  Args:
    run: xmr.inspect.Run on pixels.
    folder: path.
    cache_dir: folder that keeps embeddings; None: that of the run's config.
    progress: show a progress line on standard error.
  Returns:
    Gallery.
  Raises:
    UserError: no folder, no readable image in it, a run on features, or a cache that cannot be
      written.
  """
  folder = pathlib.Path(folder)
  keys = pictures_of(folder)
  if not keys:
    raise UserError(
      f"{folder} has no pictures; expected files that end in {', '.join(IMAGE_ENDINGS)}"
    )
  cache = _Cache(pathlib.Path(cache_dir or run.config.data.cache_dir).expanduser(), run, folder)
  known = cache.read()
  missing = [key for key in keys if key not in known]
  skipped = []
  with (
    concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    tqdm(
      total=len(missing), desc="encoding", unit="image", disable=not (progress and missing)
    ) as bar,
  ):
    for begin in range(0, len(missing), BLOCK):
      part = missing[begin : begin + BLOCK]
      crops = list(pool.map(lambda key: _crop(run, folder / key[0]), part))
      good = [
        (key, crop) for key, crop in zip(part, crops, strict=True) if not isinstance(crop, str)
      ]
      skipped += [
        (key[0], crop) for key, crop in zip(part, crops, strict=True) if isinstance(crop, str)
      ]
      if good:
        x = run.encode_crops(np.stack([crop for _, crop in good]))
        cache.write([key for key, _ in good], x)
        known |= {key: row for (key, _), row in zip(good, x, strict=True)}
      bar.update(len(part))
  found = [key for key in keys if key in known]
  if not found:
    name, reason = skipped[0]
    raise UserError(f"none of the {len(keys)} pictures in {folder} can be read; {name}: {reason}")
  embeddings = np.stack([known[key] for key in found])
  cache.tidy(found, embeddings)
  return Gallery(
    folder, [key[0] for key in found], embeddings, skipped, len(missing) - len(skipped)
  )


def encode_features(run, path):
  """Encodes a file of image features as a gallery whose names are row numbers.

  Args:
    run: xmr.inspect.Run on image features.  path: .npy file of [N, F] floats.
  Returns:
    Gallery whose folder is the file.
  Raises:
    UserError: no such file, or not the features that the run reads.
  """
  x = rows_of(path)
  return Gallery(
    pathlib.Path(path), [str(row) for row in range(len(x))], run.encode_image(x), [], len(x)
  )


def rows_of(path):
  """Returns the array of a .npy file, memory-mapped; UserError for any other file."""
  try:
    return files.read_array(path)
  except OSError as error:
    reason = error.strerror or "no .npy file"
    raise UserError(f"cannot read features {path}: {reason}") from None
  except ValueError as error:
    raise UserError(f"{path} is no .npy file of numbers: {error}") from None


def pictures_of(folder):
  """Returns [(relative path, bytes, modification time in ns)] of a folder's images, by path."""
  if not folder.is_dir():
    raise UserError(f"--gallery: {folder} is not a folder")
  found = []
  for parent, _, names in os.walk(folder):
    for name in names:
      path = pathlib.Path(parent, name)
      if name.lower().endswith(IMAGE_ENDINGS) and path.is_file():
        status = path.stat()
        found.append((path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns))
  return sorted(found)


def _crop(run, path):
  """Returns [S, S, 3] uint8, or the reason (str) why there is none."""
  if run.config.data.image == "features":
    run.crop(path)
  try:
    return run.crop(path)
  except UserError as error:
    return str(error)


class _Cache:
  """Embeddings and the images that they belong to, as files in a folder of this run and gallery."""

  def __init__(self, root, run, folder):
    digest = hashlib.sha256(
      f"2 {folder.resolve()} {run.fingerprint}".encode("utf-8", "surrogateescape")
    ).hexdigest()
    self.folder, self.dim = root / "galleries" / digest[:32], run.config.model.dim
    self.files, self.held = [], 0

  def read(self):
    """Returns {key: [D] float32} of all files; damaged ones are dropped."""
    known = {}
    for path in filter(pathlib.Path.is_file, sorted(self.folder.glob("*.npz"))):
      try:
        # The file is opened here, as np.load leaves its own open when it fails.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
          keys, x = json.loads(bytes(saved["keys"])), saved["x"]
          of = str(saved["of"])
        if x.shape != (len(keys), self.dim) or x.dtype != np.float32 or of != self.folder.name:
          raise ValueError("another shape, or of another run or folder")
        known |= {tuple(key): row for key, row in zip(keys, x, strict=True)}
      except Exception:  # Any error of a damaged file: it is encoded again.
        with contextlib.suppress(OSError):
          path.unlink()
        continue
      self.files.append(path)
      self.held += len(keys)
    return known

  def write(self, keys, x):
    """Saves some embeddings in one file, whole or not at all."""
    try:
      self.folder.mkdir(parents=True, exist_ok=True)
      path = self.folder / f"{uuid.uuid4().hex}.npz"
      keys_as_bytes = np.frombuffer(json.dumps(keys).encode(), np.uint8)
      arrays = {"x": x, "keys": keys_as_bytes, "of": np.array(self.folder.name)}
      files.write_arrays(path, arrays, compressed=False)
    except OSError as error:
      raise UserError(
        f"cannot write {self.folder}: {error.strerror}; give another --cache_dir"
      ) from None
    self.files.append(path)
    self.held += len(keys)

  def tidy(self, keys, x):
    """Merges many files into one, without the images that are gone."""
    if len(self.files) > 1 or self.held > len(keys):
      old = list(self.files)
      self.write(keys, x)
      for path in old:
        path.unlink(missing_ok=True)


class Index:
  """Embeddings that answer one query at a time, fast.

  "exact" scores every item in float32, and in float64 where scores are too close to call; of equal
  scores the lowest index comes first. "faiss" walks a graph of near neighbours (HNSW): it is
  approximate and sublinear, and pays for millions of items.
  """

  def __init__(self, embeddings, *, kind="cosine", backend="exact"):
    """embeddings: [N, D] float.  kind: cosine, dot or order.  backend: exact or faiss.

    Raises:
      UserError: unknown backend, faiss not installed, or faiss with order embeddings.
    """
    if backend not in ("exact", "faiss"):
      raise UserError(f"--index is {backend!r}; expected exact or faiss")
    self.kind, self.backend = kind, backend
    self.rows = np.ascontiguousarray(embeddings, np.float32)
    if kind == "cosine":
      self.rows = unit(self.rows)
    if backend == "faiss":
      self.graph = _graph(self.rows, kind)
    elif kind == "order":
      self.on_device = jnp.asarray(self.rows)
    else:
      self.slack = ROUNDING * (
        1.0 if kind == "cosine" else float(np.linalg.norm(self.rows, axis=1).max())
      )

  def search(self, query, k, *, text_query=False):
    """Returns (scores [k] float32, indices [k] int64) of one query [D]; k is at most the number of
    items.
    """
    query, k = np.asarray(query, np.float32).reshape(-1), min(k, len(self.rows))
    if self.kind == "cosine":
      query = unit(query)
    if self.backend == "faiss":
      scores, found = self.graph.search(query[None], k)
      return scores[0][found[0] >= 0], found[0][found[0] >= 0]
    if self.kind == "order":
      scores, slack = np.asarray(_order(query, self.on_device, text_query=text_query)), 0.0
    else:
      scores, slack = self.rows @ query, 2 * self.slack * float(np.linalg.norm(query))
    least = np.partition(scores, len(scores) - k)[len(scores) - k]
    near = np.flatnonzero(scores >= least - slack)
    if self.kind != "order":
      exact = self.rows[near].astype(np.float64) @ query.astype(np.float64)
    else:
      exact = scores[near]
    best = np.lexsort((near, -exact))[:k]
    return exact[best].astype(np.float32), near[best]


@jax.jit
def _order_of_image(query, gallery):
  return similarity(query[None], gallery, kind="order")[0]


@jax.jit
def _order_of_text(query, gallery):
  return similarity(query[None], gallery, kind="order", text_query=True)[0]


def _order(query, gallery, *, text_query):
  return (_order_of_text if text_query else _order_of_image)(query, gallery)


def _graph(rows, kind):
  if kind == "order":
    raise UserError("--index=faiss knows no order embeddings; expected --index=exact")
  try:
    import faiss
  except ImportError:
    raise UserError("--index=faiss needs faiss: pip install -e '.[serve]'") from None
  graph = faiss.IndexHNSWFlat(rows.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
  graph.hnsw.efConstruction, graph.hnsw.efSearch = 100, 128
  graph.add(rows)
  return graph
