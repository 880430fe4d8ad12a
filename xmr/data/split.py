"""One split of a dataset, the same for every source."""

import dataclasses
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float, Float32, Int32, UInt8


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
  image_id: Int32[np.ndarray, " N"]
  text_id: Int32[np.ndarray, " T"]
  image_of_text: Int32[np.ndarray, " T"]
  image_names: list[str]
  texts: list[str]
  tokens: list[list[str]]
  pixels: Sequence | None = None
  image_features: Float[np.ndarray, "N ..."] | None = None
  image_mask: Bool[np.ndarray, "N R"] | None = None
  text_features: Float[np.ndarray, "T G"] | None = None
  image_scale: Float32[np.ndarray, " F"] | None = None
  label: Int32[np.ndarray, " N"] | None = None
  categories: list[str] | None = None

  def max_length(self):
    """Returns the words of the longest caption, <start> and <end> included."""
    return max(map(len, self.tokens)) + 2


class Batch(TypedDict, total=False):
  """Rows of a split, as a step takes them; B rows, of which a process may hold a part.

  `text_length` is there for words, `image_mask` for regions that have one, `label` where there are
  categories.
  """

  image: UInt8[np.ndarray, "B S S 3"] | Float32[np.ndarray, "B ..."]
  image_mask: Bool[np.ndarray, "B R"]
  text: Int32[np.ndarray, "B L"] | Float32[np.ndarray, "B G"]
  text_length: Int32[np.ndarray, " B"]
  image_id: Int32[np.ndarray, " B"]
  text_id: Int32[np.ndarray, " B"]
  label: Int32[np.ndarray, " B"]
  row: Int32[np.ndarray, " B"]


class Splits(dict[str, Split]):
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
