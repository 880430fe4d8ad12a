"""Tables and figures of the documentation are what the records make; nothing between the marks is
typed.
"""

import json
import pathlib
import shutil

import pytest

from xmr.errors import UserError
from xmr.results import __main__ as command
from xmr.results import records, render

ROOT = pathlib.Path(__file__).parents[2]
PAGE = "before\n<!-- table: t -->\nold\n<!-- end -->\nafter\n"
TABLES = {
  "t": {
    "rows": [["MH", "mh"], ["IMC", "imc"]],
    "columns": [["rsum", "rsum", 1], ["R@1", "i2t/r1", 2]],
    "figure": True,
  }
}


def run_record(row, seed, **metrics):
  return {
    "row": row,
    "config": {},
    "seed": seed,
    "metrics": metrics,
    "versions": {},
    "machine": {},
    "commit": "0123456789",
    "seconds": 1.0,
    "date": "2026-01-01",
    "command": "python -m xmr.main",
  }


@pytest.fixture
def root(tmp_path):
  """A repository of one page, one table and three records."""
  folder = tmp_path / "docs" / "results" / "records"
  folder.mkdir(parents=True)
  (tmp_path / "README.md").write_text("no table\n")
  (tmp_path / "docs" / "page.md").write_text(PAGE)
  (folder.parent / "tables.json").write_text(json.dumps(TABLES))
  for seed, rsum in ((0, 10.0), (1, 14.0)):
    path = folder / f"mh_{seed}.json"
    path.write_text(json.dumps(run_record("mh", seed, **{"rsum": rsum, "i2t/r1": 1.0})))
  summary = {
    "row": "imc",
    "seeds": 3,
    "mean": {"rsum": 5.0},
    "deviation": {"rsum": 0.25},
    "commit": "abc",
    "command": "python -m xmr.sweep",
  }
  (folder / "imc.json").write_text(json.dumps(summary))
  return tmp_path


def test_the_pages_of_this_repository_are_what_the_records_make():
  differ = command.render(ROOT, write=False)
  assert not differ, f"{differ} differ; python -m xmr.results writes them"


def test_every_record_names_its_command_and_belongs_to_a_table():
  folder = ROOT / "docs" / "results"
  rows, _ = records.read(folder / "records")
  tables = json.loads((folder / "tables.json").read_text()).values()
  shown = {row for table in tables for _, row in table.get("rows", [])}
  shown |= {row for table in tables for _, rows in table.get("cells", []) for row in rows}
  assert rows.keys() == shown
  assert all(record["command"].startswith("python -m xmr.") for r in rows.values() for record in r)


def test_a_block_holds_means_deviations_and_the_code(root, capsys):
  command.main(["results", f"--root={root}"])
  text = (root / "docs" / "page.md").read_text().replace("\u00a0", " ")
  assert "| MH | 2 | 12.0 ± 2.8 | 1.00 ± 0.00 | 0123456 |" in text
  assert "| IMC | 3 | 5.0 ± 0.2 | - | abc |" in text
  assert text.startswith("before\n<!-- table: t -->\n") and text.endswith("<!-- end -->\nafter\n")
  assert (root / "docs/results/t.svg").read_text().count("<svg") == 1
  capsys.readouterr()
  command.main(["results", f"--root={root}", "--check"])
  assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["page.md", "results/t.svg"])
def test_check_finds_a_page_or_figure_of_other_records(root, name, capsys):
  command.main(["results", f"--root={root}"])
  path = root / "docs" / "results" / "records" / "mh_1.json"
  path.write_text(path.read_text().replace("14.0", "15.0"))
  before = (root / "docs" / name).read_bytes()
  with pytest.raises(SystemExit, match="1"):
    command.main(["results", f"--root={root}", "--check"])
  assert name in capsys.readouterr().out and (root / "docs" / name).read_bytes() == before


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda r: (r / "records" / "mh_0.json").write_text("{"), "mh_0.json is not JSON"),
    (lambda r: (r / "records" / "mh_0.json").write_text('{"row": "mh"}'), "has no 'config'"),
    (lambda r: (r / "records" / "imc.json").unlink(), "no record of row 'imc'"),
    (lambda r: (r / "tables.json").write_text("{}"), "no table 't'"),
    (lambda r: (r / "tables.json").write_text("{"), "tables.json is not JSON"),
    (lambda r: (r / "tables.json").write_text('{"t": 3}'), "is 3; expected an object"),
    (lambda r: (r / "records" / "mh_0.json").write_text("null"), "mh_0.json holds null"),
    (lambda r: shutil.copy(r / "records/imc.json", r / "records/z.json"), "summary beside other"),
  ],
)
def test_mistakes_end_with_one_line(root, change, message, capsys):
  change(root / "docs" / "results")
  with pytest.raises(SystemExit, match="2"):
    command.main(["results", f"--root={root}"])
  (line,) = capsys.readouterr().err.splitlines()
  assert message in line


def test_a_run_becomes_a_record(root, tmp_path, capsys):
  run = tmp_path / "run"
  run.mkdir()
  from xmr import config as config_lib

  flat = json.loads(json.dumps(config_lib.flat(config_lib.base_config())))
  flat |= {"batch_size": 7, "data.dir": "/private", "seed": 3}
  (run / "config.json").write_text(json.dumps(flat))
  # As eval.results.record makes it.
  results = run_record("", 3, rsum=9.0) | {"device": "P", "duration": 2.5}
  results["command"] = (
    "python -m xmr.main --workdir /a/b '--config.data.dir=/my data' --config=c.py"
  )
  (run / "results.json").write_text(json.dumps(results))
  command.main(["results", f"--root={root}", f"--add={run}", "--row=mh"])
  made = json.loads((root / "docs/results/records/mh_seed3.json").read_text())
  assert made["config"] == {"batch_size": 7} and made["metrics"] == {"rsum": 9.0}
  assert made["row"] == "mh" and made["commit"] == "0123456789"
  assert (made["machine"], made["seconds"]) == ("P", 2.5)
  assert made["command"] == (
    "python -m xmr.main --workdir WORKDIR --config.data.dir=DATA --config=c.py"
  )
  assert "| MH | 3 |" in (root / "docs" / "page.md").read_text()
  with pytest.raises(SystemExit, match="2"):
    command.main(["results", f"--root={root}", f"--add={tmp_path}", "--row=mh"])
  assert "expected the folder of a finished run" in capsys.readouterr().err


def test_times_of_a_bench_become_rows(root):
  case = {
    "name": "mh B 512",
    "ratios": {"loop": 9.0, "torch": 2.0},
    "share": 0.5,
    "goals": [{"goal": "share >= 0.6", "met": False}, {"goal": "ratio/best >= 1", "met": True}],
    "contenders": {"xmr": {"extra_mb": 4.2}},
  }
  bench = {
    "bench": "losses",
    "cores": None,
    "machine": {"processor": "P", "cores": 2},
    "versions": {"xmr": "1"},
    "cases": [case],
  }
  text = render.table({"benches": ["b"]}, {}, {"b": bench})
  assert text.splitlines()[-1] == (
    "| losses: mh B 512 | torch | 2.00 | 50% | share ≥ 0.6: missed; ratio/best ≥ 1: met | 4 MB "
    "| P, 2 cores | 1 |"
  )
  with pytest.raises(UserError, match="no record c.json of a bench"):
    render.table({"benches": ["c"]}, {}, {"b": bench})


def test_plans_become_rows():
  step = {
    "rows": 1024,
    "memory": {"peak": 2**30},
    "moved": [{"sent": 2**20}, {"sent": 2**20}],
    "seconds": {"compute": 0.001, "interconnect": 0.002},
    "binds": "interconnect",
  }
  plan = {"plan": "v5e:2x4", "chip": {"memory": 2**34}, "programs": [step]}
  text = render.table({"plans": [["MH", "p"]]}, {}, {"p": plan})
  shown = "| MH, 1,024 pairs | v5e:2x4 | 1,024 MiB | 6.2% | 2.0 MiB | 2.00 ms | interconnect |"
  assert text.splitlines()[-1] == shown
  with pytest.raises(UserError, match="no record q.json of a plan"):
    render.table({"plans": [["MH", "q"]]}, {}, {"p": plan})


def test_kernels_become_rows():
  moved = {"xla": {"moved": 6 * 2**20}, "kernel": {"moved": 2**21}}
  cases = [{"name": n, "batch": 1024, "least": 2**20} for n in ("a", "b")]
  record = {"bench": "kernels", "chip": "h100", "cases": [cases[0] | moved, cases[1] | moved]}
  del record["cases"][1]["kernel"]
  text = render.table({"kernels": ["k"]}, {}, {"k": record}).splitlines()
  assert text[-2:] == [
    "| a | h100 | 1,024 | 1 MiB | 6 MiB | 2 MiB | 3.0 |",
    "| b | h100 | 1,024 | 1 MiB | 6 MiB | - | - |",
  ]
  with pytest.raises(UserError, match="no record q.json; python -m xmr.bench.kernels makes it"):
    render.table({"kernels": ["q"]}, {}, {"k": record})


@pytest.mark.parametrize(
  "row, missing, message",
  [
    ("a/../../b", None, "it names a file"),
    ("a\nb", None, "it names a file"),
    ("a", "seed", "'seed'"),
  ],
)
def test_a_row_that_is_no_name_or_results_that_are_not_whole_write_no_record(
  tmp_path, row, missing, message
):
  (tmp_path / "config.json").write_text("{}")
  results = {name: 0 for name in records.NEEDED if name != missing}
  (tmp_path / "results.json").write_text(json.dumps(results))
  with pytest.raises(UserError, match=message):
    records.of_run(tmp_path, row)


def test_baselines_become_records_without_a_seed(root, tmp_path, capsys):
  results = run_record("", None, rsum=9.0) | {"device": "P", "duration": 2.5}
  results["command"] = "python -m xmr.eval --baseline=cca --out=/a/b"
  results["baselines"] = {"random": {"rsum": 1.5}}
  (tmp_path / "results.json").write_text(json.dumps(results))  # xmr.eval writes no config.
  (root / "docs/results/records/imc.json").unlink()
  command.main(["results", f"--root={root}", f"--add={tmp_path}", "--row=imc"])
  made = json.loads((root / "docs/results/records/imc.json").read_text())
  assert (made["config"], made["seed"], made["metrics"]) == ({}, None, {"rsum": 9.0})
  assert made["command"] == "python -m xmr.eval --baseline=cca --out=WORKDIR"
  add = ["results", f"--root={root}", f"--add={tmp_path}", "--row=imc"]
  command.main([*add, "--baseline=random"])
  text = (root / "docs" / "page.md").read_text()
  assert "| IMC | 1 | 1.5 | - | 0123456 |" in text
  capsys.readouterr()
  for wrong, message in (
    ([*add, "--baseline=cca"], "has random"),
    (["results", f"--root={root}", "--baseline=random"], "belong together"),
  ):
    with pytest.raises(SystemExit, match="2"):
      command.main(wrong)
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_validation_at_the_step_of_a_run_becomes_a_record_and_a_cell(root, tmp_path):
  (tmp_path / "config.json").write_text("{}")
  results = run_record("", 0, rsum=9.0) | {"device": "P", "duration": 2.5, "step": 4}
  (tmp_path / "results.json").write_text(json.dumps(results))
  lines = [
    {"step": 2, "val/rsum": 7.0},
    {"step": 4, "train/loss": 1.0},
    {"step": 4, "val/rsum": 8.5},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  made = records.of_run(tmp_path, "tuning", validation=True)
  assert made["metrics"] == {"val/rsum": 8.5}
  of = {"cells": [["MH", ["a", "b"]]], "heads": ["0.1", "0.2"], "metric": "val/rsum", "decimals": 1}
  text = render.table(of, {"a": [made], "b": [made | {"metrics": {"val/rsum": 9.0}}]}, {})
  assert text.splitlines()[0] == "|  | 0.1 | 0.2 | code |"
  assert text.splitlines()[2] == "| MH | 8.5 | 9.0 | 0123456 |"
  (tmp_path / "metrics.jsonl").write_text(json.dumps(lines[0]))
  with pytest.raises(UserError, match="has no validation of step 4"):
    records.of_run(tmp_path, "tuning", validation=True)
