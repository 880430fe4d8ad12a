"""TFDS builders of labelled pairs, as array records without TensorFlow; imported only where they
are prepared or read.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds

tfds.disable_progress_bar()


class LabelledPairs(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """A text, the name of its image and their category, in the order of the lists."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, data_dir, pairs, counts):
    self._pairs, self._counts = pairs, counts
    super().__init__(data_dir=data_dir, file_format="array_record")

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(
        {
          "row": np.int64,
          "text_name": tfds.features.Text(),
          "image_name": tfds.features.Text(),
          "text": tfds.features.Text(),
          "category": tfds.features.ClassLabel(names=self._pairs.categories),
        }
      ),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(name) for name in self._counts}

  def _generate_examples(self, split):
    pairs = self._pairs
    for row in np.flatnonzero(pairs.split == split):
      yield (
        int(row),
        {
          "row": row,
          "text_name": pairs.text_names[row],
          "image_name": pairs.image_names[row],
          "text": pairs.texts[row],
          "category": int(pairs.label[row]),
        },
      )

  def sources(self):
    """Returns {split: data source}, of a prepared set."""
    read: Any = self.as_data_source  # TFDS's wrapper loses its type.
    return {split: read(split=split) for split in self.info.splits}


class Wikipedia(LabelledPairs, skip_registration=True):
  """English Wikipedia: 2,866 pairs, 10 categories."""


class Tvgraz(LabelledPairs, skip_registration=True):
  """TVGraz: images and texts of the web, 10 categories."""


class WikipediaZh(LabelledPairs, skip_registration=True):
  """Chinese Wikipedia, 9 categories."""


def builder(name, *, data_dir, pairs, counts):
  """Returns the builder of a set and its download config (None: nothing is ever downloaded).

  Args:
    name: wikipedia, tvgraz or wikipedia_zh.  data_dir: folder of the records.
    pairs: labelled.Pairs.  counts: {split: pairs}.
  """
  kinds = {"wikipedia": Wikipedia, "tvgraz": Tvgraz, "wikipedia_zh": WikipediaZh}
  return kinds[name](data_dir=data_dir, pairs=pairs, counts=counts), None
