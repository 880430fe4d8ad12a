"""Feature files: what is read, what is refused."""

import numpy as np
import pytest

from xmr.data import features, load
from xmr.errors import UserError


@pytest.fixture
def save(tmp_path):
  def write(array):
    path = tmp_path / "features.npy"
    np.save(path, array)
    return path

  return write


def open_features(path, rows=6):
  return features.open_features(path, field="data.image_features", rows=rows, row_is="imgid")


def test_rows_stay_on_disk_where_they_are_consecutive(save):
  array = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float16)
  matrix = open_features(save(array))
  assert isinstance(matrix, np.memmap)
  part = features.take_rows(matrix, np.arange(2, 5))
  assert np.shares_memory(part, matrix)
  np.testing.assert_array_equal(part, array[2:5])
  np.testing.assert_array_equal(features.take_rows(matrix, np.array([4, 0])), array[[4, 0]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows_in_block", [1, 4, 100])
def test_nan_and_infinity_are_found_and_their_row_named(save, value, rows_in_block, monkeypatch):
  monkeypatch.setattr(features, "_BLOCK_BYTES", rows_in_block * 4 * 4)
  array = np.ones((6, 4), np.float32)
  array[5, 2] = value
  array[5, 1] = -value
  with pytest.raises(
    UserError, match="config.data.image_features: .*features.npy holds NaN or infinity in row 5"
  ):
    open_features(save(array))


@pytest.mark.parametrize(
  ("array", "message"),
  [
    (np.ones((5, 4)), "5 rows; expected 6, one per imgid"),
    (np.ones(6), r"shape \(6,\); expected two dimensions"),
    (np.ones((6, 0)), "expected two dimensions"),
    (np.ones((6, 4), int), "holds int64; expected float16"),
    (np.array([{"a": 1}] * 6), "no .npy array of numbers"),
  ],
)
def test_other_arrays_are_refused(save, array, message):
  with pytest.raises(UserError, match=message):
    open_features(save(array))


@pytest.mark.parametrize(
  "content", [b"", b"PK\x03\x04 not a zip", b"text", b"\x93NUMPY\x01\x00v\x00{'descr"]
)
def test_other_files_are_refused(tmp_path, content):
  path = tmp_path / "features.npy"
  path.write_bytes(content)
  with pytest.raises(UserError, match="config.data.image_features: .*features.npy"):
    open_features(path)


def test_truncated_and_absent_files_are_refused(save, tmp_path):
  path = save(np.ones((6, 4)))
  path.write_bytes(path.read_bytes()[:-8])
  for each in (path, tmp_path / "absent.npy"):
    with pytest.raises(UserError, match=each.name):
      open_features(each)


def test_scales(save, monkeypatch):
  monkeypatch.setattr(features, "_BLOCK_BYTES", 32)
  array = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
  array[:, 3] = 0
  matrix = open_features(save(array))
  np.testing.assert_allclose(
    np.linalg.norm(features.scale(matrix, "column"), axis=0), [1, 1, 1, 0], rtol=1e-6
  )
  np.testing.assert_allclose(np.linalg.norm(features.scale(matrix, "row"), axis=1), 1, rtol=1e-6)
  assert features.scale(matrix, "none") is matrix
  assert features.scale(matrix, "row").dtype == np.float32


def test_columns_are_scaled_over_all_splits(folder, data_config):
  splits = load(data_config(image="features", image_features_scale="column"))
  array = np.load(folder.path / "image.npy").astype(np.float32)
  np.testing.assert_allclose(
    splits["test"].image_features, (array / np.linalg.norm(array, axis=0))[[1, 9]], rtol=1e-5
  )


def test_features_belong_to_their_image_and_caption(folder, data_config):
  # Shuffled imgid: the row is the imgid, not the place in the JSON.
  folder.content["images"].reverse()
  folder.write()
  splits = load(data_config(image="features", text="features"))
  image, text = np.load(folder.path / "image.npy"), np.load(folder.path / "text.npy")
  for split in splits.values():
    np.testing.assert_array_equal(split.image_features, image[split.image_id])
    np.testing.assert_array_equal(split.text_features, text[split.text_id])
  assert splits["train"].image_id.tolist() == [8, 6, 5, 2, 0]


def test_rows_follow_the_json_where_sentids_have_gaps(folder, data_config):
  for image in folder.content["images"]:
    del image["sentids"]
    for sentence in image["sentences"]:
      sentence["sentid"] = 1000 - 7 * sentence["sentid"]
  folder.write()
  splits = load(data_config(image="features", text="features"))
  text = np.load(folder.path / "text.npy")
  np.testing.assert_array_equal(splits["test"].text_features, text[[2, 3, 4, -2, -1]])


def test_images_are_not_needed_with_features(folder, data_config, tmp_path):
  for path in (folder.path / "images").iterdir():
    path.unlink()
  (folder.path / "images").rmdir()
  assert load(data_config(image="features"))["train"].pixels is None
  assert not (tmp_path / "cache").exists()


def test_wrong_row_count_names_the_file_and_field(folder, data_config):
  np.save(folder.path / "text.npy", np.ones((3, 4)))
  with pytest.raises(
    UserError,
    match=r"config.data.text_features: .*text.npy has 3 rows; expected 29, one per sentid",
  ):
    load(data_config(image="features", text="features"))
