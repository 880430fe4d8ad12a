"""Eight virtual CPU devices, quick compilation and checked types for every test, and where the real
data lies.
"""

import atexit
import contextlib
import fcntl
import gc
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

import quick_compilation


def session_cache():
  """Makes a folder for what the processes of this session (pytest's workers too) compile, which
  goes at its end; removes those of sessions that were killed.
  """
  for lock in pathlib.Path(tempfile.gettempdir()).glob("xmr_tests_*/.lock"):
    with contextlib.suppress(OSError), lock.open() as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # A session that begins locks its folder within a minute.
      if time.time() - lock.stat().st_mtime > 60:
        shutil.rmtree(lock.parent, ignore_errors=True)
  folder = pathlib.Path(tempfile.mkdtemp(prefix="xmr_tests_"))
  # Open, and so locked, as long as this process lives.
  fcntl.flock(os.open(folder / ".lock", os.O_CREAT | os.O_RDWR), fcntl.LOCK_EX)
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  return str(folder)


# A folder of the user's own is kept.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = session_cache()
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# Before JAX starts: the device count is read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# And devices that wait for each other: on a machine with much else to do one of eight may come
# later than the 40 seconds after which XLA aborts the process.
os.environ["XLA_FLAGS"] = (
  f"{os.environ.get('XLA_FLAGS', '')} {quick_compilation.FLAGS}"
  + " --xla_force_host_platform_device_count=8"
  + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
# A shell without job control has what it starts in the background ignore Ctrl-C, which tests send.
signal.signal(signal.SIGINT, signal.default_int_handler)
# What is imported from here on stays.
gc.disable()

import pytest
import typecheck
from paths import GOLDEN, SHARED

# Before anything of xmr is imported.
typecheck.install()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
  """Tests of a file stay in one process, which has compiled their programs; idle ones take over."""
  if config.getoption("dist") == "load":
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


def pytest_collection_finish(session):
  """What is imported by now stays; the collections of garbage that closing a run's batches asks for
  need not look through it again.
  """
  gc.enable()
  gc.collect()
  gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem):
  """The same of what a file leaves, most of it traced and compiled programs."""
  if nextitem is None or nextitem.path != item.path:
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def shared():
  """The folder with real data; tests that need it skip where it is absent."""
  if not (SHARED / "data").is_dir():
    pytest.skip(f"no real data at {SHARED}; set XMR_SHARED (docs/contributing.md)")
  return SHARED


@pytest.fixture(scope="session")
def golden():
  """Loads one golden file by name, as a dict of arrays."""
  import numpy as np

  def load(name):
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
      return dict(arrays)

  return load


class SmallDisk(type(pathlib.Path())):
  """The folder of a file system of three megabytes."""

  def fill(self, leave=0):
    """Writes a file until the disk is full, and gives back some bytes of it."""
    with (self / "filler").open("wb", buffering=0) as file:
      with pytest.raises(OSError, match="No space left"):
        while True:
          file.write(bytes(4096))
      file.truncate(max(0, file.tell() - leave))

  def release(self):
    """Makes room again."""
    (self / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path):
  """A SmallDisk; tests that need it skip where it cannot be mounted."""
  folder = tmp_path / "disk"
  folder.mkdir()
  if shutil.which("mount") is None or os.geteuid():
    pytest.skip("only root can mount a small file system")
  done = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True, text=True
  )
  if done.returncode:
    pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
  yield SmallDisk(folder)
  subprocess.run(["umount", "-l", str(folder)], check=True)
