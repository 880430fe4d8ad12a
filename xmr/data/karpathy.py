"""Flickr8k, Flickr30K, COCO and your own set, in the layout of Karpathy's split files."""

import dataclasses
import hashlib
import os

import numpy as np

from xmr.data import features, records, regions
from xmr.data.files import read_file
from xmr.data.split import Splits
from xmr.data.split_file import SPLITS, check_counts, find_json, read_json, with_images
from xmr.errors import UserError


def load(config):
  """Returns the splits of a dataset in Karpathy's layout.

  Args:
    config: ConfigDict; reads config.data: name (flickr8k, flickr30k, coco; karpathy for a set of
      your own, whose counts are not known), dir, cache_dir, image, text, image_features,
      image_mask, text_features, image_features_scale, restval.
  Returns:
    Splits {"train": Split, "val": Split, "test": Split}, without a split that the JSON does not
    have, and, with pixels, without one of which images/ holds no image: who scores needs the images
    of a test split alone. With restval, its images follow those of train. A row of the feature
    files is imgid or sentid where these count from 0 without gaps; else (COCO's sentids) the index
    in the JSON.
  Raises:
    UserError: the folder, the JSON, an image or a feature file is not as expected.
  """
  data = config.data
  path = find_json(data.dir, data.name)
  source = read_json(path)
  check_counts(source, data.name, path)
  if data.restval and not source.rows_of("restval").size and source.rows_of("train").size:
    raise UserError(
      f"config.data.restval is True but {path} has no image in split restval; only COCO has"
    )

  there, lines = SPLITS, []
  if data.image == "pixels":
    there = with_images(source, os.path.join(os.path.expanduser(data.dir), "images"))
    lines = [
      f"{name}: left out, as none of its {len(source.rows_of(name)):,} images is in images/"
      for name in SPLITS
      if name not in there and len(source.rows_of(name))
    ]
  rows = {name: source.rows_of(name) for name in ("train", "val", "test") if name in there}
  if data.restval and {"train", "restval"} - set(there):
    raise UserError("config.data.restval is True but " + lines[0])
  if data.restval:
    rows["train"] = np.concatenate([rows["train"], source.rows_of("restval")])
  splits = {name: source.split(name, images) for name, images in rows.items() if images.size}
  image_rows = {name: source.feature_rows(source.image_id, rows[name]) for name in splits}
  fields = features.attach(
    data,
    n_images=len(source.names),
    n_texts=len(source.texts),
    image_rows=image_rows,
    text_rows={
      name: source.feature_rows(source.text_id, source.texts_of(rows[name])) for name in splits
    },
  )
  if data.image == "regions":
    for name, found in regions.attach(data, n_images=len(source.names), rows=image_rows).items():
      fields[name] |= found
  if data.image == "pixels":
    pixels = _pixels(data, path, source, there)
    for name, split in splits.items():
      parts = ["train", "restval"] if name == "train" and data.restval else [name]
      fields[name]["pixels"] = records.Pixels([pixels[part] for part in parts], split.image_id)
  found = {name: dataclasses.replace(split, **fields[name]) for name, split in splits.items()}
  return Splits(found, lines=lines)


def _pixels(data, path, source, there):
  """Returns {split: data source}, restval among them, prepared where it is not there yet."""
  from xmr.data import builders  # TFDS takes a while to import.

  folder = os.path.expanduser(data.dir)
  names = [
    name for name, split in zip(source.names, source.split_of, strict=True) if split in there
  ]
  files = records.image_files(os.path.join(folder, "images"), names)
  content = hashlib.sha256(read_file(path, what="a split file")).hexdigest()
  counts = {split: len(source.rows_of(split)) for split in there}
  return records.prepare(
    data.cache_dir,
    data.name,
    lambda target: builders.karpathy_builder(data.name, data_dir=target, folder=folder),
    key=repr((builders.Karpathy.VERSION, content, files)),
    counts={split: count for split, count in counts.items() if count},
  )
