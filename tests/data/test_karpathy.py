"""Karpathy's layout: splits, counts, and everything that can be wrong with it."""

import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from xmr.data import build_vocabulary, load, split_file
from xmr.errors import UserError


def test_splits_hold_their_images_and_captions(folder, data_config):
  splits = load(data_config(image="features"))
  train = splits["train"]
  assert list(splits) == ["train", "val", "test"]
  assert train.image_id.tolist() == [0, 2, 5, 6, 8]
  assert train.image_names == [f"picture{i}.jpg" for i in (0, 2, 5, 6, 8)]
  # 2 + imgid % 3 captions: no split has five of each.
  assert train.image_of_text.tolist() == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 4, 4, 4, 4]
  for text_row, image_row in enumerate(train.image_of_text):
    assert f"Picture {train.image_id[image_row]} " in train.texts[text_row]
  assert train.tokens[0] == ["picture", "0", "shows", "word0", "."]
  for array in (train.image_id, train.text_id, train.image_of_text):
    assert array.dtype == np.int32


def test_restval_is_trained_on_when_asked(folder, data_config):
  assert load(data_config(image="features", restval=True))["train"].image_id.tolist() == [
    0,
    2,
    5,
    6,
    8,
    3,
    7,
  ]


def test_restval_of_a_set_without_one_is_refused(folder, data_config):
  for image in folder.content["images"]:
    image["split"] = image["split"].replace("restval", "train")
  folder.write()
  with pytest.raises(UserError, match="config.data.restval is True"):
    load(data_config(image="features", restval=True))


def test_gzip_is_read(folder, data_config):
  plain = folder.path / "dataset_small.json"
  (folder.path / "dataset_small.json.gz").write_bytes(gzip.compress(plain.read_bytes()))
  plain.unlink()
  assert len(load(data_config(image="features"))["train"].texts) == 16


def test_vocabulary_counts_training_captions_unless_all_are_asked_for(folder, data_config):
  splits = load(data_config(image="features"))
  assert "word2" not in build_vocabulary(splits, min_count=1)  # of image 1, in test
  assert "word2" in build_vocabulary(splits, min_count=1, source="all")
  with pytest.raises(UserError, match="vocabulary needs train"):
    build_vocabulary({"test": splits["test"]})
  with pytest.raises(UserError, match="config.vocabulary.splits is 'test'"):
    build_vocabulary(splits, source="test")


def change(path, value):
  """Returns a function that replaces one entry of the JSON."""

  def edit(content):
    for key in path[:-1]:
      content = content[key]
    content[path[-1]] = value

  return edit


def delete(*path):
  def edit(content):
    for key in path[:-1]:
      content = content[key]
    del content[path[-1]]

  return edit


@pytest.mark.parametrize(
  ("edit", "message"),
  [
    (delete("images"), "not in Karpathy's layout"),
    (change(["images"], {}), "images is no list"),
    (change(["images"], []), "images is no list, or empty"),
    (change(["images", 3], "x"), r"images\[3\]: filename is missing"),
    (delete("images", 3, "filename"), r"images\[3\]: filename is missing; expected str"),
    (change(["images", 3, "imgid"], "3"), r"images\[3\]: imgid is '3'; expected int"),
    (change(["images", 3, "imgid"], 2), "imgid"),
    (change(["images", 3, "imgid"], -1), "imgid"),
    (delete("images", 3, "split"), "split is missing"),
    (
      change(["images", 3, "split"], "dev"),
      r"images\[3\] \(picture3.jpg\): split is 'dev'; expected one of train",
    ),
    (delete("images", 3, "sentences"), r"images\[3\] \(picture3.jpg\): sentences is missing"),
    (change(["images", 3, "sentences"], []), r"images\[3\] \(picture3.jpg\): sentences is empty"),
    (
      change(["images", 3, "sentences", 0, "raw"], " \n"),
      r"picture3.jpg\): the caption with sentid 9 is empty",
    ),
    (delete("images", 3, "sentences", 0, "raw"), "raw is missing"),
    (change(["images", 3, "sentences", 0, "imgid"], 7), "has imgid 7; expected 3"),
    (change(["images", 3, "sentids"], [1]), r"sentids is \[1\]"),
    (change(["images", 3, "filename"], "../picture3.jpg"), "stay in the folder images"),
    (change(["images", 3, "filename"], "/etc/hostname"), "stay in the folder images"),
    (change(["images", 3, "filename"], "..\\picture3.jpg"), "stay in the folder images"),
    (change(["images", 3, "filepath"], "a/../../b"), "stay in the folder images"),
    (change(["images", 3, "filepath"], 5), "stay in the folder images"),
  ],
)
def test_wrong_json_is_refused_by_name(folder, data_config, edit, message):
  edit(folder.content)
  if (
    isinstance(folder.content.get("images"), list)
    and "imgid" in message
    and len(folder.content["images"]) > 3
  ):
    for sentence in folder.content["images"][3]["sentences"]:
      if sentence["imgid"] == 3:
        sentence["imgid"] = folder.content["images"][3]["imgid"]
  folder.write()
  with pytest.raises(UserError, match=message) as error:
    load(data_config(image="features"))
  assert "dataset_small.json" in str(error.value)


def test_a_sentid_that_occurs_twice_is_refused(folder, data_config):
  folder.content["images"][1]["sentences"][0]["sentid"] = 0
  del folder.content["images"][1]["sentids"]
  folder.write()
  with pytest.raises(UserError, match="sentid 0 occurs 2 times"):
    load(data_config(image="features"))


@pytest.mark.parametrize(
  "content", [b"", b"{", b"\x00\xff", b"[" * 100_000, b'{"info": {}, "images": 3}']
)
def test_other_files_are_refused(folder, data_config, content):
  (folder.path / "dataset_small.json").write_bytes(content)
  with pytest.raises(UserError, match="dataset_small.json"):
    load(data_config(image="features"))


def test_damaged_gzip_is_refused(folder, data_config):
  packed = gzip.compress((folder.path / "dataset_small.json").read_bytes())
  (folder.path / "dataset_small.json").unlink()
  for content in (packed[: len(packed) // 2], packed[:40] + b"\0" * 20 + packed[60:], b"no gzip"):
    (folder.path / "dataset_small.json.gz").write_bytes(content)
    with pytest.raises(UserError, match="dataset_small.json.gz"):
      load(data_config(image="features"))


@pytest.mark.parametrize("name", ["flickr8k", "flickr30k", "coco"])
def test_missing_folder_prints_the_expected_tree(data_config, tmp_path, name):
  for place in ("", str(tmp_path / "absent"), str(tmp_path)):
    with pytest.raises(UserError, match=f"config.data.dir(.|\n)*dataset_{name}.json") as error:
      load(data_config(name=name, dir=place))
    text = str(error.value)
    assert "caption_datasets.zip" in text and "images/" in text
    assert f"{split_file.KNOWN[name].counts['train']:,} train" in text


def test_unknown_dataset_lists_the_known(data_config):
  with pytest.raises(
    UserError, match="config.data.name is 'flickr9k'; expected one of coco, flickr30k, flickr8k"
  ):
    load(data_config(name="flickr9k"))


def test_counts_of_a_known_set_are_asserted(folder, data_config):
  folder.write("dataset_flickr8k.json")
  with pytest.raises(UserError, match="split train has 5 images; flickr8k has 6,000"):
    load(data_config(name="flickr8k", image="features"))


def test_two_split_files_are_ambiguous(folder, data_config):
  folder.write("dataset_other.json")
  with pytest.raises(UserError, match="dataset_other.json, dataset_small.json; expected one"):
    load(data_config(image="features"))


def counts(splits):
  return {name: (len(split.image_id), len(split.text_id)) for name, split in splits.items()}


def test_flickr8k_on_features(shared, data_config):
  splits = load(
    data_config(
      name="flickr8k",
      dir=str(shared / "data/flickr8k"),
      image="features",
      text="features",
      image_features="features/image_mobilenetv2.npy",
      text_features="features/text_minilm.npy",
    )
  )
  assert counts(splits) == {"train": (6000, 30000), "val": (1000, 5000), "test": (1000, 5000)}
  assert splits["test"].image_features.shape == (1000, 1280) and splits[
    "test"
  ].text_features.shape == (5000, 384)
  assert isinstance(splits["train"].image_features, np.memmap)


def test_coco_test_captions_alone_are_a_test_split(shared, data_config):
  # No images and no image features are asked for: the captions are enough.
  config = data_config(name="coco", dir=str(shared / "data/coco5k_text"), image="none")
  assert counts(load(config)) == {"test": (5000, 25000)}


def test_flickr30k_has_its_published_splits(shared):
  folder = shared / "data/flickr30k_text"
  path = split_file.find_json(str(folder), "flickr30k")
  source = split_file.read_json(path)
  split_file.check_counts(source, "flickr30k", path)
  assert [source.rows_of(split).size for split in ("train", "val", "test")] == [29000, 1014, 1000]


def test_published_counts_of_coco_with_restval():
  known = split_file.KNOWN["coco"].counts
  assert known["train"] + known["restval"] == 113_287


def test_import_is_quick_and_never_brings_tensorflow():
  code = (
    "import sys, xmr.data; assert not {'tensorflow', 'tensorflow_datasets', 'jax'} & "
    "set(sys.modules);"
    "import xmr.data.builders, xmr.data.pipeline; assert 'tensorflow' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", code], check=True)


def test_json_without_sentids_or_tokens_is_enough(folder, data_config):
  for image in folder.content["images"]:
    del image["sentids"]
    for sentence in image["sentences"]:
      del sentence["tokens"], sentence["imgid"]
  folder.write()
  assert json.loads((folder.path / "dataset_small.json").read_text())["images"][0].keys() == {
    "filename",
    "imgid",
    "split",
    "sentences",
  }
  assert len(load(data_config(image="features"))["train"].texts) == 16


def test_a_split_without_any_image_is_left_out_and_said(folder, data_config):
  """Who scores has the images of the test split, not those of the others."""
  for image in folder.content["images"]:
    if image["split"] != "test":
      (folder.path / "images" / image["filename"]).unlink()
  splits = load(data_config())
  assert list(splits) == ["test"] and len(splits["test"].pixels) == 2
  assert splits.lines[0] == "train: left out, as none of its 5 images is in images/"
  assert len(splits.lines) == 3
  with pytest.raises(UserError, match="config.data.restval is True but train: left out"):
    load(data_config(restval=True))
  # One image of a split that is missing is a mistake; so are all of the set.
  first, second = (each for each in folder.content["images"] if each["split"] == "test")
  (folder.path / "images" / first["filename"]).unlink()
  with pytest.raises(UserError, match="is not in .*expected all 2 images"):
    load(data_config())
  (folder.path / "images" / second["filename"]).unlink()
  with pytest.raises(UserError, match="is not in .*expected all 10 images"):
    load(data_config())
