"""Eight virtual CPU devices for every test, and where the shared real data lies."""

import os
import pathlib

# Before JAX starts: the device count is read once.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest

SHARED = pathlib.Path(os.environ.get("XMR_SHARED", pathlib.Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared():
  """The folder with golden files and real data; tests that need it skip where it is absent."""
  if not SHARED.is_dir():
    pytest.skip(f"no shared data at {SHARED}; set XMR_SHARED")
  return SHARED


@pytest.fixture(scope="session")
def golden(shared):
  """Loads one golden file by name, as a dict of arrays."""
  import numpy as np

  def load(name):
    with np.load(shared / "golden" / f"{name}.npz", allow_pickle=False) as arrays:
      return dict(arrays)

  return load
