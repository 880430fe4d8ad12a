"""Data workers that die, and workers whose parent dies."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from xmr.data import workers
from xmr.errors import CutOff, reported

MEMORY = pathlib.Path("/dev/shm")


class Source:
  """Batches without end."""

  def __len__(self):
    return 1 << 40

  def __getitem__(self, index):
    return {"x": np.full((32, 32), int(index))}


def worker_processes(process):
  """Returns the data workers of a process, of which none is multiprocessing's own."""
  children = psutil.Process(process).children(recursive=True)
  return [x for x in children if any("spawn_main" in word for word in x.cmdline())]


def test_a_killed_data_worker_is_one_line_with_a_hint_to_go_on(capsys):
  batches = workers.iterate(Source(), workers=1, prefetch=1)
  assert next(batches)["x"][0, 0] == 0
  (worker,) = worker_processes(os.getpid())
  worker.kill()
  with pytest.raises(CutOff, match="a data worker was killed .exit code -9.*the same command"):
    for _ in range(10):
      next(batches)
  batches.close()
  with pytest.raises(SystemExit) as ended, reported():
    raise CutOff("a data worker was killed")
  assert ended.value.code == 1
  assert capsys.readouterr().err == "xmr: error: a data worker was killed\n"


def test_workers_and_their_memory_end_with_a_parent_that_is_killed(tmp_path):
  code = (
    "import sys, time\n"
    f"sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})\n"
    "if __name__ == '__main__':\n"
    "  import test_workers\n"
    "  from xmr.data import workers\n"
    "  batches = workers.iterate(test_workers.Source(), workers=2, prefetch=4)\n"
    "  for _ in range(4): next(batches)\n"
    "  print('ready', flush=True)\n"
    "  time.sleep(60)\n"
  )
  (tmp_path / "parent.py").write_text(code)
  before = set(MEMORY.glob("psm_*"))
  parent = subprocess.Popen(
    [sys.executable, str(tmp_path / "parent.py")],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
  )
  assert parent.stdout.readline() == b"ready\n", parent.stderr.read()
  theirs = psutil.Process(parent.pid).children(recursive=True)
  assert len(worker_processes(parent.pid)) == 2
  made = set(MEMORY.glob("psm_*")) - before
  assert made
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  parent.stdout.close()
  parent.stderr.close()
  _, alive = psutil.wait_procs(theirs, timeout=20)
  assert not alive
  # The tracker of multiprocessing removes them when the last of the workers is gone.
  end = time.monotonic() + 10
  while made & set(MEMORY.glob("psm_*")) and time.monotonic() < end:
    time.sleep(0.05)
  assert not made & set(MEMORY.glob("psm_*"))
