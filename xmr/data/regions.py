"""Features of the regions of images: .npy files of three or four dimensions, and their masks."""

import os

import numpy as np

from xmr.data.features import open_features, take_rows
from xmr.errors import UserError
from xmr.storage.files import read_array

EXPECTED = """expected a folder of this tree, rows in the order of imgid:
  {dir}/{features}   [images, regions, numbers] float16 or float32, or [images, H, W, numbers]
  {dir}/{mask}   [images, regions] bool, True where there is a region; may be left out
TERAN's regions are the 36 bottom-up features of 2,048 numbers of Anderson et al. (2018):
github.com/peteanderson80/bottom-up-attention. A grid of a network's last map takes their place:
python -m xmr.extract --grid"""


def attach(data, *, n_images, rows):
  """Returns the regions that config.data asks for, of every split.

  Args:
    data: config.data: dir, image_features and image_mask ("" or a file).
    n_images: int, of the whole source.  rows: {split: [N] int}, rows in the files.
  Returns:
    {split: {"image_features": [N, R, F] float, "image_mask": [N, R] bool or None}}.
  Raises:
    UserError: a file that is missing (with the tree that is expected), of another rank, length or
      type; NaN; an image whose mask is empty.
  """
  if data.image_features_scale != "none":
    raise UserError(
      f"config.data.image_features_scale is {data.image_features_scale!r}; expected none"
    )
  features = _path(data, "image_features")
  if not os.path.exists(features):
    mask = data.image_mask or "features/image_regions_mask.npy"
    raise UserError(
      f"config.data.image_features: there is no {features}; "
      + EXPECTED.format(dir=data.dir, features=data.image_features, mask=mask)
    )
  x = open_features(
    features,
    field="data.image_features",
    rows=n_images,
    row_is="imgid",
    ranks={3: "regions, features", 4: "height, width, features"},
  )
  # A grid's cells in row order are its regions.
  x = x.reshape(len(x), -1, x.shape[-1])
  mask = _mask(_path(data, "image_mask"), x.shape[:2]) if data.image_mask else None
  return {
    name: {
      "image_features": take_rows(x, index),
      "image_mask": None if mask is None else mask[index],
    }
    for name, index in rows.items()
  }


def _mask(path, shape):
  """Returns [N, R] bool of a file, checked."""
  try:
    mask = read_array(path)
  except (OSError, ValueError) as error:
    found = getattr(error, "strerror", None) or error
    raise UserError(f"config.data.image_mask: {path}: {found}; expected a .npy file") from None
  if mask.shape != shape or mask.dtype.kind not in "biu":
    raise UserError(
      f"config.data.image_mask: {path} holds {mask.dtype} of shape {mask.shape}; expected bool of "
      f"shape {shape}, as config.data.image_features has regions"
    )
  mask = np.asarray(mask) != 0
  empty = np.flatnonzero(~mask.any(axis=1))
  if len(empty):
    raise UserError(
      f"config.data.image_mask: {path} has no region in row {empty[0]} (imgid {empty[0]}; "
      f"{len(empty)} such rows); expected at least one"
    )
  return mask


def _path(data, field):
  return os.path.join(os.path.expanduser(data.dir), os.path.expanduser(data[field]))
