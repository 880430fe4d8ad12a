"""Benches: contenders in processes of their own, figures, goals, table and JSON; one bench from end
to end.
"""

import io
import json
import subprocess
import sys

import pytest

from xmr.bench import __main__ as command
from xmr.bench import others, probes, report, runner, scaling
from xmr.bench.cases import Case, Goal

TOY = """
def ours(n):
  return {"run": lambda: 2.0, "answer": lambda: [n, 1.0], "facts": {"mb": 3.0}}

def slow(n):
  return {"run": lambda: 8.0, "answer": lambda: [n, 1.0]}

def part(n):
  return {"run": lambda: 1.0}

def wrong(n):
  return {"run": lambda: 1.0, "answer": lambda: [n, 2.0]}

def absent(n):
  raise ModuleNotFoundError("No module named 'torch'", name="torch")

def broken(n):
  print("a library that prints")
  raise ValueError("this cannot be")

def ended(n):
  import os
  os._exit(3)

def probe(seconds=0.5):
  return {"run": lambda: seconds, "facts": {"amount": 10.0}}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
  """Runs a case of contenders that say themselves how long they took; probes give 20 units per
  second.
  """
  (tmp_path / "toy_contenders.py").write_text(TOY)
  monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  found = [(kind, "toy_contenders:probe", {}) for kind in runner.KINDS]
  # A slower one and one that is not installed change nothing.
  found += [
    ("gemm", "toy_contenders:probe", {"seconds": 2.0}),
    ("gemm", "toy_contenders:absent", {"n": 1}),
  ]
  monkeypatch.setattr(probes, "probes", lambda quick: found)

  def run(*, goals=(), **contenders):
    functions = {name: f"toy_contenders:{function}" for name, function in contenders.items()}
    case = Case(
      "toy",
      functions,
      {"n": 4},
      products=10,
      traffic=10,
      part={"sample": 0.1},
      items=6,
      unit="things",
      goals=goals,
    )
    return runner.run([case], rounds=2)

  return run


def test_ratio_share_rate_and_goals_are_those_of_the_times(toy):
  goals = (
    Goal("ratio/torch", at_least=5),
    Goal("ratio/best", at_least=0.1),
    Goal("share", at_least=0.5),
    Goal("rate", at_least=3),
    Goal("facts/mb", at_most=2),
    Goal("seconds", at_most=2),
    Goal("ratio/nobody", at_least=1),
  )
  (result,) = toy(xmr="ours", torch="slow", sample="part", absent="absent", goals=goals)
  assert result["ratios"] == result["ratios_of_fastest"] == {"torch": 4.0, "sample": 5.0}
  assert (result["limit_seconds"], result["share"], result["rate"]) == (1.0, 0.5, 3.0)
  assert [goal["met"] for goal in result["goals"]] == [False, True, True, True, False, True, None]
  assert result["missing"] == {"absent": "No module named 'torch'"}
  document = report.document("toy", [result], quick=False, rounds=2)
  assert json.loads(json.dumps(document)) == document
  assert {"processor", "cores", "memory_gb", "others"} <= document["machine"].keys()
  assert document["versions"]["jax"] and "torch" in document["versions"]
  lines = report.table(document).splitlines()
  assert lines[0].split()[:4] == ["case", "contender", "time", "ratio"]
  assert lines[2].split()[:4] == ["torch", "8", "s", "4.00"]
  assert (
    "MISSED toy: ratio/torch >= 5, found 4" in lines
    and "met    toy: share >= 0.5, found 0.5" in lines
  )
  assert "without absent: No module named 'torch'; pip install -e '.[bench]'" in lines


def test_a_share_above_the_limit_says_that_the_limit_is_wrong(toy):
  (result,) = toy(xmr="ours")
  for share, said in ((1.01, False), (1.2, True)):
    document = report.document("toy", [result | {"share": share}], quick=False, rounds=2)
    assert ("WRONG LIMIT toy: 120% of it" in report.table(document)) == said


def test_every_probe_says_how_much_it_does():
  pytest.importorskip("torch")
  for kind, function, arguments in probes.probes(quick=True):
    found = getattr(probes, function.partition(":")[2])(**arguments)
    found["run"]()
    assert kind in runner.KINDS and found["facts"]["amount"] > 0


def test_time_that_went_elsewhere_is_what_neither_the_bench_nor_idling_took(monkeypatch):
  files = iter(["cpu 100 0 50 800 50 0 0 0 0 0\n", "cpu 300 0 50 900 50 0 0 100 0 0\n"])
  clocks, own = iter([10.0, 12.0]), iter([(1.0, 0.0, 0.0, 0.0), (1.5, 0.5, 1.0, 0.0)])
  monkeypatch.setattr("builtins.open", lambda path: io.StringIO(next(files)))
  monkeypatch.setattr(others.os, "sysconf", lambda name: 100)
  monkeypatch.setattr(others.os, "cpu_count", lambda: 2)
  monkeypatch.setattr(others.os, "times", lambda: next(own))
  monkeypatch.setattr(others.time, "monotonic", lambda: next(clocks))
  # Three seconds of two cores were taken in two seconds, two of them by the bench.
  assert others.share_since(others.mark()) == pytest.approx(1 / 4)


def test_a_machine_that_others_used_is_named(toy):
  (result,) = toy(xmr="ours", torch="slow")
  for share, said in ((None, []), (0.02, ["2%"]), (0.3, ["30%", "ratios are not to be trusted"])):
    text = report.table(report.document("toy", [result], quick=False, rounds=2, others=share))
    assert all(word in text for word in said)
    assert ("meanwhile" in text, "not to be trusted" in text) == (len(said) > 0, len(said) > 1)


@pytest.mark.parametrize(
  ("contender", "message"),
  [
    ("wrong", r"toy: xmr answers \[4.0, 1.0\], torch \[4.0, 2.0\]"),
    ("broken", "ValueError: this cannot be"),
    ("ended", r"a contender's process ended \(3\)"),
  ],
)
def test_a_contender_that_fails_or_answers_otherwise_ends_the_bench(toy, contender, message):
  with pytest.raises(RuntimeError, match=message):
    toy(xmr="ours", torch=contender)


def test_growth_is_the_slope_in_logarithms():
  assert scaling.exponent([(1, 5.0), (2, 20.0), (4, 80.0)]) == pytest.approx(2)
  assert scaling.exponent([(1, 5.0), (2, None)]) is None


def test_growth_of_memory_is_that_of_the_plan_where_there_is_one():
  figures = [{"fastest": n**2, "extra_mb": 1.0, "facts": {"temp_mb": 3.0 * n}} for n in (512, 1024)]
  results = [
    {"name": f"mh B {n}", "contenders": {"xmr": x}}
    for n, x in zip((512, 1024), figures, strict=True)
  ]
  assert scaling.summary(results) == ["growth of mh B: time 2.00, memory 1.00; arithmetic 2"]
  for x in figures:
    x["facts"] = {}
  assert scaling.summary(results) == ["growth of mh B: time 2.00, memory 0.00; arithmetic 2"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["nobody"],
      "no bench 'nobody'; expected one of losses, step, mining, ranks, graded, alignment, "
      "rouge, startup, data, encoders",
    ),
    ([], "the following arguments are required: NAME"),
    (["rouge", "--rounds=0"], "--rounds is 0; expected at least 1"),
    (["rouge", "--only=nothing"], "--only=nothing leaves no case of rouge"),
    (["rouge", "--json=no/such/file"], "--json: there is no folder no/such"),
  ],
)
def test_mistakes_end_with_one_line(arguments, message, capsys):
  with pytest.raises(SystemExit, match="2"):
    command.main(["bench", *arguments])
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith("xmr: error: ") and message in line


def test_flags_are_read_before_jax_and_every_bench_has_cases():
  code = """
import importlib, sys
from xmr.bench import __main__ as command
for name in command.BENCHES:
  bench = importlib.import_module(f"xmr.bench.{name}")
  for quick in (True, False):
    found = bench.cases(quick=quick)
    assert found and all("xmr" in case.contenders for case in found)
    assert not (quick and any(case.goals for case in found)), name
assert not {"jax", "torch"} & sys.modules.keys()
"""
  subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.slow
def test_a_quick_bench_writes_its_json(tmp_path, capsys):
  command.main(["bench", "rouge", "--quick", "--rounds=1", f"--json={tmp_path / 'rouge.json'}"])
  document = json.loads((tmp_path / "rouge.json").read_text())
  assert (document["bench"], document["quick"], document["rounds"]) == ("rouge", True, 1)
  assert document["command"].startswith("python ")
  (case,) = document["cases"]
  assert (
    case["contenders"].keys() == {"xmr", "python"}
    and case["ratios"]["python"] > 0
    and case["rate"] > 0
  )
  assert "M caption pairs" in capsys.readouterr().out
