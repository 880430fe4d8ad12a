"""Ready-made features of images and captions: .npy files, memory-mapped."""

import math
import os

import numpy as np

from xmr.data.files import opened
from xmr.errors import UserError
from xmr.ops.unit import unit
from xmr.storage.files import read_array

_BLOCK_BYTES = 1 << 26


def open_features(path, *, field, rows, row_is, ranks=None):
  """Returns an array of features, memory-mapped, after all of its values were checked.

  Args:
    path: .npy file; pickled objects are refused.
    field: config field that named it, for errors.
    rows: int, how many rows the source needs.
    row_is: what a row belongs to, for errors: "imgid" or "sentid".
    ranks: {number of dimensions: names of those after the first}; None: {2: "features"}.
  Returns:
    [rows, F] (or as `ranks` says) float16, float32 or float64.
  Raises:
    UserError: no .npy file, another number of dimensions, not floats, another number of rows, NaN
      or infinity.
  """
  try:
    with opened(path, what="a .npy file", field=field):
      pass  # A pipe would wait for ever below.
    features = read_array(path)
  except UserError:
    raise
  except OSError as error:
    raise UserError(
      f"config.{field}: {path}: {error.strerror or 'truncated'}; expected a .npy file"
    ) from None
  except ValueError as error:
    raise UserError(f"config.{field}: {path} is no .npy array of numbers: {error}") from None
  ranks = ranks or {2: "features"}
  if features.ndim not in ranks or 0 in features.shape[1:]:
    words = {2: "two", 3: "three", 4: "four"}
    expected = " or ".join(f"{words[n]} dimensions, ({rows}, {name})" for n, name in ranks.items())
    raise UserError(f"config.{field}: {path} has shape {features.shape}; expected {expected}")
  if not np.issubdtype(features.dtype, np.floating):
    raise UserError(
      f"config.{field}: {path} holds {features.dtype}; expected float16, float32 or float64"
    )
  if len(features) != rows:
    raise UserError(
      f"config.{field}: {path} has {len(features)} rows; expected {rows}, one per {row_is} of "
      "the source"
    )
  for start, block in _blocks(features):
    # A sum in float64 is finite exactly when every entry is: one pass, no mask of the block's size.
    with np.errstate(invalid="ignore"):
      finite = np.isfinite(block.sum(dtype=np.float64))
    if not finite:
      row = start + int(np.argmax(~np.isfinite(block).reshape(len(block), -1).all(axis=1)))
      raise UserError(
        f"config.{field}: {path} holds NaN or infinity in row {row} ({row_is} {row}); expected "
        "finite numbers"
      )
  return features


def take_rows(features, rows):
  """Returns features[rows]; still memory-mapped where the rows are consecutive, a copy where they
  are not.
  """
  if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
    return features[int(rows[0]) : int(rows[0]) + len(rows)]
  return features[rows]


def scale(features, kind):
  """Returns features in another scale.

  Args:
    features: [N, F] float, all splits together.
    kind: "none": unchanged; "column": each column divided by its norm over all N rows, test rows
      among them (Full-HN as released); "row": unit rows.
  Returns:
    [N, F]: the same array, or float32.
  """
  if kind == "none":
    return features
  if kind == "column":
    return features / column_norm(features)
  if kind == "row":
    return np.concatenate([unit(np.asarray(block, np.float32)) for _, block in _blocks(features)])
  raise UserError(f"config.data.image_features_scale is {kind!r}; expected none, column or row")


def column_norm(features):
  """Returns [F] float32, the norm of each column of [N, F] features, at least 1e-12."""
  norm = np.sqrt(
    sum(np.square(block, dtype=np.float64).sum(axis=0) for _, block in _blocks(features))
  )
  return np.maximum(norm, 1e-12).astype(np.float32)


def attach(data, *, n_images, n_texts, image_rows, text_rows):
  """Returns the feature fields that config.data asks for, of every split.

  Args:
    data: config.data.
    n_images, n_texts: int, of the whole source, splits that are not loaded among them.
    image_rows, text_rows: {split: [N] or [T] int}, rows in the files.
  Returns:
    {split: {"image_features": ..., "text_features": ..., "image_scale": ...}}, only the keys that
    are asked for.
  """
  fields = {name: {} for name in image_rows}
  if data.image == "features":
    matrix = open_features(
      _path(data, "image_features"), field="data.image_features", rows=n_images, row_is="imgid"
    )
    kind = data.get("image_features_scale", "none")
    if kind == "column":
      norm = column_norm(matrix)
      matrix = matrix / norm
      for name in image_rows:
        fields[name]["image_scale"] = norm
    else:
      matrix = scale(matrix, kind)
    for name, rows in image_rows.items():
      fields[name]["image_features"] = take_rows(matrix, rows)
  if data.text == "features":
    matrix = open_features(
      _path(data, "text_features"), field="data.text_features", rows=n_texts, row_is="sentid"
    )
    for name, rows in text_rows.items():
      fields[name]["text_features"] = take_rows(matrix, rows)
  return fields


def _path(data, field):
  if not data[field]:
    raise UserError(
      f"config.data.{field} is empty; expected a .npy file, as config.data.{field.split('_')[0]} "
      'is "features"'
    )
  return os.path.join(os.path.expanduser(data.dir), os.path.expanduser(data[field]))


def _blocks(features):
  step = max(1, _BLOCK_BYTES // max(1, math.prod(features.shape[1:]) * features.dtype.itemsize))
  for start in range(0, len(features), step):
    yield start, features[start : start + step]
