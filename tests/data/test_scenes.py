"""Rendered scenes: the same every time, and described by their captions."""

import io

import numpy as np
from PIL import Image

from xmr.data import build_vocabulary, drawing, load


def test_scenes_have_five_captions_each_and_ids_that_count_on(data_config):
  splits = load(data_config(name="scenes"))
  assert {name: len(split.pixels) for name, split in splits.items()} == {
    "train": 6,
    "val": 2,
    "test": 3,
  }
  assert splits["test"].image_id.tolist() == [8, 9, 10]
  assert splits["test"].text_id.tolist() == list(range(40, 55))
  assert splits["test"].image_of_text.tolist() == [0] * 5 + [1] * 5 + [2] * 5
  image = Image.open(io.BytesIO(splits["test"].pixels[2]))
  assert (image.format, image.size) == ("PNG", (96, 96))


def test_scenes_do_not_depend_on_how_many_there_are():
  few = [
    (scene.captions, scene.png())
    for _, scene in drawing.scenes_of("train", {"train": 4, "val": 1, "test": 1})
  ]
  many = [
    (scene.captions, scene.png())
    for _, scene in drawing.scenes_of("train", {"train": 40, "val": 9, "test": 9})
  ]
  assert few == many[:4]


def test_splits_differ():
  counts = {"train": 20, "val": 20, "test": 20}
  captions = [
    tuple(scene.captions) for split in counts for _, scene in drawing.scenes_of(split, counts)
  ]
  assert len(set(captions)) == 60


def test_every_shape_is_drawn_in_its_colour_where_it_is_said_to_be():
  for _, scene in drawing.scenes_of("train", {"train": 60}):
    picture = np.asarray(Image.open(io.BytesIO(scene.png())), int)
    heights = []
    for kind, colour, radius, x, y in scene.shapes:
      mine = np.abs(picture - drawing.COLOURS[colour]).sum(axis=2) < 20
      rows, columns = np.nonzero(mine)
      assert abs(rows.mean() - y) < 4 and abs(columns.mean() - x) < 4
      assert 0.25 * radius**2 < mine.sum() < 3.6 * radius**2, kind
      heights.append(rows.mean())
    assert heights == sorted(heights)


def test_captions_name_every_shape_and_its_colour():
  words = {kind: set(names) for kind, names in drawing.SHAPES.items()}
  for _, scene in drawing.scenes_of("val", {"train": 0, "val": 60}):
    assert len(scene.captions) == len(set(scene.captions)) == 5
    for caption in scene.captions:
      said = caption.lower().replace(",", " ").replace(".", " ").replace(":", " ").split()
      for kind, colour, *_ in scene.shapes:
        assert words[kind] & set(said)
        assert set(drawing.COLOUR_WORDS.get(colour, (colour,))) & set(said)


def test_no_caption_says_left_or_right(data_config):
  # Training mirrors images.
  vocabulary = build_vocabulary(load(data_config(name="scenes", image="none")), min_count=1)
  assert "above" in vocabulary and not {"left", "right"} & set(vocabulary.words)


def test_few_captions_of_the_default_test_split_fit_another_image():
  counts = {"train": 2000, "val": 200, "test": 500}
  found = [
    frozenset(shape[:2] for shape in scene.shapes) for _, scene in drawing.scenes_of("test", counts)
  ]
  assert len(set(found)) > 0.85 * len(found)
