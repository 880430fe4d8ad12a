"""What a plan has to know of a dataset: from the command line, or the dataset where it is there."""

import dataclasses
import os

# Counts with what stands for them where nobody says better: Flickr30K.
COUNTS = {
  "images": (29_000, "of the training split"),
  "captions": (145_000, "of the training split"),
  "words": (40, "of a caption in a batch"),
  "vocabulary": (10_000, "words that the text encoder knows"),
  "image_width": (2048, "numbers of an image's features, or of a region's"),
  "text_width": (768, "numbers of a caption's features"),
  "regions": (36, "of an image, where config.data.image is regions"),
}


@dataclasses.dataclass(frozen=True)
class Sizes:
  """Counts of a dataset, as COUNTS says."""

  images: int
  captions: int
  words: int
  vocabulary: int
  image_width: int
  text_width: int
  regions: int


def of(config, given=None):
  """Returns the Sizes of a plan.

  Args:
    config: reads config.data and config.vocabulary: where its folder is there, it is counted.
    given: {name: int} of what the user said, which counts before what the folder says.
  Raises:
    UserError: a dataset that is there and not as expected.
  """
  given, found = dict(given or {}), {}
  if config.data.dir and os.path.isdir(config.data.dir) and set(given) != set(COUNTS):
    found = counted(config)
  defaults = {name: default for name, (default, _) in COUNTS.items()}
  return Sizes(**{**defaults, **found, **given})


def counted(config):
  """Returns {name: int} of what the dataset of a config says."""
  from xmr import data

  splits = data.load(config)
  train = splits["train"]
  found = {"images": len(train.image_id), "captions": len(train.text_id)}
  if train.image_features is not None:
    found["image_width"] = train.image_features.shape[-1]
    if config.data.image == "regions":
      found["regions"] = train.image_features.shape[1]
  if train.text_features is not None:
    return found | {"text_width": train.text_features.shape[-1]}
  known = data.build_vocabulary(
    splits, min_count=config.vocabulary.min_count, source=config.vocabulary.splits
  )
  longest = train.max_length()
  words = min(config.data.max_length or longest, longest)
  return found | {"vocabulary": len(known), "words": words}
