import gc
import json
import pathlib
import shutil
import subprocess
import sys
import threading
import time
import tracemalloc

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorstore

from xmr import checkpoint, parallel, run_folder
from xmr.checkpoint import leaks, reading, threads
from xmr.errors import UserError


@pytest.fixture(scope="module")
def trees():
  mesh = parallel.mesh()
  params = parallel.replicate(
    mesh, {"encoder": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}
  )
  opt_state = parallel.replicate(mesh, optax.adam(1e-3).init(params))
  batch_stats = parallel.replicate(mesh, {"norm": {"mean": np.full(3, 0.25, np.float32)}})
  return params, {
    "step": parallel.replicate(mesh, np.int32(7)),
    "opt_state": opt_state,
    "batch_stats": batch_stats,
  }


@pytest.fixture(scope="module")
def saved(tmp_path_factory, trees):
  """A run folder with steps 5 (score 1), 7 (score 9, the best), 9 (score 9), 11 and 13 (not
  validated).
  """
  folder = tmp_path_factory.mktemp("saved")
  (folder / "config.json").write_text("{}")
  checkpoints = checkpoint.Checkpoints(folder)
  for step, score in ((5, 1.0), (7, 9.0), (9, 9.0), (11, None), (13, None)):
    params = {"encoder": {"kernel": trees[0]["encoder"]["kernel"] + step}}
    checkpoints.save(step, params=params, state=trees[1], run={"best": step}, score=score)
  checkpoints.close()
  return folder


@pytest.fixture
def run(saved, tmp_path):
  """A copy of the run folder."""
  return pathlib.Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture(autouse=True)
def late_answers(monkeypatch):
  """What tensorstore says after a failure comes while the hook of `threads` is there."""
  monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
  yield
  gc.collect()


def damage(folder):
  for file in folder.rglob("*"):
    if file.is_file():
      file.write_bytes(b"")


def test_the_two_newest_and_the_first_of_the_best_are_kept(run):
  checkpoints = checkpoint.Checkpoints(run)
  assert checkpoints.steps() == [7, 11, 13]
  assert checkpoints.best() == 7
  checkpoints.close()


def test_latest_restores_every_leaf_and_its_structure(run, trees):
  checkpoints = checkpoint.Checkpoints(run)
  step, params, state, record = checkpoints.latest(*trees)
  assert (step, record) == (13, {"best": 13})
  np.testing.assert_array_equal(params["encoder"]["kernel"], np.arange(6.0).reshape(2, 3) + 13)
  assert int(state["step"]) == 7
  assert isinstance(state["opt_state"][0], optax.ScaleByAdamState)
  checkpoints.close()


@pytest.mark.parametrize(
  "harm",
  [damage, lambda folder: (shutil.rmtree(folder), folder.mkdir())],
  ids=["truncated", "empty"],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(run, trees, harm, capsys):
  harm(run / "checkpoints" / "13")
  checkpoints = checkpoint.Checkpoints(run)
  assert checkpoints.latest(*trees)[0] == 11
  assert "checkpoints/13 does not restore" in capsys.readouterr().err
  assert (run / "unreadable" / "13").is_dir()
  checkpoints.save(13, params=trees[0], state=trees[1], run={})
  assert checkpoints.latest(*trees)[0] == 13
  checkpoints.close()


def flip(file, rng, bits=1):
  """Flips single bits of a file."""
  content = bytearray(file.read_bytes())
  for _ in range(bits):
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)
  file.write_bytes(content)


@pytest.mark.parametrize("item", ["params", "state", "run", "metrics", "."])
def test_a_flipped_bit_anywhere_gives_the_saved_numbers_or_the_step_before(run, item, capsys):
  rng, taken = np.random.default_rng(5), []
  newest = run / "checkpoints" / "7"
  files = [path for path in sorted((newest / item).rglob("*")) if path.is_file()]
  if item == ".":
    files = [path for path in files if path.parent == newest]
  for file in files:
    whole = file.read_bytes()
    for _ in range(3):
      flip(file, rng)
      found, variables, record = checkpoint.load(run, "best")
      assert record["best"] == found and found in (7, 13)
      kernel = variables["params"]["encoder"]["kernel"]
      np.testing.assert_array_equal(kernel, np.arange(6.0).reshape(2, 3) + found)
      np.testing.assert_array_equal(variables["batch_stats"]["norm"]["mean"], np.full(3, 0.25))
      warned = "checkpoints/7 does not restore" in capsys.readouterr().err
      assert warned == (found == 13)
      taken.append(found)
      file.write_bytes(whole)
  assert 13 in taken or item == "."


def test_what_is_damaged_but_not_the_newest_is_put_aside_before_the_next_save(run, trees, capsys):
  (run / "checkpoints" / "7" / "metrics" / "metrics").write_text("[]")
  (run / "checkpoints" / "11" / "_CHECKPOINT_METADATA").write_bytes(b"\xff")
  checkpoints = checkpoint.Checkpoints(run)
  assert checkpoints.latest(*trees)[0] == 13
  assert checkpoints.steps() == [7, 11, 13]
  checkpoints.save(15, params=trees[0], state=trees[1], run={}, score=2.0)
  assert checkpoints.steps() == [13, 15]
  assert sorted(path.name for path in (run / "unreadable").iterdir()) == ["11", "7"]
  said = capsys.readouterr().err
  assert "checkpoints/7 does not restore" in said and "checkpoints/11 does not" in said
  checkpoints.close()


def test_where_none_restores_nothing_is_moved_and_one_line_says_how_to_start_afresh(run, trees):
  before = sorted(run.rglob("*"))
  for step in ("7", "11", "13"):
    (run / "checkpoints" / step / "run" / "metadata").write_text("{")
  checkpoints = checkpoint.Checkpoints(run)
  with pytest.raises(UserError, match="13 .*11 .*7 .*Nothing was changed; to start afresh, give"):
    checkpoints.latest(*trees)
  assert sorted(run.rglob("*")) == before
  with pytest.raises(UserError, match="no checkpoint of .* can be read: step 13 .*11 .*7 "):
    checkpoint.load(run, "latest")


def test_a_wanted_step_that_is_damaged_is_refused_and_the_others_are_named(run):
  shutil.rmtree(run / "checkpoints" / "11" / "params")
  with pytest.raises(UserError, match="can be read: step 11 .*; it has 7, 13, too"):
    checkpoint.load(run, 11)


@pytest.mark.parametrize("harm", ["cut", "zeroed", "empty", "missing", "metadata", "folder"])
def test_a_damaged_best_checkpoint_is_named_and_the_next_is_taken(run, harm, capsys):
  best = run / "checkpoints" / "7"
  for file in [path for path in (best / "params").rglob("*") if path.is_file()]:
    size = file.stat().st_size
    if harm in ("cut", "zeroed"):
      file.write_bytes(file.read_bytes()[: size // 2] if harm == "cut" else bytes(size))
  if harm == "empty":
    shutil.rmtree(best)
    best.mkdir()
  elif harm == "missing":
    shutil.rmtree(best / "params")
  elif harm == "metadata":
    (best / "params" / "_METADATA").write_text("null")
  elif harm == "folder":
    (best / "run" / "metadata").unlink()
    (best / "run" / "metadata").mkdir()
  assert checkpoint.load(run)[0] == 13
  said = capsys.readouterr().err
  assert "checkpoints/7 does not restore" in said and "trying step 13" in said


def test_checkpoints_of_older_versions_have_no_digests_and_load(run):
  metadata = run / "checkpoints" / "7" / "run" / "metadata"
  record = json.loads(metadata.read_text())
  assert record.pop("digests")["params"]["encoder.kernel"].startswith("float32[2,3] ")
  metadata.write_text(json.dumps(record))
  assert checkpoint.load(run)[0] == 7


def test_a_run_folder_that_is_removed_before_the_first_save_is_not_made_again(trees, tmp_path):
  (tmp_path / "run").mkdir()
  checkpoints = checkpoint.Checkpoints(tmp_path / "run")
  (tmp_path / "run").rmdir()
  with pytest.raises(UserError, match="run was removed while its run was training"):
    checkpoints.save(2, params=trees[0], state=trees[1], run={})
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("harm", ["removed", "replaced"])
def test_a_run_folder_that_is_removed_while_training_is_noticed(run, trees, harm, tmp_path):
  checkpoints = checkpoint.Checkpoints(run)
  checkpoints.save(15, params=trees[0], state=trees[1], run={})
  (run / "checkpoints").rename(tmp_path / "elsewhere")
  if harm == "replaced":
    (run / "checkpoints").mkdir()
  with pytest.raises(UserError, match="was removed or replaced while its run was training"):
    checkpoints.save(17, params=trees[0], state=trees[1], run={})
  assert not list(run.glob("checkpoints/*"))
  checkpoints.close()


def test_load_gives_numpy_of_the_best_the_latest_or_a_given_step(run):
  for wanted, step in (("best", 7), ("latest", 13), (11, 11)):
    found, variables, record = checkpoint.load(run, wanted)
    assert (found, record["best"]) == (step, step)
    assert type(variables["params"]["encoder"]["kernel"]) is np.ndarray
    np.testing.assert_array_equal(
      variables["params"]["encoder"]["kernel"], np.arange(6.0).reshape(2, 3) + step
    )
    np.testing.assert_array_equal(variables["batch_stats"]["norm"]["mean"], np.full(3, 0.25))


def test_a_folder_that_is_no_run_is_named(tmp_path, run):
  with pytest.raises(UserError, match="is not the folder of a run: it has no config.json"):
    checkpoint.load(tmp_path / "none")
  with pytest.raises(UserError, match="has no checkpoint of step 6; it has 7, 11, 13"):
    checkpoint.load(run, 6)
  shutil.rmtree(run / "checkpoints")
  with pytest.raises(UserError, match="has no checkpoints yet"):
    checkpoint.load(run)


@pytest.mark.parametrize("name", ["runs[lr=0.1]", "back\\slash"])
def test_a_run_in_a_path_that_orbax_takes_for_a_pattern_is_refused(run, tmp_path, name):
  moved = run.rename(tmp_path / name)
  for use in (checkpoint.Checkpoints, checkpoint.load):
    with pytest.raises(UserError, match="in its path; expected one without"):
      use(moved)


def test_flat_names_do_not_depend_on_optimiser_classes(trees):
  names = set(checkpoint.flatten(trees[1]))
  assert "opt_state.0.mu.encoder.kernel" in names and "batch_stats.norm.mean" in names
  assert json.dumps(sorted(names))


def test_nest_undoes_flatten():
  tree = {"a": {"b": jnp.ones(2), "c": {"d": jnp.zeros(1)}}}
  assert checkpoint.nest(checkpoint.flatten(tree)).keys() == tree.keys()
  assert checkpoint.nest({"a.c.d": 1}) == {"a": {"c": {"d": 1}}}


@pytest.mark.parametrize("pages", [0, 1, 4, 9, 13, 20])
def test_a_full_disk_ends_a_save_with_one_error_and_nothing_printed(
  trees, small_disk, pages, capfd
):
  # The disk is full at another file each time; the threads of the others go on, and fail, beside
  # the first.
  checkpoints = checkpoint.Checkpoints(small_disk)
  checkpoints.save(2, params=trees[0], state=trees[1], run={"best": 2})
  small_disk.fill(leave=4096 * pages)
  running = set(threading.enumerate())
  with pytest.raises(
    UserError,
    match="step 4 is not saved .* No space left on device; earlier checkpoints are intact",
  ):
    checkpoints.save(4, params=trees[0], state=trees[1], run={"best": 2}, score=1.0)
  give_up = time.monotonic() + 120
  while left := [
    thread for thread in set(threading.enumerate()) - running if threads.at_work(thread)
  ]:
    assert time.monotonic() < give_up, left
    time.sleep(0.02)
  gc.collect()
  assert capfd.readouterr().err == ""
  small_disk.release()
  assert checkpoints.latest(*trees)[0] == 2
  checkpoints.close()


def test_a_disk_that_turns_read_only_is_one_error_and_the_earlier_checkpoints_stay(
  trees, small_disk, capfd
):
  checkpoints = checkpoint.Checkpoints(small_disk)
  checkpoints.save(2, params=trees[0], state=trees[1], run={"best": 2})
  subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
  with pytest.raises(UserError, match="step 4 is not saved .* Read-only file system; earlier"):
    checkpoints.save(4, params=trees[0], state=trees[1], run={"best": 2})
  assert checkpoints.latest(*trees)[0] == 2
  assert capfd.readouterr().err == ""
  checkpoints.close()


def test_the_longest_path_that_is_allowed_holds_checkpoints(trees, tmp_path):
  folder = tmp_path
  while (room := reading.LONGEST_PATH - len(str(folder))) > 1:
    folder = folder / ("x" * min(200, room - 1))
  folder.mkdir(parents=True)
  assert len(str(folder)) >= reading.LONGEST_PATH - 1
  (folder / "config.json").write_text("{}")
  checkpoints = checkpoint.Checkpoints(folder)
  checkpoints.save(1_000_000, params=trees[0], state=trees[1], run={}, score=1.0)
  assert checkpoints.latest(*trees)[0] == 1_000_000 == checkpoint.load(folder)[0]
  checkpoints.close()


def test_what_a_killed_save_left_is_not_taken_for_a_checkpoint(run, trees, capsys):
  unfinished = run / "checkpoints" / "15.orbax-checkpoint-tmp"
  shutil.copytree(run / "checkpoints" / "13", unfinished)
  damage(unfinished)
  checkpoints = checkpoint.Checkpoints(run)
  assert checkpoints.latest(*trees)[0] == 13
  # Orbax removes it in a thread, for which the next save waits.
  checkpoints.save(17, params=trees[0], state=trees[1], run={"best": 13})
  assert not unfinished.exists() and capsys.readouterr().err == ""
  checkpoints.close()


def test_a_save_leaves_nothing_in_memory_that_tensorstore_made_of_json(trees, tmp_path):
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(1, params=trees[0], state=trees[1], run={})
  tracemalloc.start()
  try:
    for step in (2, 3):
      checkpoints.save(step, params=trees[0], state=trees[1], run={})
    gc.collect()
    made = tracemalloc.take_snapshot().filter_traces(
      [tracemalloc.Filter(True, "*/orbax/checkpoint/_src/serialization/tensorstore_utils.py")]
    )
  finally:
    tracemalloc.stop()
    checkpoints.close()
  # 57,000 without `leaks`; what is left fills caches.
  assert sum(trace.size for trace in made.traces) < 15_000


def test_a_plain_file_named_as_a_step_is_no_checkpoint(tmp_path):
  (tmp_path / "checkpoints").mkdir()
  (tmp_path / "checkpoints" / "77").write_text("of somebody else")
  assert reading.steps(tmp_path / "checkpoints") == [] and not run_folder.begun(tmp_path)


def test_a_save_leaves_tensorstore_as_it_was():
  place = tensorstore.KvStore.Spec({"driver": "file", "path": "/x/"})
  before = place.to_json()
  with leaks.without_json():
    assert place.to_json() == {"driver": "file", "path": "/x/"}
  assert place.to_json() == before
