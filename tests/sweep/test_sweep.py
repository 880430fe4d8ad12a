"""The sweep: what it refuses before anything starts, how it goes on, and what its table says of
known differences.
"""

import csv
import io
import json
import pathlib
import re
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
import small_run

from xmr import config as config_lib
from xmr import recipe
from xmr.config import base_config
from xmr.errors import UserError
from xmr.sweep import __main__ as sweep
from xmr.sweep import table

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = "configs/imc_flickr.py:flickr8k_features"


@pytest.fixture
def trained(monkeypatch):
  """Replaces training by made-up results: rsum 100 + 50 weight + seed / 10, and queries that agree;
  returns the cells run.
  """
  ran = []

  def train(cell, running, stopping):
    ran.append(cell.name)
    config = sweep.flat(cell.config)
    cell.folder.mkdir(parents=True, exist_ok=True)
    (cell.folder / "config.json").write_text(json.dumps(config))
    rng, quality = np.random.default_rng(cell.seed), 0.2 + 0.5 * (config["loss.weight"] or 0)
    owner = np.repeat(np.arange(100), 5)
    ranks = {
      f"{task}/rank": (rng.random(n) > quality).astype(np.int32)
      for task, n in (("i2t", 100), ("t2i", 500))
    }
    np.savez(cell.folder / "queries.npz", image_of_text=owner, **ranks)
    metrics = {
      f"{task}/r1": 100 * float(np.mean(ranks[f"{task}/rank"] == 0)) for task in ("i2t", "t2i")
    }
    metrics["rsum"] = 100 + 50 * (config["loss.weight"] or 0) + cell.seed / 10
    (cell.folder / "results.json").write_text(json.dumps({"metrics": metrics}))
    return "done"

  monkeypatch.setattr(sweep, "train", train)
  monkeypatch.chdir(ROOT)
  return ran


def command(workdir, *rest, config=CONFIG):
  return ["xmr.sweep", f"--config={config}", f"--workdir={workdir}", *rest]


def refused(capsys, *argv):
  with pytest.raises(SystemExit) as stop:
    sweep.main(command(*argv))
  error = capsys.readouterr().err
  assert stop.value.code == 2 and error.startswith("xmr: error: ") and error.count("\n") == 1, error
  return error


def test_a_grid_ends_in_tables_plots_and_what_survives(trained, tmp_path, capsys):
  sweep.main(
    command(tmp_path, "--grid", "loss.weight=0.25,1", "--grid=loss.distance=l1,l2", "--seeds", "3")
  )
  assert len(trained) == 12 and len(set(trained)) == 12
  with (tmp_path / "table.csv").open() as file:
    rows = {(row["setting"], row["metric"]): row for row in csv.DictReader(file)}
  row = rows["loss.weight=1 loss.distance=l2", "rsum"]
  assert (
    float(row["mean"]) == pytest.approx(150.1)
    and float(row["deviation"]) == pytest.approx(0.1)
    and row["n"] == "3"
  )
  with (tmp_path / "differences.csv").open() as file:
    found = {(row["metric"], row["a"], row["b"]): row for row in csv.DictReader(file)}
  settings = [f"loss.weight={w} loss.distance={d}" for w in ("0.25", "1") for d in ("l1", "l2")]
  for metric in ("rsum", "t2i/r1"):
    assert found[metric, settings[0], settings[2]]["survives"] == "True"
    assert found[metric, settings[0], settings[1]]["survives"] == "False"
  assert (
    "150.1 ± 0.1" in (tmp_path / "table.md").read_text() and "| yes |" in capsys.readouterr().out
  )
  for field in ("weight", "distance"):
    assert (tmp_path / f"influence_loss_{field}.png").stat().st_size > 5000


def test_finished_runs_are_not_trained_again_and_more_may_be_added(trained, tmp_path):
  sweep.main(command(tmp_path, "--grid", "loss.weight=0.25,1"))
  sweep.main(command(tmp_path, "--grid", "loss.weight=0.25,1"))
  assert len(trained) == 2
  # One seed cannot tell a difference of sums from one between seeds, and the table does not
  # pretend.
  assert re.search(r"\| rsum \|.*\| not tested \|", (tmp_path / "table.md").read_text())
  sweep.main(command(tmp_path, "--grid", "loss.weight=0.25,1,4", "--seeds=2"))
  assert len(trained) == 6
  (tmp_path / "loss.weight=1/seed=1/results.json").unlink()
  sweep.main(command(tmp_path, "--grid", "loss.weight=0.25,1,4", "--seeds=2"))
  assert trained[6:] == ["loss.weight=1 seed=1"]
  # The folder goes on with another checkpoint to score, and its old results do not count.
  sweep.main(command(tmp_path, "--grid", "loss.weight=1", "--config.evaluate.select=latest"))
  assert trained[7:] == ["loss.weight=1 seed=0"]


def test_two_configs_are_never_mixed_in_a_folder(trained, tmp_path, capsys):
  sweep.main(command(tmp_path, "--grid", "loss.weight=1"))
  capsys.readouterr()
  error = refused(capsys, tmp_path, "--grid", "loss.weight=1", "--config.loss.margin=0.3")
  assert (
    "holds a run of another config (config.loss.margin: 0.2 -> 0.3)" in error and len(trained) == 1
  )


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--grid", "loss.wieght=1,2"], "config has no field loss.wieght; did you mean loss.weight?"),
    (
      ["--grid", "loss.weight=1,heavy"],
      "flag --config.loss.weight=heavy: could not convert string to float",
    ),
    (["--grid", "loss.weight"], "expected 'field=value,value'"),
    (["--grid", "loss.weight=1,1"], "each value once"),
    (["--grid", "mining.scope=batch,epoch"], "config.mining.scope is 'epoch'; expected one of"),
    (["--grid", "loss.name=imc,triplet"], "loss.name is 'triplet'; expected one of"),
    (["--grid", "loss.temperature=1"], "loss.temperature=1: loss imc has no parameter temperature"),
    (["--grid", "variant=flickr9k"], "variant 'flickr9k' is unknown"),
    (["--grid", "loss.weight=1", "--config.loss.weight=2"], "loss.weight is given twice"),
    (["--grid", "seed=1,2"], "--seeds"),
    (
      ["--grid", "optimizer.multipliers=1"],
      "config.optimizer.multipliers holds 1; expected (parameter path regex",
    ),
    (["--config.epochs"], "--config.epochs has no value"),
    (["--grid", f"data.dir={'x' * 260}"], "would have a name of 269 bytes; expected at most 255"),
    (["--seeds=0"], "seeds"),
    (
      ["--seeds=1795291358"],
      "flag --seeds=1795291358: 1795291358 is not an integer in the range [1, 1000]",
    ),
  ],
)
def test_a_mistake_is_one_line_before_anything_starts(trained, tmp_path, capsys, flags, message):
  assert message in refused(capsys, tmp_path / "sweep", *flags)
  assert not trained and not (tmp_path / "sweep").exists()


def test_a_sweep_into_a_file_is_one_line(trained, tmp_path, capsys):
  (tmp_path / "file").write_text("mine")
  error = refused(capsys, tmp_path / "file", "--grid", "loss.weight=1")
  assert f"cannot write the folder of the sweep {tmp_path / 'file'}: File exists" in error
  error = refused(capsys, tmp_path / "file" / "below", "--grid", "loss.weight=1")
  assert "Not a directory" in error and (tmp_path / "file").read_text() == "mine"


def test_a_run_that_fails_is_named_and_the_others_go_on(trained, tmp_path, capsys, monkeypatch):
  made_up = sweep.train

  def train(cell, running, stopping):
    return (
      "status 1: out of disk"
      if cell.setting["loss.weight"] == "1"
      else made_up(cell, running, stopping)
    )

  monkeypatch.setattr(sweep, "train", train)
  with pytest.raises(SystemExit) as stop:
    sweep.main(command(tmp_path, "--grid", "loss.weight=0.25,1,4"))
  assert stop.value.code == 1 and len(trained) == 2
  assert "failed: loss.weight=1 seed=0: status 1: out of disk" in capsys.readouterr().err
  assert "loss.weight=4" in (tmp_path / "table.md").read_text()


def test_help_needs_no_jax():
  code = (
    "import sys; from xmr.sweep import __main__ as sweep; sweep.main(['sweep', '--help']); "
    "assert 'jax' not in sys.modules"
  )
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  assert "--grid" in done.stdout


@pytest.mark.parametrize(
  "stopping, outcome", [([signal.SIGTERM], "stopped"), ([], "status -15: Killed early")]
)
def test_a_run_that_the_signal_ends_before_it_can_save_is_no_failure(
  stopping, outcome, monkeypatch, tmp_path
):
  def start(command, *, stdout, **_):
    stdout.write("Killed early\n")
    return types.SimpleNamespace(
      wait=lambda: -signal.SIGTERM, terminate=lambda: None, stdin=io.BytesIO()
    )

  monkeypatch.setattr(sweep.subprocess, "Popen", start)
  cell = types.SimpleNamespace(folder=tmp_path, source="configs/imc_scenes.py", changes={})
  assert sweep.train(cell, [], stopping).startswith(outcome)


@pytest.mark.slow
def test_a_real_sweep_stops_at_a_signal_and_goes_on(tmp_path):
  flags = small_run.arguments(small_run.write_data(tmp_path / "data"), tmp_path / "sweep")
  argv = [sys.executable, "-m", "xmr.sweep", *flags, "--grid", "loss.margin=0.1,0.2"]
  process = small_run.start(argv, log=tmp_path / "log")
  small_run.wait_for(
    (tmp_path / "sweep/loss.margin=0.1/seed=0/config.json").exists, process=process
  )
  process.send_signal(signal.SIGTERM)
  assert process.wait(300) == 0
  assert (tmp_path / "log").read_text().endswith("stopped: the same command goes on from there\n")
  assert not (tmp_path / "sweep/table.md").exists()
  printed = small_run.run(argv)
  assert "loss.margin=0.2 seed=0: rsum" in printed and "| loss.margin=0.1 | 1 |" in printed
  assert (tmp_path / "sweep/table.md").exists() and (
    tmp_path / "sweep/loss.margin=0.2/seed=0/queries.npz"
  ).exists()


def test_runs_of_a_task_that_counts_map_are_compared_by_it(tmp_path):
  rng, cells = np.random.default_rng(0), []
  for form, gain in (("released", 0.0), ("h", 0.02)):
    for seed in (0, 1):
      folder = tmp_path / form / str(seed)
      folder.mkdir(parents=True)
      queries = {f"{side}/map": rng.random(30) + gain for side in ("i2t", "t2i")}
      metrics = {name: float(x.mean()) for name, x in queries.items()}
      metrics["map"] = sum(metrics.values()) / 2
      (folder / "results.json").write_text(json.dumps({"metrics": metrics}))
      np.savez(folder / "queries.npz", image_of_text=np.arange(30), **queries)
      cells.append(types.SimpleNamespace(setting={"loss.form": form}, seed=seed, folder=folder))
  text = table.write(cells, {"loss.form": ["released", "h"]}, tmp_path)
  assert "map" in text and "t2i/map" in text
  assert (tmp_path / "influence_loss_form.png").stat().st_size
  assert "i2t/map" in (tmp_path / "differences.csv").read_text()


def test_a_run_whose_recipe_was_filled_in_is_finished(tmp_path):
  config = base_config()
  config.recipe, config.epochs, config.batch_size = "by_size", 0.0, 0
  filled = config_lib.flat(recipe.by_size(config, 1000))
  (tmp_path / "config.json").write_text(json.dumps(filled))
  (tmp_path / "results.json").write_text("{}")
  cell = sweep.Cell({}, 0, config, "own.py", {}, tmp_path)
  sweep.check_folder(cell)
  assert filled["batch_size"] and cell.finished()
  config.batch_size = filled["batch_size"] + 8
  assert not cell.finished()


@pytest.mark.parametrize(
  "text, values",
  [
    ("a, b", ["a", "b"]),
    ("(1,2),(3,)", ["(1,2)", "(3,)"]),
    ("(('^a',0.1),('b',0)),()", ["(('^a',0.1),('b',0))", "()"]),
  ],
)
def test_commas_in_brackets_part_no_values(text, values):
  assert sweep.values_of(text) == values


def test_a_folder_in_which_nothing_was_trained_is_free(tmp_path):
  config = base_config()
  (tmp_path / "config.json").write_text(json.dumps(config_lib.flat(config)))
  config.seed = 3
  cell = sweep.Cell({}, 0, config, "own.py", {}, tmp_path)
  sweep.check_folder(cell)
  (tmp_path / "results.json").write_text("{}")
  with pytest.raises(UserError, match="holds a run of another config .config.seed: 0 -> 3"):
    sweep.check_folder(cell)
