"""Files that hang a reader, or end it with a traceback: each is one line that names the file."""

import contextlib
import io
import os
import signal
import struct
import tempfile
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from xmr import config as config_lib
from xmr import recipe
from xmr.data import Split, features, images, labelled, load, regions, split_file
from xmr.data.files import opened
from xmr.data.text import Vocabulary, load_glove, tokenize
from xmr.errors import UserError
from xmr.inspect import extraction, pictures, plots
from xmr.interop import folders, vsepp
from xmr.results import records
from xmr.storage import files


@contextlib.contextmanager
def within(seconds):
  """Fails where a block takes longer, also where it waits for ever."""

  def late(*_):
    raise AssertionError(f"longer than {seconds} seconds")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(seconds)
  try:
    yield
  finally:
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def fifo(tmp_path):
  path = tmp_path / "pipe"
  os.mkfifo(path)
  return path


def test_a_pipe_is_no_dataset(folder, data_config):
  (folder.path / "dataset_small.json").unlink()
  os.mkfifo(folder.path / "dataset_small.json")
  with within(20), pytest.raises(UserError, match="dataset_small.json is no plain file"):
    load(data_config(image="features"))


def test_a_pipe_is_no_image(folder, data_config):
  (folder.path / "images/picture3.jpg").unlink()
  os.mkfifo(folder.path / "images/picture3.jpg")
  with within(20), pytest.raises(UserError, match="image picture3.jpg in .* is no file"):
    load(data_config())


def test_a_pipe_holds_no_features_and_no_word_vectors(fifo):
  with within(20), pytest.raises(UserError, match="config.f: .*pipe is no plain file"):
    features.open_features(fifo, field="f", rows=3, row_is="imgid")
  with within(20), pytest.raises(UserError, match="pipe is no plain file; expected a GloVe"):
    load_glove(fifo, Vocabulary.build([["a"]]), seed=0)


def test_a_pipe_is_no_thumbnail(tmp_path):
  (tmp_path / "images").mkdir()
  os.mkfifo(tmp_path / "images/a.png")
  with within(20):
    assert plots.picture(split_named("a.png"), 0, folder=tmp_path) is None


def test_a_folder_and_an_absent_file_are_no_files(tmp_path):
  for path, message in ((tmp_path, "is a folder"), (tmp_path / "no", "No such file")):
    with pytest.raises(UserError, match=message), opened(path):
      pass


@pytest.mark.parametrize("unit", ["a. ", "a.)", "? ", "' ", "a" * 20 + ". "])
def test_tokenize_is_linear(unit):
  def seconds(count):
    start = time.process_time()
    tokenize(unit * count)
    return time.process_time() - start

  few = min(seconds(2_000) for _ in range(3))
  assert seconds(16_000) < 8 * 4 * few + 0.2


def test_no_folder_is_left_in_the_temporary_one(folder, data_config, tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  load(data_config())
  load(data_config())
  assert not list(tmp_path.glob("*tfds*"))


def split_named(name):
  rows = np.arange(1, dtype=np.int32)
  return Split("test", rows, rows, rows, [name], ["a dog"], [["a", "dog"]])


def test_a_file_name_is_no_formula():
  one = np.ones((1, 2), np.float32)
  plots.pixels(plots.retrieved(one, one, split_named("$^$a.png"), k=1))


def png_with_bomb(*, after):
  """A PNG of 8 x 8 pixels with compressed text of 80 MB before or after its pixels."""
  file = io.BytesIO()
  Image.new("RGB", (8, 8)).save(file, "PNG")
  content, text = file.getvalue(), b"zTXt" + b"a\0\0" + zlib.compress(b"x" * (80 << 20))
  bomb = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
  at = len(content) - 12 if after else 33
  return content[:at] + bomb + content[at:]


@pytest.mark.parametrize("after", [False, True])
def test_a_text_bomb_in_a_png_is_one_line(after):
  content = png_with_bomb(after=after)
  for read in (images.decode, images.verify):
    with pytest.raises(UserError, match="image a.png is .*Decompressed data too large"):
      read(content, name="a.png")
  split = split_named("a.png")
  object.__setattr__(split, "pixels", [content])
  assert plots.picture(split, 0) is None


@pytest.mark.parametrize("target", ["nowhere.jpg", "picture3.jpg"])
def test_broken_and_looping_links_are_named(folder, data_config, target):
  path = folder.path / "images/picture3.jpg"
  path.unlink()
  path.symlink_to(target)
  with pytest.raises(UserError, match="image picture3.jpg in .* is a link that leads nowhere"):
    load(data_config())


def test_half_a_surrogate_pair_is_no_caption(folder, data_config):
  folder.content["images"][3]["sentences"][0]["raw"] = "a \ud83d dog"
  folder.write()
  with pytest.raises(UserError, match=r"images\[3\] .*sentid 9 holds half of a surrogate pair"):
    load(data_config(image="features"))
  with pytest.raises(UserError, match="half of a surrogate pair"):
    split_file.read_json(folder.path / "dataset_small.json")


@pytest.mark.parametrize(
  "shape", ["(-4, 5)", "(4, -5)", "(-4, -5)", "(True, 4)", "(99999999999999999999, 5)", "()"]
)
def test_a_header_of_impossible_dimensions_is_one_line(tmp_path, shape):
  header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode()
  header += b" " * (-(len(header) + 11) % 64) + b"\n"
  path = tmp_path / "x.npy"
  path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(400))
  with pytest.raises(UserError, match="config.f: .*x.npy"):
    features.open_features(path, field="f", rows=4, row_is="imgid")


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (640, 427), (7, 90)])
@pytest.mark.parametrize("resize", [256, 224, 72])
def test_ten_crops_and_centre_crops_are_of_torchvisions_size(size, resize):
  image = Image.effect_noise(size, 50).convert("RGB")
  short, long = min(size), max(size)
  wanted = int(
    resize * long / short
  )  # torchvision.transforms.functional._compute_resized_output_size
  whole = images.shorter_side(image, resize)
  assert sorted(whole.size) == sorted((resize, wanted))
  crops = extraction.views(image, size=64, resize=resize, average="ten_crop")
  corner = np.asarray(whole)[-64:, -64:]
  np.testing.assert_array_equal(crops[3], corner)


def test_the_longer_side_is_torchvisions_at_every_size():
  for short in range(100, 700, 7):
    found = images.shorter_side(Image.new("RGB", (short, 701)), 72).size
    assert sorted(found) == sorted((72, int(72 * max(short, 701) / min(short, 701))))


READERS = {
  "array": lambda path: files.read_array(path),
  "arrays": files.read_arrays,
  "lines": lambda path: list(files.json_lines(path)),
  "picture": pictures.opened,
  "JSON of a model": folders.read_json,
  "vocabulary": vsepp.read_vocabulary,
  "list": lambda path: list(labelled._rows(path.parent, path.name, 2)),
  "mask": lambda path: regions._mask(path, (1, 1)),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_a_pipe_keeps_no_reader_waiting(fifo, read):
  with within(20), pytest.raises((UserError, ValueError), match="plain file"):
    read(fifo)


@pytest.mark.parametrize("content", ["[" * 100_000, "null", "[]", "\udcff", "{", ""])
def test_odd_json_of_others_is_one_line(tmp_path, content):
  path = tmp_path / "source.json"
  path.write_bytes(content.encode("utf-8", "surrogateescape"))
  config = config_lib.base_config()
  for read in (folders.read_json, vsepp.read_vocabulary):
    with pytest.raises(UserError, match="source.json"):
      read(path)
  with pytest.raises(UserError, match="source.json"):
    recipe.imported(config, tmp_path)
  with pytest.raises(UserError, match="source.json"):
    records.read(tmp_path)
