"""The main job through its real entry point, small: train, stop, kill, resume, score, and users'
mistakes.
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import quick_compilation
import small_run

from xmr import checkpoint, main

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
  """One cache for all runs: scenes are rendered and steps compiled once."""
  return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(cache):
  """Returns the command line of a small run on scenes, with pixels, augmentation and words."""

  def build(workdir, *changes, config="configs/imc_scenes.py"):
    small = small_run.SCENES | {
      "data.cache_dir": cache,
      "checkpoint.steps": 5,
      "log.tensorboard": False,
    }
    flags = [f"--config.{key}={value}" for key, value in small.items()]
    return [
      sys.executable,
      "-m",
      "xmr.main",
      f"--config={config}",
      f"--workdir={workdir}",
      *flags,
      *changes,
    ]

  return build


def environment():
  return {**os.environ, "XLA_FLAGS": quick_compilation.FLAGS, "JAX_PLATFORMS": "cpu"}


def told(capsys, command, *, code=2):
  """What the same command, run in this process, writes on standard error."""
  with pytest.raises(SystemExit) as stopped:
    main.main(["xmr.main", *map(str, command[3:])])
  assert stopped.value.code == code
  return capsys.readouterr().err


def run(command, *, code=0):
  done = subprocess.run(
    command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300
  )
  assert done.returncode == code, done.stderr[-3000:]
  return done


def parameters(workdir, step=12):
  _, variables, _ = checkpoint.load(workdir, step)
  return checkpoint.flatten(variables)


def logged(workdir):
  return [
    json.loads(line) for line in (pathlib.Path(workdir) / "metrics.jsonl").read_text().splitlines()
  ]


def assert_same(first, second):
  assert first.keys() == second.keys()
  for name in first:
    np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, cache):
  """The folder of a run that nothing interrupted."""
  return tmp_path_factory.mktemp("undisturbed") / "run"


def test_one_command_trains_scores_and_draws(command, undisturbed):
  done = run(command(undisturbed))
  results = json.loads((undisturbed / "results.json").read_text())
  *_, wrote, parameters_in, next_command = done.stdout.splitlines()
  assert (
    "rsum" in done.stdout
    and wrote == f"wrote {undisturbed / 'results.json'}, {undisturbed / 'retrieved.png'}"
  )
  assert parameters_in == f"parameters: {undisturbed / 'checkpoints' / str(results['step'])}"
  assert next_command == f"look inside: python -m xmr.inspect.report --workdir={undisturbed}"
  assert results["dataset"] == "scenes" and results["n_images"] == 12 and results["n_texts"] == 60
  recalls = [results["metrics"][f"{d}/r{k}"] for d in ("i2t", "t2i") for k in (1, 5, 10)]
  assert results["metrics"]["rsum"] == pytest.approx(sum(recalls))
  assert (undisturbed / "retrieved.png").stat().st_size > 10_000
  steps = [line["step"] for line in logged(undisturbed) if "train/loss" in line]
  assert steps == sorted(set(steps)) and steps[-1] == 12
  for name in (
    "train/i2t",
    "train/gradient_norm",
    "examples_per_second",
    "seconds/data",
    "learning_rate",
  ):
    assert name in logged(undisturbed)[0]


@pytest.mark.parametrize("kills", [(7,), pytest.param((3, 7), marks=pytest.mark.slow)])
def test_killed_runs_go_on_to_bit_identical_parameters(command, undisturbed, kills, tmp_path):
  if not (undisturbed / "results.json").exists():
    run(command(undisturbed))
  workdir = tmp_path / "run"
  again = [*command(workdir), "--config.picture=False", "--config.log.tensorboard=False"]
  for kill_at in kills:
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(again, cwd=ROOT, env=environment(), **silent)
    deadline = time.time() + 240
    while time.time() < deadline and process.poll() is None:
      lines = (
        (workdir / "metrics.jsonl").read_text().splitlines()
        if (workdir / "metrics.jsonl").exists()
        else []
      )
      if any(f'"step": {step},' in line for line in lines for step in range(kill_at, 13)):
        break
      time.sleep(0.01)
    process.kill()
    process.wait()
  run(again)
  assert_same(parameters(workdir), parameters(undisturbed))
  steps = [line["step"] for line in logged(workdir) if "train/loss" in line]
  assert steps == [line["step"] for line in logged(undisturbed) if "train/loss" in line]


@pytest.mark.slow
def test_sigterm_saves_exits_cleanly_and_the_same_command_goes_on(command, tmp_path):
  # Of a rate that does not depend on the last step.
  constant = "--config.optimizer.schedule=constant"
  workdir = tmp_path / "run"
  process = subprocess.Popen(
    command(workdir, constant, "--config.steps=100000"),
    cwd=ROOT,
    env=environment(),
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.time() + 240
  while time.time() < deadline and not (workdir / "metrics.jsonl").exists():
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=240)
  assert process.returncode == 0, errors
  found = re.search(r"SIGTERM: saved step (\d+) of 100000; the same command goes on", errors)
  assert found, errors
  assert not (workdir / "results.json").exists()
  last = int(found[1]) + 4
  for folder in (workdir, tmp_path / "whole"):
    run(command(folder, constant, f"--config.steps={last}"))
  assert_same(*(parameters(folder, last) for folder in (workdir, tmp_path / "whole")))


@pytest.mark.slow
def test_eval_only_scores_without_training(command, undisturbed):
  if not (undisturbed / "results.json").exists():
    run(command(undisturbed))
  before = (undisturbed / "results.json").read_text()
  (undisturbed / "results.json").unlink()
  run(command(undisturbed, "--eval_only"))
  assert (
    json.loads((undisturbed / "results.json").read_text())["metrics"]
    == json.loads(before)["metrics"]
  )


def test_a_folder_of_another_config_is_refused_with_what_differs(command, undisturbed, capsys):
  if not (undisturbed / "results.json").exists():
    run(command(undisturbed))
  said = told(capsys, command(undisturbed, "--config.seed=3", "--config.loss.margin=0.3"))
  assert said.strip().splitlines()[-1] == (
    f"xmr: error: {undisturbed} holds a run of another config (config.loss.margin: 0.2 -> 0.3; "
    "config.seed: 0 -> 3); "
    "give another --workdir"
  )


@pytest.mark.parametrize(
  "change, found",
  [
    ("--config.epohcs=3", "epohcs"),
    ("--config.loss.name=triplet", "loss.name is 'triplet'; expected one of"),
    ("--config.loss.distance=l3", "l3"),
    ("--config.loss.temperature=0.1", "loss imc has no parameter temperature"),
    ("--config.data.name=flickr9k", "config.data.name is 'flickr9k'"),
    ("--config.batch_size=1000", "1000"),
    ("--config.model.text.name=elmo", "config.model.text.name is 'elmo'"),
    ("--config.steps=nine", "steps"),
    ("--confg=x", "confg"),
    ("stray", "unexpected arguments stray"),
  ],
)
def test_a_mistake_ends_with_one_line_and_status_2(command, tmp_path, capsys, change, found):
  said = told(capsys, command(tmp_path / "run", change))
  last = said.strip().splitlines()[-1]
  assert last.startswith("xmr: error: ") and found in last, said
  assert "Traceback" not in said


def test_a_mistake_leaves_no_trace_that_stops_the_corrected_command(command, tmp_path, capsys):
  workdir = tmp_path / "run"
  # The one mistake in a process of its own.
  run(command(workdir, "--config.batch_size=1000"), code=2)
  assert not workdir.exists()
  said = told(capsys, command(workdir, "--eval_only"))
  assert "has no checkpoints; train first" in said and not workdir.exists()


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_step_and_captions(tmp_path, capsys):
  data = small_run.write_data(tmp_path / "data")
  changes = {"optimizer.learning_rate": 1e38, "optimizer.clip": 0, "checkpoint.steps": 0}
  said = told(capsys, small_run.command(data, tmp_path / "run", **changes))
  assert re.search(r"xmr: error: step \d+ is not finite .*text_id of its batch: \[", said), said


def test_a_missing_dataset_prints_the_tree_that_is_expected(tmp_path, capsys):
  flags = [
    f"--config.data.dir={tmp_path}/none",
    f"--workdir={tmp_path}/run",
    "--config=configs/imc_flickr.py",
  ]
  said = told(capsys, [sys.executable, "-m", "xmr.main", *flags])
  found, *tree = said[said.index("xmr: error") :].splitlines()
  assert (
    found == f"xmr: error: config.data.dir: {tmp_path}/none is no folder; expected"
    and tree[0] == f"{tmp_path}/none/"
  )
  assert [line.split()[0] for line in tree[1:]] == ["dataset_flickr30k.json", "images/*.jpg:"]


def test_help_needs_no_jax():
  code = (
    "import sys; from xmr import main; main.main(['main', '--help']); assert 'jax' not in "
    "sys.modules"
  )
  done = run([sys.executable, "-c", code])
  assert "--config" in done.stdout and "--workdir" in done.stdout
