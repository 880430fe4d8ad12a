"""Faults that really happen to a run: killed at any moment, a full disk, a damaged checkpoint,
other devices, other workers.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import fuzz
import numpy as np
import pytest
import small_run

# Longer than any test waits: what was killed goes on to a later step, however late the kill came.
LONG = {"steps": 100_000, "evaluate.steps": 10}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.write_data(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
  """A run of STEPS steps that nothing interrupted."""
  workdir = tmp_path_factory.mktemp("undisturbed") / "run"
  small_run.run(small_run.command(data, workdir))
  return workdir


def size(path):
  return path.stat().st_size if path.exists() else 0


def saves_in_progress(workdir):
  return list((workdir / "checkpoints").glob("*tmp*"))


@pytest.mark.slow
def test_the_same_command_twice_gives_the_same_bits(data, undisturbed, tmp_path):
  small_run.run(small_run.command(data, tmp_path / "run"))
  small_run.assert_equal(small_run.parameters(tmp_path / "run"), small_run.parameters(undisturbed))
  first, second = (
    [line["train/loss"] for line in small_run.logged(w) if "train/loss" in line]
    for w in (tmp_path / "run", undisturbed)
  )
  assert first == second


@pytest.mark.slow
def test_killed_at_ten_moments_ends_with_the_same_bits_and_counts_no_step_twice(data, tmp_path):
  rng, workdir, caught = np.random.default_rng(20), tmp_path / "run", []
  # A moment: while a checkpoint is being written, or so many seconds after the start or after the
  # first new step.
  moments = list(rng.permutation(["saving"] * 4 + ["starting"] * 2 + ["training"] * 4))
  while moments:
    moment = moments.pop()
    seen = size(workdir / "metrics.jsonl")
    process = small_run.start(small_run.command(data, workdir, **LONG), log=tmp_path / "log")

    def goes_on(seen=seen):
      return size(workdir / "metrics.jsonl") != seen

    try:
      if moment == "starting":
        process.wait(rng.uniform(0.5, 5))
      elif moment == "saving":
        small_run.wait_for(
          lambda goes_on=goes_on: goes_on() and saves_in_progress(workdir), process=process
        )
      else:
        small_run.wait_for(goes_on, process=process)
        process.wait(rng.uniform(0, 0.5))
    except subprocess.TimeoutExpired:
      pass
    process.kill()
    process.wait()
    caught.append((moment, bool(saves_in_progress(workdir))))
    # A save may end before the kill arrives.
    if not moments and len(caught) < 20 and caught.count(("saving", True)) < 2:
      moments = ["saving"]
  assert caught.count(("saving", True)) >= 2, caught
  last = 10 * (small_run.newest_step(workdir) // 10 + 2)
  for name in ("run", "whole"):
    small_run.run(small_run.command(data, tmp_path / name, **LONG | {"steps": last}))
  small_run.assert_equal(*(small_run.parameters(tmp_path / x, last) for x in ("run", "whole")))
  for name in ("train/loss", "val/rsum"):
    assert small_run.steps_logged(workdir, name) == small_run.steps_logged(tmp_path / "whole", name)
  assert not saves_in_progress(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["empty", "truncated"])
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
  data, undisturbed, damage, tmp_path
):
  workdir = tmp_path / "run"
  shutil.copytree(undisturbed, workdir)
  newest = workdir / "checkpoints" / str(small_run.STEPS)
  if damage == "empty":
    shutil.rmtree(newest)
    newest.mkdir()
  else:
    for path in newest.rglob("*"):
      if path.is_file():
        os.truncate(path, path.stat().st_size // 2)
  printed = small_run.run(small_run.command(data, workdir))
  assert (
    f"xmr: warning: checkpoint {newest} does not restore" in printed
    and "from step 10 of 12" in printed
  )
  small_run.assert_equal(small_run.parameters(workdir), small_run.parameters(undisturbed))
  assert small_run.steps_logged(workdir) == small_run.steps_logged(undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("pages", [0, 5])
def test_a_full_disk_is_one_clear_line_and_leaves_the_checkpoints_before(
  data, small_disk, pages, tmp_path
):
  workdir = small_disk / "run"
  changes = {"evaluate.steps": 1000, "log.tensorboard": True}
  process = small_run.start(
    small_run.command(data, workdir, steps=100_000, **changes), log=tmp_path / "log"
  )
  small_run.wait_for(lambda: (workdir / "checkpoints" / "4").exists(), process=process)
  small_disk.fill(leave=4096 * pages)
  assert process.wait(300) == 2
  *_, last = (tmp_path / "log").read_text().strip().splitlines()
  assert last.startswith("xmr: error: ") and "No space left on device" in last
  assert "Traceback" not in (tmp_path / "log").read_text()
  kept = small_run.newest_step(workdir)
  small_disk.release()
  changes["steps"] = kept + 4
  printed = small_run.run(small_run.command(data, workdir, **changes))
  assert f"from step {kept} of {kept + 4}" in printed and "does not restore" not in printed
  small_run.run(small_run.command(data, tmp_path / "whole", **changes))
  small_run.assert_equal(
    *(small_run.parameters(folder, kept + 4) for folder in (workdir, tmp_path / "whole"))
  )


@pytest.mark.slow
def test_a_run_goes_on_on_other_devices_and_back(data, undisturbed, tmp_path):
  workdir = tmp_path / "run"
  for devices, steps in ((8, 4), (1, 8), (8, 10), (2, 12)):
    small_run.run(small_run.command(data, workdir, steps=steps), devices=devices)
  small_run.assert_equal(
    small_run.parameters(workdir), small_run.parameters(undisturbed), atol=1e-6
  )
  assert small_run.steps_logged(workdir) == small_run.steps_logged(undisturbed)


@pytest.mark.slow
def test_another_number_of_data_workers_changes_no_bit(data, tmp_path):
  pixels = {
    "data.name": "scenes",
    "data.image": "pixels",
    "data.text": "words",
    "data.scenes.n_train": 20,
    "data.scenes.n_val": 5,
    "data.scenes.n_test": 5,
    "data.image_size": 32,
    "data.resize": 32,
    "vocabulary.min_count": 1,
    "vocabulary.glove": "",
    "model.image.name": "convnet",
    "model.text.name": "gru",
    "model.text.word_dim": 8,
    "batch_size": 8,
    "steps": 8,
  }
  small_run.run(small_run.command(data, tmp_path / "whole", **pixels))
  for workers, steps in ((0, 2), (2, 6), (1, 8)):
    small_run.run(
      small_run.command(
        data, tmp_path / "run", **pixels | {"data.workers": workers, "steps": steps}
      )
    )
  small_run.assert_equal(
    small_run.parameters(tmp_path / "run", 8), small_run.parameters(tmp_path / "whole", 8)
  )


@pytest.mark.slow
def test_seconds_are_split_and_the_profile_flag_writes_a_trace(data, tmp_path):
  workdir = tmp_path / "run"
  small_run.run(small_run.command(data, workdir, **{"profile.start": 4, "profile.steps": 2}))
  traces = [
    path
    for path in pathlib.Path(workdir / "profile").rglob("*.xplane.pb")
    if path.stat().st_size > 1000
  ]
  assert len(traces) == 1
  lines = small_run.logged(workdir)
  expected = {
    "seconds/data": [2, 4, 6, 8, 10, 12],
    "seconds/step": [2, 4, 6, 8, 10, 12],
    "seconds/evaluation": [6, 12],
    "seconds/checkpoint": [2, 4, 6, 8, 10, 12],
  }
  for name, steps in expected.items():
    assert [line["step"] for line in lines if name in line] == steps
    assert all(0 <= line[name] < 120 for line in lines if name in line)


@pytest.mark.slow
def test_a_long_run_keeps_its_memory_and_its_pace(data, tmp_path):
  import psutil

  workdir, total = tmp_path / "run", 30_000
  changes = {"steps": total, "evaluate.steps": 1000, "checkpoint.steps": 1000, "log.steps": 10}
  process = small_run.start(small_run.command(data, workdir, **changes), log=tmp_path / "log")
  memory = {}
  try:
    while process.poll() is None:
      # What it holds when it ends is no longer its own.
      if held := psutil.Process(process.pid).memory_info().rss / 2**20:
        memory.setdefault(small_run.newest_step(workdir), held)
      time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "log").read_text()[-3000:]
  finally:
    process.kill()
  print({step: round(value) for step, value in memory.items()})
  # The first look at or after 3/10 of the run and the last before its end, where it scores.
  early = next(value for step, value in memory.items() if step >= 0.3 * total)
  late = [value for step, value in memory.items() if step < total][-1]
  assert late - early < 0.03 * early, memory
  seconds = {
    line["step"]: line["seconds/step"]
    for line in small_run.logged(workdir)
    if "seconds/step" in line
  }
  third = total // 3
  pace = [
    np.quantile([value for step, value in seconds.items() if a < step <= a + third], 0.1)
    for a in (0, third, 2 * third)
  ]
  print([f"{1000 * value:.2f} ms" for value in pace])
  # The best tenth, as other programs on the machine may slow the rest; a leak would slow all after
  # the first part.
  assert min(pace[1:]) < 1.5 * pace[0], pace


@pytest.mark.slow
def test_sigterm_in_a_save_to_a_slow_disk_leaves_it_whole(data, undisturbed, tmp_path, monkeypatch):
  workdir, slept, caught = tmp_path / "run", [], []

  def slowly(quick):
    def change(*arguments, **options):
      if str(workdir) in str(arguments[0]):
        slept.append(quick.__name__)
        time.sleep(0.2)
        if not caught and saves_in_progress(workdir):
          caught.extend(saves_in_progress(workdir))
          os.kill(os.getpid(), signal.SIGTERM)
      return quick(*arguments, **options)

    return change

  with monkeypatch.context() as patched:
    for name in ("mkdir", "rename", "replace"):
      patched.setattr(os, name, slowly(getattr(os, name)))
    assert fuzz.main_command(small_run.arguments(data, workdir)) is None
  assert caught and {"mkdir", "rename"} <= set(slept)
  # What was being saved is whole, and so is the step that SIGTERM asked for.
  assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["2", "3"]
  assert small_run.parameters(workdir, 2) and small_run.parameters(workdir, 3)
  fuzz.main_command(small_run.arguments(data, workdir))
  # Eight devices here, one there.
  small_run.assert_equal(
    small_run.parameters(workdir), small_run.parameters(undisturbed), atol=1e-5
  )
