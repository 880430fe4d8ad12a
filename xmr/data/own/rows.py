"""What every format of captioned images is read into: rows of an image, its captions, its split."""

import dataclasses
import json
import re

from xmr.data.split_file import SURROGATE
from xmr.errors import UserError

SPLITS = ("train", "val", "test")
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif")

# How people call the splits.
_SPLIT_WORDS = {
  "train": "train",
  "training": "train",
  "trn": "train",
  "restval": "restval",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "dev": "val",
  "test": "test",
  "testing": "test",
  "tst": "test",
}
_IN_NAME = re.compile(
  r"(?:^|[^a-z])(train|training|val|valid|validation|dev|test|testing)"
  r"(?:\d+|_?images?|_?ids?|_?list|_?split|_?captions?)?(?=$|[^a-z])"
)


@dataclasses.dataclass
class Row:
  """One row of a source.

  Attributes:
    image: name of the image as the source has it.
    captions: its captions, as written but for blanks at the ends.
    split: "train", "val", "test", "restval" or None.
    where: file and line, for errors.
    base: folder of the source below the dataset's folder; names may be relative to it.
    part: (path, offset, bytes) of an image inside a tar file, or None.
    image_id, text_id: number of the image and of each caption, where the source has its own; rows
      of feature files. None: they are counted in the order of the source.
  """

  image: str
  captions: list[str]
  split: str | None
  where: str
  base: str = ""
  part: tuple | None = None
  image_id: int | None = None
  text_id: list[int] | None = None


def split_of(word, where):
  """Returns the split that a word means; UserError for another word."""
  found = _SPLIT_WORDS.get(word.strip().lower())
  if found is None:
    raise UserError(f"{where}: split is {word!r:.60}; expected train, val or test")
  return found


def split_in_name(name):
  """Returns the split that a file's or folder's name speaks of, as in train2017 or
  Flickr_8k.devImages.txt, or None where it speaks of none or of two.
  """
  # A capital begins a word, as in devImages.
  spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
  found = {_SPLIT_WORDS[match] for match in _IN_NAME.findall(spaced)}
  return found.pop() if len(found) == 1 else None


def captions_of(value, where):
  """Returns the captions in one cell: a text, or a list of texts, also one written as JSON or
  Python.

  Raises:
    UserError: the cell holds something else, a caption is empty, or no Unicode text.
  """
  if isinstance(value, str) and value.strip().startswith("[") and value.strip().endswith("]"):
    value = _as_list(value.strip(), where)
  if value is None or value != value:  # None, or what tables write for it: NaN.
    return []
  found = list(value) if isinstance(value, (list, tuple)) else [value]
  for caption in found:
    if not isinstance(caption, str):
      raise UserError(f"{where}: a caption is {caption!r:.60}; expected text")
    if SURROGATE.search(caption):
      raise UserError(
        f"{where}: a caption holds half of a surrogate pair, {caption!r:.60}; expected Unicode text"
      )
  return [caption.strip() for caption in found if caption.strip()]


def _as_list(text, where):
  """Returns the list that a text writes; the text itself where it writes none."""
  try:
    found = json.loads(text)
  except (ValueError, RecursionError):
    found = _python_list(text)
    if found is None:
      return text
    if re.search(r"""(['"])\s+\1""", text) and len(found) == 1:
      raise UserError(
        f"{where}: a list of captions has no commas, {text!r:.60}; expected ['first', 'second']"
      ) from None
  if isinstance(found, list) and all(isinstance(item, str) for item in found):
    return found
  return text


def _python_list(text):
  import ast

  try:
    found = ast.literal_eval(text)
  except (ValueError, SyntaxError, MemoryError, RecursionError):
    return None
  return found if isinstance(found, list) else None
