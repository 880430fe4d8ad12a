"""Files are there whole or not at all, whatever goes wrong while they are written."""

import json
import subprocess
import sys

import numpy as np
import pytest

from xmr.errors import UserError
from xmr.storage import digests, files


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_whole_and_nothing_lies_beside_it(tmp_path):
  path = tmp_path / "a.json"
  for x in (1, 2):
    files.write_json(path, {"x": x})
  assert json.loads(path.read_text()) == {"x": 2} and names(tmp_path) == ["a.json"]
  with pytest.raises(RuntimeError), files.replacing(path) as file:
    file.write(b"half")
    raise RuntimeError
  assert json.loads(path.read_text()) == {"x": 2} and names(tmp_path) == ["a.json"]


def test_numbers_that_json_lacks_leave_the_old_file(tmp_path):
  path = tmp_path / "results.json"
  files.write_json(path, {"rsum": 1.0})
  for bad in (float("nan"), float("inf")):
    with pytest.raises(ValueError, match="JSON"):
      files.write_json(path, {"rsum": bad})
  assert json.loads(path.read_text()) == {"rsum": 1.0} and names(tmp_path) == ["results.json"]


def test_arrays_come_back_and_objects_are_refused(tmp_path):
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  files.write_array(tmp_path / "x.npy", x)
  np.testing.assert_array_equal(np.load(tmp_path / "x.npy", allow_pickle=False), x)
  for compressed in (True, False):
    files.write_arrays(tmp_path / "x.npz", {"x": x, "n": np.array(3)}, compressed=compressed)
    with np.load(tmp_path / "x.npz", allow_pickle=False) as found:
      np.testing.assert_array_equal(found["x"], x)
      assert sorted(found) == ["n", "x"] and found["n"] == 3
  objects = np.array([{}, None])
  with pytest.raises(ValueError, match="bad holds Python objects"):
    files.write_arrays(tmp_path / "y.npz", {"x": x, "bad": objects})
  with pytest.raises(ValueError, match="pickle"):
    files.write_array(tmp_path / "y.npy", objects)
  assert names(tmp_path) == ["x.npy", "x.npz"]


def flipped(path):
  """Flips one bit of a file after the other; it is whole again at the end."""
  whole = path.read_bytes()
  for place in range(len(whole)):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << place % 8]) + whole[place + 1 :])
    yield place
  path.write_bytes(whole)


def test_a_flipped_bit_of_an_array_is_found_wherever_it_is(tmp_path):
  x = np.arange(6, dtype=np.float32).reshape(2, 3)
  path = tmp_path / "x.npy"
  files.write_array(path, x)
  np.testing.assert_array_equal(files.read_array(path), x)
  found = 0
  for _ in flipped(path):
    try:
      np.testing.assert_array_equal(files.read_array(path), x)  # A blank of the digest's header.
    except (OSError, ValueError):
      found += 1
  assert found > 128 + x.nbytes
  np.save(path, x)  # Of somebody else: without a digest.
  np.testing.assert_array_equal(files.read_array(path), x)


def test_a_flipped_bit_of_sealed_json_is_found_or_changes_nothing(tmp_path):
  path, content = tmp_path / "x.json", {"rsum": 437.9, "folds": [1, 2], "names": {"ä": None}}
  files.write_json(path, digests.sealed(content))
  assert files.read_json(path) == content
  for _ in flipped(path):
    try:
      found = files.read_json(path)
    except UserError:
      continue
    # White space between values, or the name of the digest itself.
    assert {name: found.get(name) for name in content} == content


def test_a_file_is_as_readable_as_one_that_is_opened_plainly(tmp_path):
  files.write_text(tmp_path / "a", "x")
  (tmp_path / "b").write_text("x")
  assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_the_longest_name_that_a_folder_takes_is_written(tmp_path):
  name = "\N{ALARM CLOCK}" * 63  # 252 bytes
  files.write_text(tmp_path / name, "x")
  assert names(tmp_path) == [name]


@pytest.mark.parametrize("make", [files.replacing, files.new_folder])
def test_what_a_killed_writer_left_goes_with_the_next_and_what_another_writes_stays(tmp_path, make):
  path = tmp_path / "a[1].json"
  code = (
    "import os\nfrom xmr.storage import files\n"
    f"with files.{make.__name__}({str(path)!r}):\n  os.kill(os.getpid(), 9)"
  )
  subprocess.run([sys.executable, "-c", code])
  (left,) = tmp_path.iterdir()
  with make(path):
    (writing,) = tmp_path.iterdir()
    assert writing != left
    with make(tmp_path / "a[1].json"):
      assert writing.exists() and len(list(tmp_path.iterdir())) == 2
    if make is files.new_folder:
      path.rmdir()
  assert list(tmp_path.iterdir()) == [path]
