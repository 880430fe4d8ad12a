"""Commands of several parts, killed (-9) again and again, end as those that nobody disturbed."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import small_run
import test_fine_grained as fine_grained
from test_import_command import released  # noqa: F401

from xmr import checkpoint
from xmr.data import labelled

pytestmark = pytest.mark.slow
# Of a process of its own.
IMPORTED = (
  f"import sys; sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r}); import test_kills"
)


def dies(name, folder, count, *, after):
  """Kills this process (-9) where os.rename or os.replace gives something its name in a folder,
  after so many others, before or after it is done: the moment does not depend on the machine.
  """
  real, left = getattr(os, name), [count]

  def moved(source, target, **options):
    left[0] -= str(target).startswith(os.path.realpath(folder))
    if left[0] < 0:
      if after:
        real(source, target, **options)
      os.kill(os.getpid(), signal.SIGKILL)
    real(source, target, **options)

  setattr(os, name, moved)


def fine_grained_run(source, workdir):
  """Runs both stages; what a process of its own does to be killed."""
  from xmr import train

  labelled.LAYOUTS["wikipedia"] = fine_grained.without_counts()
  config = fine_grained.small_config(pathlib.Path(source))
  config.siamese.update({"steps": 60, "every": 5})
  config.steps, config.evaluate.steps = 60, 5
  train.train_and_evaluate(config, workdir)


def killed(command, log, reached):
  """Starts a command and kills it when reached() is true, or lets it end; returns whether it was
  killed.
  """
  process = small_run.start(command, log=log)
  while process.poll() is None:
    if reached():
      process.kill()
      process.wait()
      return True
  assert process.returncode == 0, log.read_text()[-3000:]
  return False


def test_both_stages_of_fgcmir_end_with_the_same_bits(tmp_path):
  fine_grained.write_source(tmp_path / "source")

  def command(workdir, *, before="pass"):
    run = f"test_kills.fine_grained_run({str(tmp_path / 'source')!r}, {str(workdir)!r})"
    return [sys.executable, "-W", "ignore", "-c", f"{IMPORTED}; {before}; {run}"]

  small_run.run(command(tmp_path / "whole"))
  run, rng = tmp_path / "run", np.random.default_rng(8)
  for folder in (run / "siamese" / "checkpoints", run / "checkpoints"):
    for after in (False, True):
      # In one of the first five of twelve saves, each of which gives four or five names.
      death = f"test_kills.dies('rename', {str(folder)!r}, {rng.integers(20)}, after={after})"
      small_run.run(command(run, before=death), code=-signal.SIGKILL)
      assert any(folder.iterdir())
  small_run.run(command(run))
  for name in (".", "siamese"):
    found, whole = (checkpoint.load(x / name, "latest") for x in (run, tmp_path / "whole"))
    assert found[0] == whole[0] == 60
    small_run.assert_equal(checkpoint.flatten(found[1]), checkpoint.flatten(whole[1]))
  results = [json.loads((x / "results.json").read_text()) for x in (run, tmp_path / "whole")]
  assert results[0]["metrics"] == results[1]["metrics"]


def test_a_sweep_ends_with_the_table_of_one_that_was_not_killed(tmp_path):
  data = small_run.write_data(tmp_path / "data")

  def command(workdir):
    flags = small_run.arguments(data, workdir)
    return [sys.executable, "-m", "xmr.sweep", *flags, "--grid", "loss.margin=0.1,0.2"]

  small_run.run(command(tmp_path / "whole"))
  children = set()
  for margin in ("0.1", "0.2"):
    folder = tmp_path / "sweep" / f"loss.margin={margin}" / "seed=0"
    process = small_run.start(command(tmp_path / "sweep"), log=tmp_path / "log")
    small_run.wait_for(lambda folder=folder: small_run.newest_step(folder) >= 2, process=process)
    # So that it starts no other.
    psutil.Process(process.pid).suspend()
    children |= set(psutil.Process(process.pid).children(recursive=True))
    process.kill()
    process.wait()
    # The run that it had started saves and ends: its folder is free for the next command.
    _, alive = psutil.wait_procs(children, timeout=300)
    assert not alive
  small_run.run(command(tmp_path / "sweep"))
  tables = [(tmp_path / name / "table.csv").read_text() for name in ("sweep", "whole")]
  assert tables[0] == tables[1]


def test_features_are_the_same_after_kills(tmp_path):
  import jax
  from test_extract import SIZE, write_weights

  from xmr.models import resnet

  jax.config.update("jax_platforms", "cpu")
  write_weights(tmp_path / "resnet18.safetensors", resnet.ResNet(*resnet.RESNETS["resnet18"]))
  flags = {
    "config": "configs/imc_scenes.py",
    "config.data.cache_dir": tmp_path / "cache",
    "config.data.image_size": SIZE,
    "config.data.resize": SIZE,
    "config.data.scenes.n_train": 300,
    "config.data.scenes.n_val": 10,
    "config.data.scenes.n_test": 10,
    "backbone": "resnet18",
    "weights": tmp_path / "resnet18.safetensors",
  }

  def command(out, *start):
    named = [f"--{key}={value}" for key, value in (flags | {"out": out}).items()]
    return [sys.executable, *(start or ("-m", "xmr.extract")), *named]

  small_run.run(command(tmp_path / "whole"))
  out = tmp_path / "out"
  # When the first of its two blocks is done.
  code = (
    f"{IMPORTED}; test_kills.dies('replace', {str(out / 'blocks')!r}, 0, after=True); "
    "from xmr import extract; extract.main(sys.argv)"
  )
  small_run.run(command(out, "-c", code), code=-signal.SIGKILL)
  assert [path.name for path in out.glob("blocks/*.npy")] == ["00000000.npy"]
  small_run.run(command(out))
  np.testing.assert_array_equal(
    np.load(out / "features.npy"), np.load(tmp_path / "whole" / "features.npy")
  )
  left = subprocess.run(["find", str(out), "-name", "*.part"], capture_output=True, text=True)
  assert left.stdout == ""


def test_an_import_leaves_no_run_or_all_of_it(released, tmp_path):  # noqa: F811
  files, *_ = released
  config = ["--config=configs/vsepp_flickr.py", "--config.data.image_features=features.npy"]
  given = [f"--{name}={path}" for name, path in files.items()]

  def command(workdir):
    return [sys.executable, "-m", "xmr.import_run", *config, *given, f"--workdir={workdir}"]

  small_run.run(command(tmp_path / "whole"))
  runs, rng, caught = tmp_path / "runs", np.random.default_rng(15), False

  def is_whole():
    found, whole = (checkpoint.load(folder) for folder in (runs / "a", tmp_path / "whole"))
    assert found[0] == whole[0] == 77
    small_run.assert_equal(checkpoint.flatten(found[1]), checkpoint.flatten(whole[1]))

  # What lies there when it is killed: nothing yet, the folder in the making, its checkpoint.
  for reached in ("", ".a.*.part", ".a.*.part/config.json", ".a.*.part/checkpoints/*"):
    moment = time.monotonic() + rng.uniform(0.5, 5)
    caught |= killed(
      command(runs / "a"),
      tmp_path / "log",
      lambda reached=reached, moment=moment: (
        any(runs.glob(reached)) if reached else time.monotonic() > moment
      ),
    )
    # A kill that came too late finds all of it.
    if (runs / "a").exists():
      is_whole()
      shutil.rmtree(runs / "a")
  assert caught
  small_run.run(command(runs / "a"))
  assert [path.name for path in runs.iterdir()] == ["a"]
  is_whole()
