"""Eight virtual CPU devices and checked types for every test, and where the real data lies."""

import os
import pathlib
import shutil
import subprocess

# Before JAX starts: the device count is read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# And devices that wait for each other: on a machine with much else to do one of eight may come
# later than the 40 seconds after which XLA aborts the process.
os.environ["XLA_FLAGS"] = (
  os.environ.get("XLA_FLAGS", "")
  + " --xla_force_host_platform_device_count=8"
  + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)

import pytest
import typecheck
from paths import GOLDEN, SHARED

# Before anything of xmr is imported.
typecheck.install()


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
