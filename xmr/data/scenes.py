"""Rendered scenes: coloured shapes with five captions each, from a seed, without any download."""

import dataclasses

import numpy as np

from xmr.data import features, records
from xmr.data.drawing import CAPTIONS, SEED, SIZE, VERSION, name_of, scenes_of
from xmr.data.split import Split
from xmr.data.text import tokenize


def load(config):
  """Returns the splits of the rendered scenes; the same scenes whatever config.seed is.

  Args:
    config: ConfigDict; reads config.data: scenes.n_train, scenes.n_val, scenes.n_test, cache_dir,
      image, text and the feature files (row = image_id or text_id, which count on from train to val
      to test).
  Returns:
    {"train": Split, "val": Split, "test": Split}.
  """
  data = config.data
  counts = {split: data.scenes[f"n_{split}"] for split in ("train", "val", "test")}
  splits = {split: _split(split, counts) for split in counts}
  total = sum(counts.values())
  fields = features.attach(
    data,
    n_images=total,
    n_texts=CAPTIONS * total,
    image_rows={name: split.image_id for name, split in splits.items()},
    text_rows={name: split.text_id for name, split in splits.items()},
  )
  if data.image == "pixels":
    from xmr.data import builders  # TFDS takes a while to import.

    sources = records.prepare(
      data.cache_dir,
      "scenes",
      lambda folder: (builders.Scenes(data_dir=folder, counts=counts), None),
      key=repr((VERSION, SEED, SIZE, counts)),
      counts=counts,
    )
    for name, split in splits.items():
      fields[name]["pixels"] = records.Pixels([sources[name]], split.image_id)
  return {name: dataclasses.replace(split, **fields[name]) for name, split in splits.items()}


def _split(name, counts):
  numbered = list(scenes_of(name, counts))
  image_id = np.array([number for number, _ in numbered], np.int32)
  texts = [caption for _, scene in numbered for caption in scene.captions]
  return Split(
    name=name,
    image_id=image_id,
    text_id=(CAPTIONS * image_id[:, None] + np.arange(CAPTIONS)).ravel().astype(np.int32),
    image_of_text=np.repeat(np.arange(len(numbered), dtype=np.int32), CAPTIONS),
    image_names=[name_of(number) for number in image_id],
    texts=texts,
    tokens=[tokenize(text) for text in texts],
  )
