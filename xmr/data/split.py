"""One split of a dataset, the same for every source."""

import collections.abc
import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Split:
  """Images and their captions, with pixels or features; N images, T captions.

  Attributes:
    name: "train", "val" or "test".
    image_id: [N] int32, number of the image in the source (Karpathy's imgid).
    text_id: [T] int32, number of the caption in the source (sentid).
    image_of_text: [T] int32, row 0..N-1 of this split.
    image_names: [N] file names, for display and errors.
    texts: [T] captions as written.
    tokens: [T] lists of lower-case tokens, without <start> and <end>.
    pixels: sequence of N encoded images (JPEG or PNG bytes), or None.
    image_features: [N, F] float, or [N, R, F] of regions, or None.
    image_mask: [N, R] bool, True where there is a region; None: all regions are there.
    text_features: [T, F] float, or None.
    image_scale: [F] float32 by which the columns of the feature file were divided, or None.
    label: [N] int32 categories, or None.  categories: their names, or None.
  """

  name: str
  image_id: np.ndarray
  text_id: np.ndarray
  image_of_text: np.ndarray
  image_names: list[str]
  texts: list[str]
  tokens: list[list[str]]
  pixels: collections.abc.Sequence | None = None
  image_features: np.ndarray | None = None
  image_mask: np.ndarray | None = None
  text_features: np.ndarray | None = None
  image_scale: np.ndarray | None = None
  label: np.ndarray | None = None
  categories: list[str] | None = None

  def max_length(self):
    """Returns the words of the longest caption, <start> and <end> included."""
    return max(map(len, self.tokens)) + 2


class Splits(dict):
  """{"train": Split, "val": Split, "test": Split} of a dataset, with what a run says of it.

  Attributes:
    lines: list of str, for people: what was found and what was made of it.
    record: dict for the run's data.json, or None.
    n_images: int, images of the whole source, splits that are not loaded and missing images among
      them: rows of a feature file.
  """

  def __init__(self, splits, *, lines=(), record=None, n_images=None):
    super().__init__(splits)
    self.lines, self.record, self.n_images = list(lines), record, n_images
