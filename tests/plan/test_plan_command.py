"""python -m xmr.plan: the programs of a config for a slice, without data or devices."""

import json
import subprocess
import sys

import jax
import pytest
import test_scopes

from xmr import mining, parallel
from xmr.plan import __main__ as command
from xmr.plan import shapes

SMALL = [
  "--config=configs/fullhn_flickr.py:hn",
  "--topology=cpu:8",
  "--images=64",
  "--captions=128",
  "--image_width=12",
  "--text_width=8",
  "--config.model.dim=16",
  "--config.batch_size=16",
  "--config.eval_batch_size=8",
]


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Runs the command in this process; returns its JSON."""

  def run(*flags):
    path = tmp_path / "plan.json"
    argv = ["xmr.plan", *SMALL, f"--config.data.cache_dir={tmp_path}", f"--json={path}", *flags]
    monkeypatch.setenv("XLA_FLAGS", "")
    # The library of config flags looks there for the fields.
    monkeypatch.setattr(sys, "argv", argv)
    command.main(argv)
    return json.loads(path.read_text())

  return run


def test_a_plan_names_memory_traffic_and_the_bound_of_every_program(run, capsys):
  found = run()
  printed = capsys.readouterr()
  programs = {program["name"]: program for program in found["programs"]}
  names = ["training step", "encoding images", "encoding texts", "block of ranks"]
  assert list(programs) == names
  assert all(f"xmr: compiling {name} for cpu:8" in printed.err for name in names)
  step = programs["training step"]
  assert step["fits"] and step["rows"] == 16 and printed.out.count("  fits") == 4
  # The state is donated, so that it is there once.
  assert step["memory"]["aliased"] >= 4 * 3 * 16 * (12 + 8)
  assert max(step["seconds"], key=step["seconds"].get) == step["binds"]
  # Linear projections: forward of both sides, and the gradients of both kernels; then the scores.
  assert step["flops"] >= 2 * 2 * 16 * 16 * (12 + 8) + 2 * 16 * 16 * 16
  assert {moved["kind"] for moved in step["moved"]} >= {"all-reduce"}
  assert programs["encoding images"]["moved"] == []
  assert found["config"]["model.dim"] == 16 and found["chip"]["name"] == "cpu"


def test_a_recipe_is_filled_in_by_the_number_of_captions(run):
  fields = ("--config.recipe=by_size", "--config.batch_size=0", "--config.epochs=0")
  found = run(*fields, "--captions=640", "--images=128")
  assert found["config"]["batch_size"] == found["programs"][0]["rows"] == 32


def test_what_does_not_fit_ends_with_status_1_and_says_what_helps(run, capsys):
  flags = ["--config.loss.name=info_nce", "--config.batch_size=524288", "--captions=600000"]
  with pytest.raises(SystemExit, match="1"):
    run("--config.mining.scope=batch", *flags)
  text = capsys.readouterr().out
  assert "DOES NOT FIT, so nothing was compiled; what helps: --config.loss_form=ring" in text
  # [B, B] / P alone: nobody waits for a compiler to say it.
  assert "scores 128 GiB" in text and "compiling" not in text


@pytest.mark.parametrize("scope", ["batch", "train", "bank"])
def test_the_shapes_of_a_plan_are_those_of_the_arrays(scope):
  split = test_scopes.make_split(images=24)
  config = test_scopes.make_config(mining__scope=scope)
  made = test_scopes.make_experiment(split, config, 8)
  described = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), tree)  # noqa: E731
  _, pool, bank = mining.make(made)
  _, planned, planned_bank = mining.make(made, put=shapes)
  assert described(planned) == described(pool) and described(planned_bank) == described(bank)
  tree = {"a": jax.numpy.zeros((16, 3))}
  for name in ("shard", "replicate"):
    real = getattr(parallel, name)(made.mesh, tree)
    assert described(getattr(shapes, name)(made.mesh, tree)) == described(real)


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--topology=v9:2"], "--topology is 'v9:2'; expected CHIP:SHAPE"),
    (["--images=0"], "0 is not a positive integer"),
    (["--captions=3"], "--captions is 3; expected at least --images=64"),
    (["--config.batch_size=12"], "config.batch_size is 12; expected a multiple of the 8 devices"),
    (["--topology=cpu:64"], "8 CPU devices; expected 64"),
    (["--json=no/such/file"], "--json: there is no folder no/such"),
    (["--json=/"], "--json: / is a folder; expected a file"),
    (["--topology=v5e:1000x1000"], "1,000,000 devices; expected at most 65,536"),
    (["--config.model.dim=0"], "config.model.dim is 0"),
  ],
)
def test_a_mistake_is_one_line(run, flags, message, capsys):
  with pytest.raises(SystemExit, match="2"):
    run(*flags)
  lines = [line for line in capsys.readouterr().err.splitlines() if "compiling" not in line]
  assert len(lines) == 1 and lines[0].startswith("xmr: error: ") and message in lines[0]


def test_help_needs_no_jax():
  code = "import sys; from xmr.plan import __main__ as m; m.main(['x', '--help']); "
  code += "assert 'jax' not in sys.modules"
  done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
  assert "--topology" in done.stdout
