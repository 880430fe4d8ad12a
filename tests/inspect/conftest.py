"""One small run on scenes through the real command line, shared by everything that looks into
runs.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import quick_compilation
from small_run import SCENES

from xmr.storage.files import read_json

ROOT = pathlib.Path(__file__).parents[2]
SMALL = SCENES | {"checkpoint.steps": 6}


def run_command(*arguments, code=0, **environment):
  """Runs python -m ...; returns what it printed, after checking its exit status."""
  done = subprocess.run(
    [sys.executable, *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=900,
    env={**os.environ, "XLA_FLAGS": quick_compilation.FLAGS, "JAX_PLATFORMS": "cpu", **environment},
  )
  assert done.returncode == code, done.stderr[-3000:]
  return done


@pytest.fixture(scope="session")
def command():
  """Returns run_command."""
  return run_command


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
  """The folder of a trained run; its data is prepared beside it."""
  folder = tmp_path_factory.mktemp("inspect")
  flags = [
    f"--config.{key}={value}"
    for key, value in {**SMALL, "data.cache_dir": folder / "cache"}.items()
  ]
  workdir = folder / "run"
  run_command("-m", "xmr.main", "--config=configs/imc_scenes.py", f"--workdir={workdir}", *flags)
  return workdir


@pytest.fixture(scope="session")
def earlier(trained, tmp_path_factory):
  """The same run without its best checkpoint: another model of the same test split."""
  workdir = tmp_path_factory.mktemp("earlier") / "run"
  shutil.copytree(trained, workdir)
  shutil.rmtree(workdir / "checkpoints" / str(read_json(workdir / "results.json")["step"]))
  (workdir / "results.json").unlink()
  return workdir


@pytest.fixture(scope="session")
def run(trained):
  """The run, loaded."""
  from xmr import inspect

  return inspect.load(trained)


@pytest.fixture(scope="session")
def test_split(run):
  """The run's test split."""
  from xmr import data

  return data.load(run.config)["test"]


@pytest.fixture(scope="session")
def gallery(test_split, tmp_path_factory):
  """A folder of the test split's pictures, one in a subfolder, one that is none, and a text
  file.
  """
  folder = tmp_path_factory.mktemp("gallery")
  (folder / "more").mkdir()
  for row in range(len(test_split.image_id)):
    parent = folder / "more" if row == 11 else folder
    (parent / f"{row:02}.png").write_bytes(test_split.pixels[row])
  (folder / "broken.jpg").write_bytes(b"no picture")
  (folder / "notes.txt").write_text("not looked at")
  return folder
