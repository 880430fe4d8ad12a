"""Data workers that die, and workers whose parent dies."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

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
  found = set()
  for child in psutil.Process(process).children(recursive=True):
    # One of another test may just be ending.
    with contextlib.suppress(psutil.NoSuchProcess):
      if any("spawn_main" in word for word in child.cmdline()):
        found.add(child)
  return found


def shared_memory(processes):
  """Returns the paths of the shared memory that processes have mapped."""
  mapped = (place.path for process in processes for place in process.memory_maps())
  return {path for path in mapped if path.startswith(f"{MEMORY}/psm_")}


def test_a_killed_data_worker_is_one_line_with_a_hint_to_go_on(capsys):
  before = worker_processes(os.getpid())
  batches = workers.iterate(Source(), workers=1, prefetch=1)
  assert next(batches)["x"][0, 0] == 0
  (worker,) = worker_processes(os.getpid()) - before
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
    "  time.sleep(600)\n"
  )
  (tmp_path / "parent.py").write_text(code)
  parent = subprocess.Popen(
    [sys.executable, str(tmp_path / "parent.py")],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
  )
  assert parent.stdout.readline() == b"ready\n", parent.stderr.read()
  theirs = psutil.Process(parent.pid).children(recursive=True)
  assert len(worker_processes(parent.pid)) == 2
  # By what they have mapped: other processes of the machine may make shared memory, too.
  made = shared_memory([psutil.Process(parent.pid), *worker_processes(parent.pid)])
  assert made
  parent.send_signal(signal.SIGKILL)
  parent.wait()
  parent.stdout.close()
  parent.stderr.close()
  _, alive = psutil.wait_procs(theirs, timeout=120)
  assert not alive
  # The tracker of multiprocessing, which is gone too, removed them.
  assert not {path for path in made if os.path.exists(path)}
