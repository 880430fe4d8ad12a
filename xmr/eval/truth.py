"""The ground truth of a split's images and captions: all that metrics need besides embeddings."""

import dataclasses
import re

import numpy as np
from jaxtyping import Integer

# The names of the fields in errors.
SAID = {
  "texts": "the captions as written",
  "image_id": "the ids of the images",
  "text_id": "the ids of the captions",
  "label": "the category of each image",
}
COCO_FILE = re.compile(r"(?:.*/)?COCO_\w+_0*(\d+)\.\w+")


@dataclasses.dataclass(frozen=True)
class GroundTruth:
  """N images and T captions, in the order of the embeddings.

  Attributes:
    image_of_text: the image, 0..N-1, of each caption.
    texts: captions as written, or None.
    image_id: COCO's number of each image, or the source's own; None where unknown.
    text_id: the source's number (sentid) of each caption, or None.
    label: category of each image, or None.
    cache_dir: folder for relevance matrices, or None to compute them anew.
    source: where a missing field would come from, for errors.
  """

  image_of_text: Integer[np.ndarray, " T"]
  texts: list[str] | None = None
  image_id: Integer[np.ndarray, " N"] | None = None
  text_id: Integer[np.ndarray, " T"] | None = None
  label: Integer[np.ndarray, " N"] | None = None
  cache_dir: str | None = None
  source: str = "the dataset has none"

  @property
  def n_images(self) -> int:
    """N; every image has a caption."""
    return int(np.max(self.image_of_text)) + 1

  @property
  def n_texts(self) -> int:
    """T."""
    return len(self.image_of_text)


def of_split(split, *, cache_dir=None):
  """Returns the GroundTruth of an xmr.data.Split."""
  return GroundTruth(
    image_of_text=np.asarray(split.image_of_text),
    texts=split.texts,
    image_id=coco_ids(split.image_names, otherwise=split.image_id),
    text_id=np.asarray(split.text_id),
    label=split.label,
    cache_dir=cache_dir,
  )


def coco_ids(names, *, otherwise):
  """Returns [N] int64, COCO's number of each image of COCO_val2014_000000391895.jpg and the like;
  `otherwise` where a name has none.

  Karpathy's file numbers the images anew (imgid); extra positives go by COCO's numbers.
  """
  found = [COCO_FILE.fullmatch(str(name)) for name in names]
  if not all(found):
    return otherwise
  return np.array([int(match[1]) for match in found if match], np.int64)
