"""The page on own data: each sample is a file that is read, each column is one that is known."""

import pathlib
import re

import pytest

from xmr.data import load
from xmr.data.own import tables

PAGE = (pathlib.Path(__file__).parents[2] / "docs/own-data.md").read_text()
SAMPLES = re.findall(r"^### `([^`]+)`\n.*?^```text\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_the_page_has_a_sample_of_each_format():
  assert len(SAMPLES) == 7


@pytest.mark.parametrize(("name", "sample"), SAMPLES, ids=[name for name, _ in SAMPLES])
def test_a_sample_is_read(name, sample, tmp_path, data_config, picture):
  path = tmp_path / "own" / name
  path.parent.mkdir(parents=True)
  path.write_text(sample)
  for i, image in enumerate(("dog", "cat", "sea")):
    (tmp_path / f"own/{image}.jpg").write_bytes(picture(i))
  if "train2017" in name:  # A sample of one split of three.
    path.rename(path.with_name("captions.json"))
  config = data_config(name="own", dir=str(tmp_path / "own"))
  splits = load(config)
  assert sorted(n for part in splits.values() for n in part.image_names) == [
    "cat.jpg",
    "dog.jpg",
    "sea.jpg",
  ]
  assert all(part.texts for part in splits.values())


def test_the_columns_of_the_page_are_known():
  for role, known in (
    ("image", tables.IMAGE),
    ("caption", tables.CAPTION),
    ("split", tables.SPLIT),
  ):
    (row,) = re.findall(rf"^\| {role} \| (.*) \|$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", row)) <= set(known)
