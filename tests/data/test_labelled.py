"""Labelled sets: the official lists as they are, a validation part beside them, and every mistake
named.
"""

import gzip
import json

import numpy as np
import pytest
from scipy import io

from xmr.data import labelled, load
from xmr.errors import UserError

CATEGORIES = ["art", "sport"]


def write(folder, *, per_split=None, split_file=False):
  """Writes a folder of a labelled set with two categories; returns {split: [(text, image,
  category), ...]}.
  """
  folder.mkdir(exist_ok=True)
  rows = {
    split: [(f"{split}-t{i}", f"{split}-i{i}", i % 2 + 1) for i in range(count)]
    for split, count in (per_split or {"train": 20, "test": 6}).items()
  }
  (folder / "categories.list").write_text("".join(f"{name}\n" for name in CATEGORIES))
  everything = [row for part in rows.values() for row in part]
  if split_file:
    lists = {"txt_img_cat.list": everything}
    lines = (f"{text}\t{split}\n" for split, part in rows.items() for text, _, _ in part)
    (folder / "split.list").write_text("".join(lines))
  else:
    lists = {f"{split}set_txt_img_cat.list": part for split, part in rows.items()}
  for file, part in lists.items():
    (folder / file).write_text("".join(f"{t}\t{i}\t{c}\n" for t, i, c in part))
  named = [(text, CATEGORIES[c - 1]) for text, _, c in everything]
  texts(
    folder,
    [{"text_id": text, "category": name, "text": f"Word {text} of {name}"} for text, name in named],
  )
  counts = {"tr": sum(len(rows[s]) for s in rows if s != "test"), "te": len(rows["test"])}
  rng = np.random.default_rng(0)
  io.savemat(
    folder / "raw_features.mat",
    {
      f"{m}_{s}": rng.random((n, width))
      for m, width in (("I", 8), ("T", 3))
      for s, n in counts.items()
    },
  )
  return rows


def texts(folder, rows):
  with gzip.open(folder / "texts.jsonl.gz", "wt") as file:
    file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def small(monkeypatch):
  """Lets a wikipedia folder have any number of pairs."""
  layout = labelled.LAYOUTS["wikipedia"]
  monkeypatch.setitem(
    labelled.LAYOUTS, "wikipedia", labelled.Layout(layout.lists, {}, layout.source)
  )


@pytest.fixture
def source(tmp_path, small, data_config):
  """Returns (folder, rows, function of fields that makes a config)."""
  rows = write(tmp_path / "source")
  return (
    tmp_path / "source",
    rows,
    lambda **fields: data_config(**{"name": "wikipedia", "image_features": ""} | fields),
  )


def test_pairs_keep_text_image_category_and_features_together(source):
  folder, rows, config = source
  splits, features = load(config()), io.loadmat(folder / "raw_features.mat")
  for name in ("train", "val", "test"):
    split = splits[name]
    part = rows["test" if name == "test" else "train"]
    images, lda = (features[f"{m}_{'te' if name == 'test' else 'tr'}"] for m in "IT")
    at = [[image for _, image, _ in part].index(image) for image in split.image_names]
    assert split.texts == [f"Word {part[i][0]} of {CATEGORIES[part[i][2] - 1]}" for i in at]
    assert split.tokens[0][0] == "word"
    np.testing.assert_array_equal(split.label, [part[i][2] - 1 for i in at])
    assert split.categories == CATEGORIES
    np.testing.assert_allclose(split.image_features, images[at], rtol=1e-6)
    np.testing.assert_allclose(split.text_features, lda[at], rtol=1e-6)
    np.testing.assert_array_equal(split.image_of_text, np.arange(len(at)))


def test_validation_is_a_tenth_of_each_category_of_train_and_always_the_same(source):
  _, rows, config = source
  splits, again = load(config()), load(config())
  names = {name: set(split.image_names) for name, split in splits.items()}
  assert {name: len(found) for name, found in names.items()} == {"train": 18, "val": 2, "test": 6}
  assert sorted(splits["val"].label) == [0, 1]
  assert names["train"] | names["val"] == {image for _, image, _ in rows["train"]}
  assert not names["train"] & names["val"] and names["test"] == {
    image for _, image, _ in rows["test"]
  }
  assert again["val"].image_names == splits["val"].image_names


def test_a_split_file_decides_where_there_is_one(tmp_path, data_config):
  rows = write(tmp_path / "source", per_split={"test": 4, "train": 8, "val": 2}, split_file=True)
  splits = load(data_config(name="tvgraz", image_features=""))
  assert {name: split.image_names for name, split in splits.items()} == {
    name: [image for _, image, _ in part] for name, part in rows.items()
  }
  features = io.loadmat(tmp_path / "source" / "raw_features.mat")
  np.testing.assert_allclose(splits["val"].image_features, features["I_tr"][8:], rtol=1e-6)
  np.testing.assert_allclose(splits["test"].image_features, features["I_te"], rtol=1e-6)


def test_npy_features_take_the_place_of_those_in_the_mat(source):
  folder, _, config = source
  matrix = np.random.default_rng(1).random((26, 5)).astype(np.float32)
  np.save(folder / "fc7.npy", matrix)
  splits = load(config(image_features="fc7.npy"))
  np.testing.assert_array_equal(splits["test"].image_features, matrix[20:])
  np.testing.assert_array_equal(splits["val"].image_features, matrix[splits["val"].image_id])


def test_npy_features_of_the_wrong_length_are_refused(source):
  folder, _, config = source
  np.save(folder / "fc7.npy", np.zeros((25, 5), np.float32))
  with pytest.raises(UserError, match="25.*26|26.*25"):
    load(config(image_features="fc7.npy"))


def edit(folder, file, old, new):
  text = (folder / file).read_text()
  assert old in text
  (folder / file).write_text(text.replace(old, new, 1))


BAD = {
  "unknown category": (
    lambda f: edit(f, "trainset_txt_img_cat.list", "train-i3\t2", "train-i3\t3"),
    "line 4: category '3'; expected 1 to 2",
  ),
  "category of the text": (
    lambda f: edit(f, "trainset_txt_img_cat.list", "train-i3\t2", "train-i3\t1"),
    "says sport of text 'train-t3'",
  ),
  "missing text": (
    lambda f: edit(f, "testset_txt_img_cat.list", "test-t0", "other"),
    "testset.*line 1: text 'other' is not in texts.jsonl.gz",
  ),
  "missing column": (
    lambda f: edit(f, "testset_txt_img_cat.list", "test-t0\t", ""),
    "line 1: 2 columns; expected 3",
  ),
  "overlap": (
    lambda f: edit(f, "testset_txt_img_cat.list", "test-t0\ttest-i0", "train-t0\ttest-i0"),
    "text 'train-t0' is in train and in test; splits must not overlap",
  ),
  "image overlap": (
    lambda f: edit(f, "testset_txt_img_cat.list", "test-t0\ttest-i0", "test-t0\ttrain-i0"),
    "image 'train-i0' is in train and in test",
  ),
  "text twice": (
    lambda f: edit(f, "trainset_txt_img_cat.list", "train-t2\t", "train-t0\t"),
    "20|26 pairs of 25 texts",
  ),
  "no category file": (
    lambda f: (f / "categories.list").unlink(),
    "has no categories.list; expected the folder of wikipedia",
  ),
  "not gzip": (lambda f: (f / "texts.jsonl.gz").write_text("x"), "texts.jsonl.gz cannot be read"),
  "empty text": (
    lambda f: texts(
      f, [{"text_id": f"{s}-t{i}", "text": " "} for s in ("train", "test") for i in range(20)]
    ),
    "line 1: text 'train-t0' is empty",
  ),
  "text row": (
    lambda f: texts(f, [{"id": 1}]),
    "line 1: 'text'; expected JSON with text_id and text",
  ),
  "short features": (
    lambda f: io.savemat(f / "raw_features.mat", {"I_tr": np.zeros((19, 8))}),
    r"I_tr is float64 \(19, 8\); expected float \(20, features\)",
  ),
  "damaged features": (
    lambda f: (f / "raw_features.mat").write_bytes(b"x" * 300),
    "is no MATLAB file",
  ),
}


@pytest.mark.parametrize("damage, message", BAD.values(), ids=BAD)
def test_bad_data_is_named_before_anything_is_prepared(source, tmp_path, damage, message):
  folder, _, config = source
  damage(folder)
  with pytest.raises(UserError, match=message):
    load(config())
  assert not (tmp_path / "cache").exists()


def test_wrong_counts_of_the_published_set_are_refused(tmp_path, data_config):
  write(tmp_path / "source")
  with pytest.raises(
    UserError,
    match="20 training and 6 test pairs; expected those of wikipedia.*2,173 train / 693 test",
  ):
    load(data_config(name="wikipedia", image_features=""))


@pytest.mark.parametrize("name", ["tvgraz", "wikipedia_zh"])
def test_absent_data_prints_the_expected_tree(name, data_config):
  with pytest.raises(UserError, match="txt_img_cat.list(.|\n)*split.list(.|\n)*texts.jsonl.gz"):
    load(data_config(name=name, image_features="fc7.npy"))


def test_chinese_is_cut_into_words():
  pytest.importorskip("jieba", reason="the extra 'chinese'", exc_type=ImportError)
  assert labelled.segmenter()("艺术 是文化") == ["艺术", "是", "文化"]


def test_chinese_without_jieba_says_what_to_install(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "jieba", None)
  with pytest.raises(UserError, match=r"pip install -e '.\[chinese\]'"):
    labelled.segmenter()


def test_english_wikipedia_is_the_published_one(shared, data_config):
  splits = load(
    data_config(
      name="wikipedia", dir=str(shared / "data" / "wikipedia"), image_features="raw_features.mat"
    )
  )
  assert {name: len(split.texts) for name, split in splits.items()} == {
    "train": 1956,
    "val": 217,
    "test": 693,
  }
  assert splits["train"].image_features.shape == (1956, 128) and splits[
    "test"
  ].text_features.shape == (693, 10)
  assert np.bincount(splits["train"].label).tolist() == [
    124,
    245,
    220,
    223,
    182,
    160,
    167,
    130,
    193,
    312,
  ]
