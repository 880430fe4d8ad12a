"""TFDS builders that write and read array records without TensorFlow; imported only where pixels
are needed.
"""

import concurrent.futures
import functools
import io
import itertools
import os
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm

from xmr.data import drawing, images, split_file
from xmr.data.files import read_file

tfds.disable_progress_bar()  # _generate_examples shows its own.
_AHEAD = 256  # images in memory at a time while preparing


class _Info(tfds.core.DatasetInfo):
  def initialize_from_bucket(self):
    """Does nothing: our sets are in no bucket, and looking there would leave an empty folder."""


class CaptionedImages(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Images with their captions, in the order of their source."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, data_dir, **arguments):
    self._arguments = {"data_dir": data_dir} | arguments
    super().__init__(data_dir=data_dir, file_format="array_record")

  # TFDS would lose the file format and our arguments when it sends the builder to a worker.
  def __getstate__(self):
    return self._arguments

  def __setstate__(self, state):
    self.__init__(**state)

  def _info(self):
    return _Info(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Image(),
          "image_id": np.int64,
          "name": tfds.features.Text(),
          "text_id": tfds.features.Sequence(np.int64),
          "text": tfds.features.Sequence(tfds.features.Text()),
        }
      ),
      disable_shuffling=True,
    )

  def _generate_examples(self, split, count, examples):
    """Yields (index, example); decodes every image once, so that a bad one is found now and not
    hours later.
    """
    examples = iter(examples)
    with (
      concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
      tqdm.tqdm(total=count, desc=f"preparing {self.name} {split}", unit="image") as bar,
    ):
      index = 0
      while chunk := list(itertools.islice(examples, _AHEAD)):
        for example in pool.map(_with_image, chunk):
          yield index, example
          index += 1
          bar.update()

  def sources(self) -> dict:
    """Returns {split: data source whose images are encoded bytes}, of a prepared set."""
    decoders = {"image": tfds.decode.SkipDecoding()}
    read: Any = self.as_data_source  # TFDS's wrapper loses its type.
    return {split: read(split=split, decoders=decoders) for split in self.info.splits}


def _with_image(example):
  content = example["image"]()
  images.verify(content, name=example["name"])
  return example | {"image": io.BytesIO(content)}


class Karpathy(CaptionedImages, skip_registration=True):
  """A folder in Karpathy's layout, given as the manual folder: a split file and images/."""

  MANUAL_DOWNLOAD_INSTRUCTIONS = (
    f"The split file of {split_file.SPLIT_FILES} and the images in images/."
  )

  def _split_generators(self, dl_manager):
    folder = pathlib.Path(dl_manager.manual_dir)
    source = split_file.read_json(split_file.find_json(str(folder), self.name))
    there = split_file.with_images(source, folder / "images")
    rows = {split: source.rows_of(split) for split in there}
    return {
      split: self._generate_examples(
        split, len(chosen), self._examples(source, chosen, folder / "images")
      )
      for split, chosen in rows.items()
      if len(chosen)
    }

  def _examples(self, source, chosen, folder):
    for i in chosen:
      first, end = source.first_text[i], source.first_text[i + 1]
      yield {
        "image": functools.partial(read_file, folder / source.names[i], what="an image"),
        "image_id": source.image_id[i],
        "name": source.names[i],
        "text_id": source.text_id[first:end],
        "text": source.texts[first:end],
      }


class Flickr8k(Karpathy, skip_registration=True):
  """Flickr8k: 8,000 images, five captions each."""


class Flickr30k(Karpathy, skip_registration=True):
  """Flickr30k: 31,014 images, five captions each."""


class Coco(Karpathy, skip_registration=True):
  """COCO 2014: 123,287 images, five captions and more each, with the split restval."""


def karpathy_builder(name, *, data_dir, folder):
  """Returns the builder of a dataset in Karpathy's layout, and the download config that tells it
  the folder.
  """
  builder = {"flickr8k": Flickr8k, "flickr30k": Flickr30k, "coco": Coco, "karpathy": Karpathy}[name]
  return builder(data_dir=data_dir), tfds.download.DownloadConfig(manual_dir=folder)


class Own(CaptionedImages, skip_registration=True):
  """Your own images, in any of the formats of xmr.data.own."""

  def __init__(self, *, data_dir, examples=None):
    """`examples` {split: (count, function that gives an iterator of examples)}; None where the set
    is only read.
    """
    self._given = examples
    super().__init__(data_dir=data_dir)

  def _split_generators(self, dl_manager):
    assert self._given is not None  # The set is being prepared.
    return {
      split: self._generate_examples(split, count, make())
      for split, (count, make) in self._given.items()
    }


class Scenes(CaptionedImages, skip_registration=True):
  """Rendered scenes, five captions each."""

  def __init__(self, *, data_dir, counts):
    self.counts = dict(counts)
    super().__init__(data_dir=data_dir, counts=self.counts)

  def _split_generators(self, dl_manager):
    return {
      split: self._generate_examples(split, count, self._examples(split))
      for split, count in self.counts.items()
    }

  def _examples(self, split):
    for number, scene in drawing.scenes_of(split, self.counts):
      yield {
        "image": scene.png,
        "image_id": number,
        "name": drawing.name_of(number),
        "text_id": [drawing.CAPTIONS * number + k for k in range(drawing.CAPTIONS)],
        "text": scene.captions,
      }
