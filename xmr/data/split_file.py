"""Karpathy's split files: reading them, the facts about published ones, and checks of others."""

import dataclasses
import glob
import gzip
import json
import os
import pathlib
import re
import zlib

import numpy as np

from xmr.data.files import read_file
from xmr.data.split import Split
from xmr.data.text import tokenize
from xmr.errors import UserError

# Half of a surrogate pair, as "\\ud83d" in JSON may be: it is no text and cannot be written.
SURROGATE = re.compile(r"[\ud800-\udfff]")
SPLITS = ("train", "restval", "val", "test")
SPLIT_FILES = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"


@dataclasses.dataclass(frozen=True)
class Known:
  """What is published about a dataset: images per split, and where its images come from."""

  counts: dict[str, int]
  images: str
  source: str


KNOWN = {
  "flickr8k": Known(
    {"train": 6000, "val": 1000, "test": 1000},
    "images/*.jpg",
    "Hodosh et al. 2013, https://hockenmaier.cs.illinois.edu/Framing_Image_Description/KCCA.html",
  ),
  "flickr30k": Known(
    {"train": 29000, "val": 1014, "test": 1000},
    "images/*.jpg",
    "Young et al. 2014, https://shannon.cs.illinois.edu/DenotationGraph",
  ),
  "coco": Known(
    {"train": 82783, "restval": 30504, "val": 5000, "test": 5000},
    "images/train2014/*.jpg and images/val2014/*.jpg",
    "2014 train and val images, https://cocodataset.org/#download",
  ),
}


@dataclasses.dataclass(frozen=True)
class Source:
  """All images and captions of one JSON, in its order: N images, T captions.

  Attributes:
    image_id: [N] int64 imgid.  split_of: [N] names.  names: [N] paths below images/.
    text_id: [T] int64 sentid.  texts: [T] captions as written.
    first_text: [N+1] int64: captions first_text[i] to first_text[i+1] belong to image i.
  """

  image_id: np.ndarray
  split_of: np.ndarray
  names: list[str]
  text_id: np.ndarray
  texts: list[str]
  first_text: np.ndarray

  def rows_of(self, split):
    """Returns the indices of a split's images, in the order of the JSON."""
    return np.flatnonzero(self.split_of == split)

  def texts_of(self, images):
    """Returns the indices of the captions of images, image by image."""
    counts = np.diff(self.first_text)[images]
    offset = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(self.first_text[images], counts) + offset

  def feature_rows(self, ids, indices):
    """Returns the rows of feature files: the ids where they are 0..n-1 in some order, else the
    indices.
    """
    dense = np.array_equal(np.sort(ids), np.arange(len(ids)))
    return ids[indices] if dense else indices

  def split(self, name, images):
    """Returns the Split of some images, without pixels and features."""
    texts = self.texts_of(images)
    captions = [self.texts[i] for i in texts]
    return Split(
      name=name,
      image_id=self.image_id[images].astype(np.int32),
      text_id=self.text_id[texts].astype(np.int32),
      image_of_text=np.repeat(np.arange(len(images)), np.diff(self.first_text)[images]).astype(
        np.int32
      ),
      image_names=[self.names[i] for i in images],
      texts=captions,
      tokens=[tokenize(caption) for caption in captions],
    )


def expected_tree(folder, name):
  """Returns the files that a dataset needs, with counts and where each comes from, for people to
  read.
  """
  known = KNOWN.get(name)
  counts = (
    ", ".join(f"{n:,} {split}" for split, n in known.counts.items())
    if known
    else "train, val, test"
  )
  images = (
    f"{sum(known.counts.values()):,} files: {known.source}"
    if known
    else "the files that the JSON names"
  )
  pattern = known.images if known else "images/*.jpg"
  return (
    f"\n{folder}/\n"
    f"  dataset_{name}.json (or .json.gz): images per split: {counts}; Karpathy's split file, "
    f"from {SPLIT_FILES};\n"
    f"  {pattern}: {images}; needed for config.data.image=pixels only"
  )


def find_json(folder, name):
  """Returns the path of the JSON of a dataset; UserError with the expected tree where there is
  none.
  """
  if not folder:
    raise UserError(
      f"config.data.dir is empty; expected the folder of {name}:", tree=expected_tree("DIR", name)
    )
  root = os.path.expanduser(folder)
  if not os.path.isdir(root):
    raise UserError(
      f"config.data.dir: {folder} is no folder; expected", tree=expected_tree(folder, name)
    )
  stem = "dataset*" if name == "karpathy" else f"dataset_{name}"
  for pattern in (f"{stem}.json", f"{stem}.json.gz", f"{stem}*.json", f"{stem}*.json.gz"):
    found = sorted(glob.glob(os.path.join(glob.escape(root), pattern)))
    if len(found) == 1:
      return found[0]
    if found:
      raise UserError(
        f"config.data.dir: {folder} holds {', '.join(map(os.path.basename, found))}; expected "
        "one of them"
      )
  raise UserError(
    f"config.data.dir: {folder} holds no dataset_{name}.json; expected",
    tree=expected_tree(folder, name),
  )


def check_counts(source, name, path):
  """Raises UserError where a split of a known dataset has another number of images than
  published.
  """
  for split, expected in KNOWN[name].counts.items() if name in KNOWN else ():
    found = source.rows_of(split).size
    if found not in (0, expected):
      raise UserError(
        f"{path}: split {split} has {found:,} images; {name} has {expected:,}. For another set "
        "in this layout: "
        "config.data.name=karpathy"
      )


def with_images(source, root):
  """Returns the splits of which an image is below a folder; all splits where none is."""
  there = tuple(
    split
    for split in SPLITS
    if any(os.path.lexists(os.path.join(root, source.names[i])) for i in source.rows_of(split))
  )
  return there or SPLITS


def read_json(path):
  """Reads and checks a split file.

  Args:
    path: .json or .json.gz: {"images": [{"filename", "filepath" (COCO), "imgid", "split",
      "sentids", "sentences": [{"raw", "sentid", "imgid"}]}]}.
  Returns:
    Source.
  Raises:
    UserError: what is missing or wrong, and in which image.
  """
  try:
    content = read_file(path, what="a split file")
    images = json.loads(gzip.decompress(content) if str(path).endswith(".gz") else content)[
      "images"
    ]
    if not isinstance(images, list) or not images:
      raise TypeError("images is no list, or empty")
  except UserError:
    raise
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"{path} cannot be read: {error}") from None
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise UserError(
      f"{path} is not in Karpathy's layout, "
      f'{{"images": [{{"filename", "imgid", "split", "sentences"}}]}}: {error!r}'
    ) from None

  names, image_id, split_of, text_id, texts, first_text = [], [], [], [], [], [0]
  for index, image in enumerate(images):
    where = f"{path}: images[{index}]"
    filename, imgid, split = (_field(image, key, kind, where) for key, kind in _IMAGE_FIELDS)
    where += f" ({filename})"
    if split not in SPLITS:
      raise UserError(f"{where}: split is {split!r}; expected one of {', '.join(SPLITS)}")
    names.append(_name(image, filename, where))
    image_id.append(imgid)
    split_of.append(split)
    sentences = _field(image, "sentences", list, where)
    if not sentences:
      raise UserError(f"{where}: sentences is empty; expected at least one caption")
    for sentence in sentences:
      caption, sentid = _field(sentence, "raw", str, where), _field(sentence, "sentid", int, where)
      if not caption.strip():
        raise UserError(
          f"{where}: the caption with sentid {sentid} is empty; expected words in raw"
        )
      if SURROGATE.search(caption):
        raise UserError(
          f"{where}: the caption with sentid {sentid} holds half of a surrogate pair; expected "
          "Unicode text"
        )
      if sentence.get("imgid", imgid) != imgid:
        raise UserError(
          f"{where}: the caption with sentid {sentid} has imgid {sentence['imgid']}; expected "
          f"{imgid}"
        )
      texts.append(caption)
      text_id.append(sentid)
    first_text.append(len(texts))
    if image.get("sentids", text_id[first_text[-2] :]) != text_id[first_text[-2] :]:
      raise UserError(
        f"{where}: sentids is {image['sentids']}; its sentences have {text_id[first_text[-2] :]}"
      )
  source = Source(
    np.array(image_id),
    np.array(split_of),
    names,
    np.array(text_id),
    texts,
    np.array(first_text, np.int64),
  )
  _check_ids(source.image_id, "imgid", path)
  _check_ids(source.text_id, "sentid", path)
  return source


_IMAGE_FIELDS = (("filename", str), ("imgid", int), ("split", str))


def _field(record, key, kind, where):
  value = record.get(key) if isinstance(record, dict) else None
  if not isinstance(value, kind) or isinstance(value, bool):
    found = "is missing" if value is None else f"is {value!r:.60}"
    raise UserError(f"{where}: {key} {found}; expected {kind.__name__}, as in Karpathy's layout")
  return value


def _name(image, filename, where):
  """Returns the path below images/, which must stay there."""
  folder = image.get("filepath", "")
  name = pathlib.PurePosixPath(folder, filename) if isinstance(folder, str) else None
  if (
    name is None
    or name.is_absolute()
    or ".." in name.parts
    or not filename
    or "\0" in str(name)
    or SURROGATE.search(str(name))
    or "\\" in str(name)
  ):
    raise UserError(
      f"{where}: filepath {folder!r}, filename {filename!r}; expected names that stay in the "
      "folder images"
    )
  return str(name)


def _check_ids(ids, key, path):
  if ids.min() < 0 or ids.max() > np.iinfo(np.int32).max:
    raise UserError(
      f"{path}: {key} runs from {ids.min()} to {ids.max()}; expected 0 to {np.iinfo(np.int32).max}"
    )
  values, counts = np.unique(ids, return_counts=True)
  if counts.max() > 1:
    raise UserError(
      f"{path}: {key} {values[counts.argmax()]} occurs {counts.max()} times; expected each once"
    )
