"""The JSON of COCO's captions and of Karpathy's splits, as rows."""

import numpy as np

from xmr.data import split_file
from xmr.data.own import tables
from xmr.data.own.rows import Row, captions_of
from xmr.errors import UserError


def read_json(path, name, *, columns="", base=""):
  """Returns the rows of a JSON file in COCO's or Karpathy's layout, or with a list of records."""
  if name.endswith(".gz"):
    return karpathy(path, name, base=base)
  content = tables.parsed_json(tables.decoded(path, name), name)
  if is_coco(content):
    return coco(content, name, base=base)
  if is_karpathy(content):
    return karpathy(path, name, columns=columns, base=base)
  return tables.read(path, name, columns=columns, base=base)


def recognised(path, name):
  """Returns whether a JSON file is in one of these layouts."""
  try:
    content = tables.parsed_json(tables.decoded(path, name), name)
  except UserError:
    return False
  return is_coco(content) or is_karpathy(content) or tables.recognised(path, name)


def is_coco(content):
  """Returns whether the content of a JSON file is in COCO's layout of captions."""
  return isinstance(content, dict) and {"images", "annotations"} <= set(content)


def is_karpathy(content):
  """Returns whether the content of a JSON file is in Karpathy's layout."""
  return isinstance(content, dict) and "images" in content and "annotations" not in content


def coco(content, name, *, base=""):
  """Returns the rows of COCO's captions, in the order of the annotations.

  Args:
    content: {"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}.
    name: of the file, for errors.  base: folder of the file below the dataset's.
  Raises:
    UserError: an entry lacks a field, or a caption's image; names it.
  """
  files = {}
  for index, image in enumerate(_list(content, "images", name)):
    where = f"{name}: images[{index}]"
    number, file = _field(image, "id", (int, str), where), _field(image, "file_name", str, where)
    if files.setdefault(number, file) != file:
      raise UserError(f"{where}: id {number!r} is that of {files[number]} too; expected one each")
  rows = []
  for index, annotation in enumerate(_list(content, "annotations", name)):
    where = f"{name}: annotations[{index}]"
    number = _field(annotation, "image_id", (int, str), where)
    if number not in files:
      raise UserError(f"{where}: image_id {number!r} is the id of no image; expected one of images")
    texts = captions_of(_field(annotation, "caption", str, where), where)
    if not texts:
      raise UserError(f"{where}: the caption of {files[number]} is empty; expected words")
    rows.append(Row(files[number], texts, None, where, base))
  return rows


def _list(content, key, name):
  found = content.get(key)
  if not isinstance(found, list) or not found:
    raise UserError(f"{name}: {key} is no list, or empty; expected COCO's layout of captions")
  return found


def _field(record, key, kinds, where):
  value = record.get(key) if isinstance(record, dict) else None
  if not isinstance(value, kinds) or isinstance(value, bool):
    found = "is missing" if value is None else f"is {value!r:.60}"
    raise UserError(f"{where}: {key} {found}; expected it as in COCO's layout of captions")
  return value


def karpathy(path, name, *, columns="", base=""):
  """Returns the rows of Karpathy's split file, image by image."""
  del columns
  source = split_file.read_json(path)
  image_id = source.feature_rows(source.image_id, np.arange(len(source.names)))
  text_id = source.feature_rows(source.text_id, np.arange(len(source.texts)))
  rows = []
  for i, image in enumerate(source.names):
    first, end = source.first_text[i], source.first_text[i + 1]
    rows.append(
      Row(
        image,
        [text.strip() for text in source.texts[first:end]],
        str(source.split_of[i]),
        f"{name}: images[{i}]",
        base,
        image_id=int(image_id[i]),
        text_id=text_id[first:end].tolist(),
      )
    )
  return rows
