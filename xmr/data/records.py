"""Prepared images: array records in a cache folder, made once, and either complete or absent."""

import bisect
import collections.abc
import contextlib
import hashlib
import io
import os
import pathlib
import shutil
import stat
import sys
import tempfile

from xmr.errors import UserError
from xmr.storage.locks import locked


def image_files(root, names):
  """Returns the files of images, with what tells whether one has changed.

  Args:
    root: folder of the images; may itself be a link.
    names: [N] paths below root, as checked by split_file.read_json.
  Returns:
    [N] tuples (name, bytes, modification time in ns).
  Raises:
    UserError: an image that is absent, no file, empty, or a link that leads outside root.
  """
  if not os.path.isdir(root):
    raise UserError(
      f"{root} is no folder; expected the {len(names):,} images of the dataset "
      "(config.data.image=pixels)"
    )
  real_root, folders, files = os.path.realpath(root), {}, []
  for name in names:
    folder, base = os.path.split(name)
    if folder not in folders:
      folders[folder] = _entries(root, real_root, folder)
    entry = folders[folder].get(base)
    if entry is None:
      raise UserError(
        f"image {name} is not in {root}; expected all {len(names):,} images that the JSON names"
      )
    if entry.is_symlink() and not os.path.exists(entry.path):
      raise UserError(f"image {name} in {root} is a link that leads nowhere; expected an image")
    if entry.is_symlink() and not _inside(entry.path, real_root):
      raise UserError(
        f"image {name} in {root} is a link to {os.path.realpath(entry.path)}; expected a file "
        f"inside {root}"
      )
    status = entry.stat()
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
      raise UserError(f"image {name} in {root} is no file, or empty; expected an image")
    files.append((name, status.st_size, status.st_mtime_ns))
  return files


def _entries(root, real_root, folder):
  path = os.path.join(root, folder)
  if not os.path.isdir(path):
    return {}
  if not _inside(path, real_root):
    raise UserError(
      f"{path} is a link to {os.path.realpath(path)}; expected a folder inside {root} (link "
      f"{root} itself)"
    )
  with os.scandir(path) as entries:
    return {entry.name: entry for entry in entries}


def _inside(path, real_root):
  return os.path.commonpath([os.path.realpath(path), real_root]) == real_root


def prepare(cache_dir, name, make_builder, *, key, counts):
  """Returns the data sources of a prepared dataset, and prepares it first if it is absent.

  The set is made in a temporary folder beside the target and moved when it is complete, so that an
  interruption leaves nothing that looks complete. Of several processes one prepares, and the others
  wait for it.

  Args:
    cache_dir: folder for all prepared sets; made if absent.
    name: str, of the dataset.
    make_builder: function of a folder that returns (TFDS builder, its download config).
    key: str, everything that the records depend on; another key is another set.
    counts: {split: images} that the set must have.
  Returns:
    {split: TFDS data source of encoded images}.
  Raises:
    UserError: the cache cannot be written, is full or damaged; an image that is no image.
  """
  cache = pathlib.Path(cache_dir).expanduser()
  target = cache / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

  def waiting():
    print(f"xmr: waiting for another process that prepares {target}", file=sys.stderr)

  if not target.is_dir():
    try:
      cache.mkdir(parents=True, exist_ok=True)
      # On a file system without locks the final move alone keeps order.
      with locked(f"{target}.lock", busy=waiting) as alone:
        if not target.is_dir():
          if alone:
            for rest in cache.glob(f"{target.name}.tmp-*"):
              shutil.rmtree(rest, ignore_errors=True)
          _build(target, make_builder)
    except OSError as error:
      raise UserError(
        f"config.data.cache_dir: cannot prepare {name} in {cache}: {error}; expected a writable "
        "folder with room for the images"
      ) from None
  return _open(target, make_builder, counts)


def _build(target, make_builder):
  temporary = tempfile.mkdtemp(prefix=f"{target.name}.tmp-", dir=target.parent)
  try:
    builder, download_config = make_builder(temporary)
    # TFDS reports on standard output, and its progress bars would cover ours.
    with contextlib.redirect_stdout(io.StringIO()):
      builder.download_and_prepare(download_config=download_config)
    os.chmod(temporary, 0o777 & ~_umask())
    try:
      os.rename(temporary, target)
    except OSError:
      if not target.is_dir():  # Else another process was first.
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask


def _open(target, make_builder, counts):
  try:
    sources = make_builder(str(target))[0].sources()
    found = {split: len(source) for split, source in sources.items()}
    for source in sources.values():
      _ = source[0], source[len(source) - 1]
  except Exception as error:  # Whatever a damaged file makes the reader raise.
    raise UserError(f"{target} is damaged ({error}); delete it to prepare it again") from None
  if found != counts:
    raise UserError(
      f"{target} holds {found} images; expected {counts}. Delete it to prepare it again"
    )
  return sources


class Pixels(collections.abc.Sequence):
  """Encoded images of a split, one after the other from one or more data sources; pixels[row] is
  bytes.
  """

  def __init__(self, sources, image_id):
    self._sources = list(sources)
    self._first = [0]
    for source in self._sources:
      self._first.append(self._first[-1] + len(source))
    self._image_id = image_id
    if len(image_id) != self._first[-1]:
      raise ValueError(f"{self._first[-1]} records; expected {len(image_id)}, one per image")

  def __len__(self):
    return self._first[-1]

  def __getitem__(self, row):
    if not 0 <= row < len(self):
      raise IndexError(f"row {row}; expected 0 to {len(self) - 1}")
    part = bisect.bisect_right(self._first, row) - 1
    try:
      record = self._sources[part][int(row) - self._first[part]]
    except RuntimeError as error:  # A checksum of the file differs.
      reason = str(error).splitlines()[0]
      raise UserError(
        f"record {row} of the cache cannot be read ({reason}); delete the cache"
      ) from None
    if record["image_id"] != self._image_id[row]:
      raise UserError(
        f"record {row} holds image {record['image_id']}; expected {self._image_id[row]}: delete "
        "the cache"
      )
    return record["image"]
