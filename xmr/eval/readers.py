"""Files that `python -m xmr.eval` takes: arrays and captions."""

import gzip
import json
import pathlib

import numpy as np

from xmr.errors import UserError
from xmr.storage import digests


def load_array(path, *, ndim, integers=False):
  """Opens a .npy file without unpickling it or reading it whole.

  Args:
    path: of the file.  ndim: its number of dimensions.  integers: True where no fractions may be.
  Returns:
    A memory-mapped array.
  Raises:
    UserError: no such file, another format, or another kind of array.
  """
  array = open_npy(path)
  kinds, expected = ("iu", "integers") if integers else ("fiu", "numbers")
  if not isinstance(array, np.ndarray) or array.ndim != ndim or array.dtype.kind not in kinds:
    kind = (
      f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else "an archive"
    )
    raise UserError(
      f"{path} holds {kind}; expected {expected} with {ndim} dimension{'s' if ndim > 1 else ''}"
    )
  return array


def open_npy(path):
  """Returns the memory-mapped array of a .npy file; UserError where there is none."""
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no file {path}")
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except Exception as error:
    # NumPy reads the header as Python, whose errors are of many kinds.
    raise UserError(f"{path} is not a .npy file of numbers: {error}") from None
  if isinstance(array, np.memmap) and not digests.whole(array):
    raise UserError(f"{path} is not what was written (digests differ); make it again")
  return array


def load_json(path):
  """Returns the content of a .json or .json.gz file; UserError for other files."""
  path = pathlib.Path(path)
  try:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
      return json.load(file)
  except RecursionError:
    raise UserError(f"{path} is not JSON that can be read: nested too deeply") from None
  except (ValueError, EOFError, OSError) as error:
    raise UserError(f"{path} is not JSON: {error}") from None


def load_captions(path, split):
  """Reads captions.

  Args:
    path: .json or .json.gz: Karpathy's format, or a list of captions. split: of Karpathy's format.

  Returns:
    {"texts": list of T captions}, and of Karpathy's format "image_of_text": [T] int, "image_id":
    [N] int (cocoid or imgid) and "text_id": [T] int (sentid).

  Raises:
    UserError: no such file, another format, or no image of the split.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no captions file {path}")
  content = load_json(path)
  if isinstance(content, list):
    if not all(isinstance(text, str) for text in content):
      raise UserError(
        f"{path} is a list, but not of strings; expected captions in the order of --text"
      )
    return {"texts": content}
  try:
    images = [image for image in content["images"] if image["split"] == split]
    sentences = [(row, each) for row, image in enumerate(images) for each in image["sentences"]]
    found = {
      "texts": [each["raw"] for _, each in sentences],
      "image_of_text": [row for row, _ in sentences],
      "image_id": [image["cocoid"] if "cocoid" in image else image["imgid"] for image in images],
      "text_id": [each["sentid"] for _, each in sentences],
    }
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} lacks {error}; expected Karpathy's format or a list of captions"
    ) from None
  if not images:
    raise UserError(f"{path} has no images of split {split!r}")
  wrong = [text for text in found["texts"] if not isinstance(text, str)]
  if wrong:
    raise UserError(f"{path} has the caption {wrong[0]!r}; expected a string")
  for name in ("image_id", "text_id"):
    wrong = [each for each in found[name] if type(each) is not int or abs(each) >= 2**63]
    if wrong:
      raise UserError(f"{path} has the id {wrong[0]!r}; expected whole numbers")
  return {name: x if name == "texts" else np.array(x, np.int64) for name, x in found.items()}
