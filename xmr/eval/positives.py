"""Which items are right for which query, checked."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64, Integer

from xmr.errors import UserError
from xmr.ops.arrays import Array


def checked_image_of_text(
  image_of_text: Integer[Array, " T"] | Sequence[int], *, n_texts: int, n_images: int
) -> Int64[np.ndarray, " T"]:
  """Returns the assignment; UserError where it has another shape, or where an image does not exist
  or has no text.
  """
  index = np.asarray(image_of_text)
  if not n_texts or not n_images:
    raise UserError(f"{n_images} images and {n_texts} texts; expected at least one of each")
  if index.shape != (n_texts,) or index.dtype.kind not in "iu":
    raise UserError(
      f"image_of_text is {index.dtype} of shape {index.shape}; expected integers of shape "
      f"({n_texts},)"
    )
  outside = np.flatnonzero((index < 0) | (index >= n_images))
  if len(outside):
    raise UserError(
      f"image_of_text[{outside[0]}] is {index[outside[0]]}; expected 0 to {n_images - 1}"
    )
  bare = np.flatnonzero(np.bincount(index, minlength=n_images) == 0)
  if len(bare):
    raise UserError(
      f"image {bare[0]} has no text ({len(bare)} of {n_images} have none); expected at least one"
    )
  return index.astype(np.int64)


def pairs_of(positives, *, n_queries, n_gallery):
  """Returns ([M], [M]) of positives [Q] or [Q, P] padded with -1."""
  positives = np.asarray(positives)
  if (
    positives.dtype.kind not in "iu" or positives.ndim not in (1, 2) or len(positives) != n_queries
  ):
    raise UserError(
      f"positives is {positives.dtype} of shape {positives.shape}; expected integers "
      f"[{n_queries}] or [{n_queries}, P]"
    )
  positives = positives.reshape(n_queries, -1)
  if positives.size and not (-1 <= positives.min() and positives.max() < n_gallery):
    bad = np.argwhere((positives < -1) | (positives >= n_gallery))[0]
    raise UserError(
      f"positives[{bad[0]}] holds {positives[tuple(bad)]}; expected 0 to {n_gallery - 1}, or -1 "
      "for none"
    )
  i, at = np.nonzero(positives >= 0)
  lonely = np.setdiff1d(np.arange(n_queries), i)
  if len(lonely):
    raise UserError(
      f"query {lonely[0]} has no positive ({len(lonely)} of {n_queries} have none); expected at "
      "least one"
    )
  return i, positives[i, at].astype(np.int64)
