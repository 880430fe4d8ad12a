"""Splits of your own images: as given, by lists of names, or by a hash of the images themselves."""

import concurrent.futures
import hashlib
import os
import pathlib

import numpy as np

from xmr.data.files import opened, read_file
from xmr.data.own.rows import split_in_name
from xmr.errors import UserError
from xmr.storage import files

# Upper ends of the shares: 80 % train, 10 % val, 10 % test.
_TRAIN, _VAL = 0.8, 0.9
_SPLIT_AT = 2.0**64


def given(images, folder, *, restval=False):
  """Takes the splits that the source, lists of names or folders give, in place.

  Args:
    images: list with .name, .split ("" where the source gives none) and .where.
    folder: names.Folder.  restval: config.data.restval.
  Returns:
    (images that belong to a split, or to none yet; how the splits are given, "" where they are
    not).
  Raises:
    UserError: some images have a split and others have none, or none is of train.
  """
  found = {image.split for image in images}
  if found != {""}:
    how = "as given"
    for image in images:
      if not image.split:
        raise UserError(
          f"{image.where}: image {image.name} has no split, others have one; "
          "expected train, val or test"
        )
      if image.split == "restval":
        image.split = "train" if restval else "out"
    left = "{:,} images of restval are left out, config.data.restval=True trains on them"
  else:
    of, used = lists(folder, [image.name for image in images])
    how = "as listed in " + ", ".join(used) if used else _by_folder(images)
    for row, image in enumerate(images if used else ()):
      image.split = of.get(row, "out")
    left = "{:,} images are in no list and left out"
  count = sum(image.split == "out" for image in images)
  images = [image for image in images if image.split != "out"]
  if how and not any(image.split == "train" for image in images):
    raise UserError(
      f"{folder.root}: no image is of split train, {len(images):,} are of others; expected some of "
      "train"
    )
  return images, how + ("; " + left.format(count) if count else "")


def _by_folder(images):
  """Takes splits from the folders of the images where every one lies in one of a split, and there
  are several; returns how the splits are given.
  """
  found = []
  for image in images:
    folders = map(split_in_name, image.name.split("/")[:-1])
    found.append(next(filter(None, folders), None))
  if None in found or "train" not in found or len(set(found)) < 2:
    return ""
  for image, split in zip(images, found, strict=True):
    image.split = split
  return "by the images' folders"


def lists(folder, names):
  """Returns {row: split} by files that list names of images, a name per line, as
  Flickr_8k.trainImages.txt does.

  Args:
    folder: names.Folder.  names: [N] paths of the images, or names.
  Returns:
    ({row: split}, [paths of the lists]).
  Raises:
    UserError: an image is in two lists of different splits.
  """
  rows, of, used = {}, {}, []
  for row, name in enumerate(names):
    base = os.path.basename(name).lower()
    for key in {name.lower(), base, os.path.splitext(base)[0]}:
      rows.setdefault(key, []).append(row)
  for path in folder.sources:
    split = split_in_name(os.path.basename(path))
    if split is None or not path.lower().endswith((".txt", ".lst")):
      continue
    text = read_file(os.path.join(folder.root, path)).decode("utf-8-sig", errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    names_of = [line.replace("\\", "/").removeprefix("./").lower() for line in lines]
    listed = [rows.get(name) or rows.get(os.path.basename(name), []) for name in names_of]
    if not listed or not listed[0] or sum(map(bool, listed)) < len(listed) / 2:
      continue
    used.append(path)
    for row in (row for found in listed for row in found):
      if of.setdefault(row, split) != split:
        raise UserError(
          f"{path}: image {names[row]} is listed for {of[row]} and for {split}; expected one split"
        )
  return of, used


def digests(images, cache_dir, key):
  """Returns the digest of each image's bytes, kept in the cache.

  Args:
    images: [N] (path, offset, bytes); offset None is the whole file.
    cache_dir: config.data.cache_dir.  key: str, another one where an image has changed.
  Returns:
    [N] uint64, the first eight bytes of SHA-256.
  Raises:
    UserError: an image that cannot be read.
  """
  cache = pathlib.Path(cache_dir).expanduser()
  path = cache / f"own-{hashlib.sha256(key.encode()).hexdigest()[:16]}.digests.npy"
  try:
    found = files.read_array(path, key=path.name)
    if found.shape == (len(images),) and found.dtype == np.uint64:
      return found
  except (OSError, ValueError):
    pass  # Not there yet, or damaged: it is made anew.
  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    found = np.fromiter(pool.map(_digest, images, chunksize=64), np.uint64, len(images))
  try:
    cache.mkdir(parents=True, exist_ok=True)
    files.write_array(path, found, key=path.name)
  except OSError as error:
    raise UserError(
      f"config.data.cache_dir: cannot write to {cache}: {error.strerror}; expected a "
      "writable folder"
    ) from None
  return found


def _digest(image):
  return int.from_bytes(hashlib.sha256(image_bytes(*image)).digest()[:8], "big")


def image_bytes(path, offset, size):
  """Returns the bytes of an image: a file, or a part of a tar file."""
  if offset is None:
    return read_file(path, what="an image")
  with opened(path, what="a tar file") as file:
    file.seek(offset)
    return file.read(size)


def by_hash(digest, split):
  """Returns the splits with those filled in that are not given.

  A number in [0, 1) made of the image's bytes decides: below 0.8 train, below 0.9 val, else test.
  It depends on nothing but the image: more rows move none, and copies stay together. Where some
  splits are given, those that are not are taken out of train by the same numbers.

  Args:
    digest: [N] uint64.  split: [N] str, "" where none is given.
  Returns:
    [N] str.
  Raises:
    UserError: too few different images for three splits.
  """
  split = np.array(split, dtype="<U8")
  open_ = [name for name in ("test", "val") if not (split == name).any()]
  split[split == ""] = "train"
  if not open_:
    return split
  pool, number = split == "train", digest / _SPLIT_AT
  share = {"val": (number >= _TRAIN) & (number < _VAL), "test": number >= _VAL}
  different = np.unique(digest[pool])
  if len(different) <= len(open_):
    raise UserError(
      f"{len(different)} different images are too few for train, {' and '.join(open_)}; "
      f"expected at least {len(open_) + 1}, or a column that names the split"
    )
  taken = {name: pool & share[name] for name in open_}
  left = pool & ~np.any(list(taken.values()), axis=0)
  if not left.any() or not all(rows.any() for rows in taken.values()):
    # Few images: the highest numbers, one image with its copies each.
    taken = {
      name: pool & (digest == number) for name, number in zip(open_, different[::-1], strict=False)
    }
  for name, rows in taken.items():
    split[rows] = name
  return split
