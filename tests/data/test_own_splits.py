"""Splits of your own images: a hash of the bytes where none is given, copies, shared captions."""

import json

import numpy as np
import pytest

from xmr.data import load
from xmr.data.own import report, splits
from xmr.errors import UserError


def random_digests(n, seed=0):
  return np.random.default_rng(seed).integers(0, 2**64, n, dtype=np.uint64)


def test_shares_are_80_10_10_and_more_images_move_none():
  digest = random_digests(20_000)
  split = splits.by_hash(digest, [""] * len(digest))
  for name, share in (("train", 0.8), ("val", 0.1), ("test", 0.1)):
    assert abs((split == name).mean() - share) < 0.01
  np.testing.assert_array_equal(splits.by_hash(digest[:5000], [""] * 5000), split[:5000])


@pytest.mark.parametrize("n", [3, 4, 7, 20])
def test_a_few_images_fill_all_three_splits(n):
  for seed in range(50):
    split = splits.by_hash(random_digests(n, seed), [""] * n)
    assert set(split) == {"train", "val", "test"}


def test_copies_stay_together():
  for seed in range(50):
    digest = np.repeat(random_digests(5, seed), 3)
    split = splits.by_hash(digest, [""] * len(digest)).reshape(5, 3)
    assert (split == split[:, :1]).all()


def test_a_split_that_is_not_given_comes_out_of_train():
  digest = random_digests(1000)
  given = ["train"] * 900 + ["test"] * 100
  split = splits.by_hash(digest, given)
  assert (split[900:] == "test").all() and set(split[:900]) == {"train", "val"}
  assert 60 < (split == "val").sum() < 120


def test_copies_across_splits_are_counted_and_named():
  digest = np.array([1, 2, 1, 1, 3, 3], np.uint64)
  split = np.array(["train", "train", "test", "val", "train", "train"])
  names = list("abcdef")
  assert report.copies(digest, split, names) == (
    2,
    "a in train and d in val, a in train and c in test",
    3,
  )


@pytest.fixture
def own(tmp_path, picture, data_config):
  """Writes a folder of images by number with a captions.csv; returns the loaded splits."""

  def make(numbers, captions=None, split=None, content=(), **fields):
    folder = tmp_path / "own"
    folder.mkdir(exist_ok=True)
    lines = ["image,caption" + (",split" if split else "")]
    for i, number in enumerate(numbers):
      (folder / f"{i}.png").write_bytes(content[i] if i in content else picture(number, kind="PNG"))
      caption = captions[i] if captions else f"caption {i}"
      lines.append(f"{i}.png,{caption}" + (f",{split[i]}" if split else ""))
    (folder / "captions.csv").write_text("\n".join(lines))
    fields = {"name": "own", "dir": str(folder)} | fields
    return load(data_config(**fields))

  return make


def test_the_split_of_an_image_hangs_on_its_bytes_alone(own):
  first, second = own(range(30)), own([*range(30, 50), *range(30)][::-1])
  before = {first[s].pixels[r]: s for s in first for r in range(len(first[s].pixels))}
  after = {second[s].pixels[r]: s for s in second for r in range(len(second[s].pixels))}
  assert before.items() <= after.items() and len(after) == 50
  assert first.lines[0] == "captions.csv: 30 images, 30 captions, 0 of 3 splits given"
  assert "none is given: 80/10/10 by a hash of each image's bytes" in first.lines[1]
  assert first.record["splits"]["val"] == first["val"].image_names
  json.dumps(first.record)


def test_copies_and_shared_captions_are_said(own):
  found = own(
    [0, 1, 2, 0, 4], ["A dog", "a  DOG", "cat", "d", "e"], ["train", "train", "val", "test", "test"]
  )
  assert found.lines[2:] == [
    "copies: 1 images are in two splits (0.png in train and 3.png in test); results flatter",
    'captions of several images: 1, as "a dog" (2 images)',
  ]
  assert found.record["copies_across_splits"] == found.record["captions_of_several_images"] == 1


def test_a_set_without_val_or_test_is_said_and_has_them(own):
  found = own(range(30), split=["train"] * 25 + ["test"] * 5)
  assert "2 of 3 splits given" in found.lines[0]
  assert "val not given: a tenth each by a hash of the bytes, out of train" in found.lines[1]
  assert len(found["test"].texts) == 5 and len(found["val"].texts) >= 1
  assert sum(len(part.texts) for part in found.values()) == 30


def test_features_and_pixels_have_the_same_splits(own, tmp_path):
  pixels = own(range(12))
  np.save(tmp_path / "own/image.npy", np.ones((12, 3), np.float32))
  features = own(range(12), image="features")
  for name in pixels:
    assert pixels[name].image_names == features[name].image_names


@pytest.mark.parametrize("harm", ["cut", "flipped"])
def test_a_broken_cache_of_digests_is_made_again(own, tmp_path, harm):
  first = own(range(8))
  (path,) = (tmp_path / "cache").glob("own-*.digests.npy")
  whole = path.read_bytes()
  path.write_bytes(whole[:6] if harm == "cut" else whole[:128] + whole[136:144] + whole[136:])
  assert own(range(8)).record == first.record


def test_two_different_images_are_too_few(own):
  with pytest.raises(UserError, match="2 different images are too few"):
    own([0, 0, 1])


def test_a_bad_image_is_named(own):
  with pytest.raises(UserError, match="image 3.png is no JPEG"):
    own(range(5), content={3: b"<html>"})
