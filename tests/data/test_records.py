"""Prepared images: complete or absent, rebuilt when the source changes, and every bad image
named.
"""

import multiprocessing
import os
import pathlib
import struct
import sys
import zlib

import numpy as np
import pytest

from xmr.data import load, records
from xmr.errors import UserError


def test_pixels_are_the_bytes_of_the_files(folder, data_config):
  splits = load(data_config(restval=True))
  for split in splits.values():
    assert len(split.pixels) == len(split.image_names)
    for row, name in enumerate(split.image_names):
      assert split.pixels[row] == (folder.path / "images" / name).read_bytes()
  with pytest.raises(IndexError):
    splits["test"].pixels[2]
  assert "tensorflow" not in sys.modules


def test_second_load_reads_the_cache(folder, data_config, tmp_path, capfd):
  load(data_config())
  first = capfd.readouterr()
  assert "preparing" in first.err and not first.out
  load(data_config(restval=True))
  assert "preparing" not in capfd.readouterr().err
  assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_altered_sources_are_prepared_again(folder, data_config, picture):
  before = load(data_config())["test"].pixels[0]
  (folder.path / "images/picture1.jpg").write_bytes(picture(77))
  assert load(data_config())["test"].pixels[0] == picture(77) != before
  folder.content["images"][1]["split"] = "train"
  folder.write()
  assert len(load(data_config())["test"].pixels) == 1


def test_interrupted_preparation_is_not_taken_as_complete(
  folder, data_config, tmp_path, monkeypatch
):
  def interrupt(*args, **kwargs):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(records.os, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt):
      load(data_config())
  cache = tmp_path / "cache"
  assert not [path for path in cache.iterdir() if path.is_dir()]
  # What a killed process leaves behind is removed, and not read.
  (lock,) = cache.iterdir()
  rest = cache / f"{lock.stem}.tmp-killed"
  rest.mkdir()
  assert len(load(data_config())["train"].pixels) == 5
  assert not rest.exists()


def load_in_process(config_fields, results):
  import ml_collections

  splits = load(ml_collections.ConfigDict(config_fields))
  results.put([split.pixels[len(split.pixels) - 1] for split in splits.values()])


def test_processes_that_start_together_share_one_preparation(folder, data_config, tmp_path):
  context = multiprocessing.get_context("spawn")
  results = context.Queue()
  config = data_config().to_dict()
  processes = [context.Process(target=load_in_process, args=(config, results)) for _ in range(3)]
  for process in processes:
    process.start()
  loaded = [results.get(timeout=600) for _ in processes]
  for process in processes:
    process.join()
  assert loaded[0] == loaded[1] == loaded[2]
  assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1


def test_damaged_cache_is_named(folder, data_config, tmp_path):
  load(data_config())
  for path in (tmp_path / "cache").rglob("*test.array_record*"):
    path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(UserError, match="cache/karpathy-.* is damaged .*delete it"):
    load(data_config())


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_cache_that_cannot_be_written_is_named(folder, data_config, tmp_path, place):
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="config.data.cache_dir: cannot prepare karpathy"):
    load(data_config(cache_dir=str(tmp_path / place)))


def test_absent_folder_and_absent_image_are_named(folder, data_config):
  (folder.path / "images/picture3.jpg").unlink()
  with pytest.raises(
    UserError, match="image picture3.jpg is not in .*images; expected all 10 images"
  ):
    load(data_config())
  os.rename(folder.path / "images", folder.path / "pictures")
  with pytest.raises(UserError, match="images is no folder; expected the 10 images"):
    load(data_config())


def png_of_size(width, height):
  def chunk(kind, content):
    return (
      struct.pack(">I", len(content))
      + kind
      + content
      + struct.pack(">I", zlib.crc32(kind + content))
    )

  header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
  return (
    b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
  )


@pytest.mark.parametrize(
  ("damage", "message"),
  [
    (lambda content: content[: len(content) // 2], "image picture3.jpg is truncated or damaged"),
    (lambda content: content[:10], "image picture3.jpg is"),
    (lambda content: b"<html>Not Found</html>", "image picture3.jpg is no JPEG"),
    (lambda content: b"", "image picture3.jpg .*is no file, or empty"),
    (lambda content: png_of_size(10_000, 10_000), "image picture3.jpg is too large: 10000 x 10000"),
    (lambda content: png_of_size(100_000, 100_000), "image picture3.jpg is too large"),
  ],
)
def test_bad_image_is_named_before_training(folder, data_config, damage, message, tmp_path):
  path = folder.path / "images/picture3.jpg"
  path.write_bytes(damage(path.read_bytes()))
  with pytest.raises(UserError, match=message) as error:
    load(data_config())
  assert type(error.value) is UserError
  assert not (tmp_path / "cache").exists() or not [
    p for p in (tmp_path / "cache").iterdir() if p.is_dir()
  ]


def test_links_that_leave_the_folder_are_refused(folder, data_config, tmp_path, picture):
  outside = tmp_path / "outside"
  outside.mkdir()
  (outside / "picture3.jpg").write_bytes(picture(3))
  inside = folder.path / "images/picture3.jpg"
  inside.unlink()
  inside.symlink_to(outside / "picture3.jpg")
  with pytest.raises(UserError, match="image picture3.jpg in .* is a link to .*outside"):
    load(data_config())

  inside.unlink()
  (folder.path / "images/part").symlink_to(outside)
  folder.content["images"][3]["filepath"] = "part"
  folder.write()
  with pytest.raises(UserError, match="part is a link to .*outside"):
    load(data_config())


def test_the_images_folder_may_be_a_link(folder, data_config, tmp_path):
  os.rename(folder.path / "images", tmp_path / "elsewhere")
  (folder.path / "images").symlink_to(tmp_path / "elsewhere")
  assert len(load(data_config())["train"].pixels) == 5


def test_images_below_filepath_are_found(folder, data_config):
  (folder.path / "images/val2014").mkdir()
  for image in folder.content["images"][2:5]:
    image["filepath"] = "val2014"
    os.rename(
      folder.path / "images" / image["filename"], folder.path / "images/val2014" / image["filename"]
    )
  folder.write()
  splits = load(data_config())
  assert splits["train"].image_names[:2] == ["picture0.jpg", "val2014/picture2.jpg"]
  assert splits["train"].pixels[1] == (folder.path / "images/val2014/picture2.jpg").read_bytes()


def test_source_may_be_read_only(folder, data_config):
  before = sorted(path.name for path in folder.path.iterdir())
  load(data_config())
  assert sorted(path.name for path in folder.path.iterdir()) == before


def test_cache_dir_may_start_with_a_tilde(folder, data_config, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  load(data_config(cache_dir="~/.cache/xmr"))
  assert list(pathlib.Path(tmp_path, "home/.cache/xmr").glob("karpathy-*"))


def test_a_flipped_bit_of_prepared_images_is_named_or_changes_no_pixel(
  folder, data_config, tmp_path
):
  split = load(data_config())["train"]
  whole = [bytes(split.pixels[row]) for row in range(len(split.pixels))]
  (path,) = (tmp_path / "cache").rglob("*train.array_record*")
  content, rng = path.read_bytes(), np.random.default_rng(6)
  # The first and the last image are read when the set is opened, the others with their batch.
  inside = [content.index(image[200:240]) + int(rng.integers(40)) for image in whole]
  for at in [*inside, *rng.integers(len(content), size=10)]:
    path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
    try:
      split = load(data_config())["train"]
      assert [bytes(split.pixels[row]) for row in range(len(whole))] == whole
      assert at not in inside
    except UserError as error:
      assert "delete" in str(error)
