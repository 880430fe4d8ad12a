"""Your own images and captions, in the format that they are in."""

import dataclasses
import functools
import hashlib
import os

import numpy as np

from xmr.data import features, records
from xmr.data.own import formats, names, report, splits
from xmr.data.own.rows import SPLITS
from xmr.data.split import Splits
from xmr.data.split_file import Source
from xmr.errors import UserError


@dataclasses.dataclass
class Image:
  """An image of a source with its captions: `source` is (path, offset or None, bytes, time),
  `named` its name there.
  """

  name: str
  number: int
  split: str
  where: str
  source: tuple | None
  named: str
  texts: list = dataclasses.field(default_factory=list)
  text_id: list = dataclasses.field(default_factory=list)


def load(config):
  """Returns the splits of a folder of images and captions; its format is found by looking.

  Args:
    config: ConfigDict; reads config.data: dir, captions, columns, cache_dir, image, text, restval
      and the feature files. A row of these is the number of the image, or caption, in the order of
      the source (in Karpathy's JSON imgid and sentid), missing images among them.
  Returns:
    Splits with train, val and test. Those that are not given are taken by a hash of each image's
    bytes; see splits.by_hash.
  Raises:
    UserError: no format is recognised, or something in it is wrong; names file and line.
  """
  data = config.data
  root, named = _folder(data)
  folder = names.Folder(root)
  kind, paths = formats.find(folder, named=named, columns=data.columns)
  rows, of_source = [], []
  for path in paths:
    base = os.path.dirname(path)
    found = kind.read(os.path.join(root, path), path, columns=data.columns, base=base)
    of_source.append(formats.split_of_source(path))
    for row in found:
      row.split = row.split or of_source[-1]
    rows += found
  lines = []
  if {row.split for row in rows} in ({"val"}, {"test"}) and None not in of_source:
    lines = [f"{paths[0]} speaks of {of_source[0]}, and no other split is there: taken as one set"]
    for row in rows:
      row.split = None
  images, missing = _images(rows, folder)
  n_images = max(image.number for image in images) + 1
  n_texts = max(max(image.text_id) for image in images) + 1
  source = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" * (len(paths) > 3))
  lines += _left_out(images, missing, source, data)
  keep = images if data.image == "features" and len(missing) == len(images) else None
  images = keep or [image for image in images if image.source]
  images, how = splits.given(images, folder, restval=data.restval)
  given = sorted({image.split for image in images} & set(SPLITS), key=SPLITS.index)
  lines.insert(
    0,
    f"{source}: {len(images):,} images, {sum(len(image.texts) for image in images):,} captions, "
    f"{len(given)} of 3 splits given",
  )
  digest = _digests(images, data.cache_dir)
  split = splits.by_hash(digest, [image.split for image in images])
  result = _splits(images, split)
  lines += _cut(result, data.max_length)
  said, record = report.of(
    result,
    digest,
    how=how,
    given=given,
    split=split,
    images=images,
    hashed="name: no image is there" if images[0].source is None else "bytes",
  )
  fields = features.attach(
    data,
    n_images=n_images,
    n_texts=n_texts,
    image_rows={name: part.image_id for name, part in result.items()},
    text_rows={name: part.text_id for name, part in result.items()},
  )
  if data.image == "pixels":
    for name, pixels in _pixels(data, images, split, digest).items():
      fields[name]["pixels"] = records.Pixels([pixels], result[name].image_id)
  result = {name: dataclasses.replace(part, **fields[name]) for name, part in result.items()}
  record = {"captions": paths, "missing": [image.name for image in missing], **record}
  return Splits(result, lines=lines + said, record=record, n_images=n_images)


def _folder(data):
  """Returns (folder, file in it that was named, or "")."""
  if not data.dir:
    raise UserError("config.data.dir is empty; expected the folder of your images and captions")
  root = os.path.expanduser(data.dir)
  if os.path.isfile(root):
    return os.path.dirname(root) or ".", os.path.basename(root)
  if not os.path.isdir(root):
    raise UserError(f"config.data.dir: {data.dir} is no folder; expected that of your images")
  return root, data.captions


def _images(rows, folder):
  """Returns ([Image] in the order of the source, those that are missing).

  Raises:
    UserError: an image is in two splits; names both rows.
  """
  found, texts = {}, 0
  for row in rows:
    key, part = row.image, None
    if row.part:
      part = (*row.part, os.stat(row.part[0]).st_mtime_ns)
    else:
      key = folder.find(row.image, base=row.base, where=row.where) or row.image
    image = found.get(key)
    if image is None:
      status = None if part else folder.status(key)
      if status:
        part = (os.path.join(folder.root, key), None, *status)
      number = len(found) if row.image_id is None else row.image_id
      image = found[key] = Image(key, number, row.split or "", row.where, part, row.image)
    elif image.split != (row.split or ""):
      raise UserError(
        f"{row.where}: image {row.image} is in split {row.split}; {image.where} says {image.split}"
      )
    elif not row.part and _other_name(image.named, row.image):
      raise UserError(
        f"{row.where}: image {row.image} is the file {key}, as {image.named} of {image.where} is; "
        "expected a file for each"
      )
    image.texts += row.captions
    image.text_id += row.text_id or range(texts, texts + len(row.captions))
    texts += len(row.captions)
  images = list(found.values())
  return images, [image for image in images if image.source is None]


def _other_name(first, second):
  """Returns whether two names of one file speak of different folders, as train/1.jpg and
  test/1.jpg do where only 1.jpg is there.
  """
  parts = [os.path.normpath(name.replace("\\", "/")).lower().split("/") for name in (first, second)]
  short, long = sorted(parts, key=len)
  return long[-len(short) :][:-1] != short[:-1]


def _left_out(images, missing, source, data):
  """Returns the line that names missing images; UserError where all of them are and pixels are
  asked for.
  """
  if not missing:
    return []
  shown = ", ".join(image.name for image in missing[:3])
  if len(missing) == len(images):
    if data.image == "features":
      return []
    raise UserError(
      f"none of the {len(images):,} images that {source} names ({shown}) is in {data.dir}; "
      "expected them there, in any folder"
    )
  captions = sum(len(image.texts) for image in missing)
  more = ", ..." if len(missing) > 3 else ""
  return [
    f"missing: {len(missing):,} of the images that {source} names ({shown}{more}) are not there; "
    f"they and their {captions:,} captions are left out"
  ]


def _digests(images, cache_dir):
  """Returns [N] uint64, of each image's bytes; of the names where there are no images."""
  if images[0].source is None:
    digest = (hashlib.sha256(image.name.encode(errors="surrogateescape")) for image in images)
    return np.array([int.from_bytes(d.digest()[:8], "big") for d in digest], np.uint64)
  sources = [image.source for image in images]
  return splits.digests([part[:3] for part in sources], cache_dir, repr(sources))


def _splits(images, split):
  """Returns {name: Split} without pixels and features."""
  counts = [len(image.texts) for image in images]
  source = Source(
    image_id=np.array([image.number for image in images]),
    split_of=split,
    names=[image.name for image in images],
    text_id=np.array([number for image in images for number in image.text_id]),
    texts=[text for image in images for text in image.texts],
    first_text=np.concatenate([[0], np.cumsum(counts)]),
  )
  return {name: source.split(name, source.rows_of(name)) for name in SPLITS}


def _cut(result, length):
  """Cuts the tokens of captions to `length` with <start> and <end>, where that is not 0, in every
  split: one endless caption would set the length of a whole evaluation. Returns the line that says
  so.
  """
  count, longest = 0, length - 2
  for part in result.values() if length else ():
    for row, tokens in enumerate(part.tokens):
      if len(tokens) > longest:
        part.tokens[row], count = tokens[:longest], count + 1
  if not count:
    return []
  return [f"long: {count:,} captions are cut to {longest} words (config.data.max_length={length})"]


def _pixels(data, images, split, digest):
  """Returns {split: data source}, prepared where it is not there yet."""
  from xmr.data import builders  # TFDS takes a while to import.

  rows = {name: np.flatnonzero(split == name) for name in SPLITS}
  content = hashlib.sha256(digest.tobytes())
  for image, part in zip(images, split, strict=True):
    content.update(repr((image.number, image.name, str(part), image.texts)).encode())

  def examples(name):
    for row in rows[name]:
      image = images[row]
      yield {
        "image": functools.partial(splits.image_bytes, *image.source[:3]),
        "image_id": image.number,
        "name": image.name,
        "text_id": image.text_id,
        "text": image.texts,
      }

  made = {name: (len(rows[name]), functools.partial(examples, name)) for name in SPLITS}
  return records.prepare(
    data.cache_dir,
    "own",
    lambda target: (builders.Own(data_dir=target, examples=made), None),
    key=repr((builders.Own.VERSION, content.hexdigest())),
    counts={name: count for name, (count, _) in made.items()},
  )
