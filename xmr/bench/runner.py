"""Runs the cases of a bench: contenders take turns in every round, one process works at a time."""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile

from xmr.bench import probes
from xmr.bench.cases import OURS

KINDS = ("gemm", "copy")
# Of which the fastest counts: after a contender of one thread the other cores take some to wake.
PROBE_CALLS = 12


class Worker:
  """A contender's process, from the parent's side."""

  def __init__(self, cores=None):
    self.errors = tempfile.TemporaryFile("w+")
    self.process = subprocess.Popen(
      [sys.executable, "-m", "xmr.bench.worker", *([str(cores)] if cores else [])],
      text=True,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self.errors,
      # Two processes may share one accelerator.
      env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ},
    )
    assert self.process.stdin and self.process.stdout  # As asked for: both are pipes.
    self.requests, self.replies = self.process.stdin, self.process.stdout

  def ask(self, **request):
    """Sends a request and returns the reply; RuntimeError with the contender's traceback where it
    failed.
    """
    try:
      self.requests.write(json.dumps(request) + "\n")
      self.requests.flush()
      line = self.replies.readline()
    except BrokenPipeError:
      line = ""
    if not line:
      self.errors.seek(0)
      raise RuntimeError(
        f"a contender's process ended ({self.process.wait()}): {self.errors.read()[-2000:]}"
      )
    reply = json.loads(line)
    if "error" in reply:
      raise RuntimeError(f"a contender failed at {json.dumps(request)[:300]}\n{reply['error']}")
    return reply

  def open(self, function, arguments):
    """Sets a contender up; returns its reply."""
    return self.ask(open={"function": function, "arguments": arguments})

  def close(self):
    """Ends the process."""
    self.requests.close()
    try:
      self.process.wait(timeout=10)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
    self.replies.close()
    self.errors.close()


@contextlib.contextmanager
def workers(cores=None):
  """Yields a function from a contender's name to its process, which lives until the end of the
  block; cores as in `run`.
  """
  running = {}

  def get(name):
    if name not in running:
      running[name] = Worker(cores)
    return running[name]

  try:
    yield get
  finally:
    for worker in running.values():
      worker.close()


def run(cases, *, rounds, cores=None, quick=False, say=lambda line: None):
  """Runs cases one after another.

  Args:
    cases: list of Case.
    rounds: int, how often every contender of a case takes its turn.
    cores: int, that every process may use; None: all. With one core, times are those of the
      processor.
    quick: small probes.
    say: function of a line of progress.
  Returns:
    list of dicts, one per case, as in the JSON; see `measured`.
  Raises:
    RuntimeError: a contender failed, or the answers of two differ.
  """
  results = []
  with workers(cores) as worker:
    rates = open_probes(worker, quick)
    for case in cases:
      say(case.name)
      results.append(run_case(case, worker, rates, rounds))
  return results


def open_probes(worker, quick):
  """Opens the probes, each in a process of its own; returns a function of the rates right now.

  Args:
    worker: function of a name to a process.  quick: small probes.
  Returns:
    function of nothing -> {"gemm": operations per second, "copy": bytes per second}, each the best
    of its probes.
  """
  opened = []
  for kind, function, arguments in probes.probes(quick=quick):
    name = f"{function} {arguments}"
    reply = worker(name).open(function, arguments)
    if "missing" not in reply:
      opened.append((kind, name, reply["facts"]["amount"]))

  def rates():
    found = dict.fromkeys(KINDS, 0.0)
    for kind, name, amount in opened:
      rate = amount / min(worker(name).ask(calls=PROBE_CALLS)["seconds"])
      found[kind] = max(found[kind], rate)
    return found

  return rates


def run_case(case, worker, rates_now, rounds):
  """Opens a case in every contender's process, lets them take turns, and returns the figures."""
  opened, missing = {}, {}
  for name, function in case.contenders.items():
    reply = worker(name).open(function, case.arguments)
    if "missing" in reply:
      missing[name] = reply["missing"]
    else:
      opened[name] = reply
  check_answers(case, opened)
  times = {name: [] for name in opened}
  rates = {kind: [] for kind in KINDS}
  for _ in range(rounds):
    for kind, rate in rates_now().items():
      rates[kind].append(rate)
    for name, reply in opened.items():
      taken = statistics.median(worker(name).ask(calls=reply["calls"])["seconds"])
      times[name].append(taken / case.part.get(name, 1.0))
  return measured(case, opened, missing, times, rates)


def check_answers(case, opened):
  """Raises RuntimeError where a contender's answer is not ours: a faster wrong answer is no
  ratio.
  """
  ours = opened.get(OURS, {}).get("answer")
  if ours is None:
    return
  size = max([abs(x) for x in ours], default=0.0) or 1.0
  for name, reply in opened.items():
    other = reply["answer"]
    if other is None:
      continue
    if len(other) != len(ours) or any(
      not abs(a - b) <= case.tolerance * size for a, b in zip(ours, other, strict=True)
    ):
      raise RuntimeError(
        f"{case.name}: {OURS} answers {ours[:4]}, {name} {other[:4]}; expected the same"
      )


def measured(case, opened, missing, times, rates):
  """Turns the rounds of a case into its figures.

  Returns:
    {"name", "contenders": {name: {"seconds", "fastest", "slowest", "first_seconds", "extra_mb",
    "facts"}}, "ratios": {name: its time over ours}, "ratios_of_fastest": {name: the same of the
    fastest rounds}, "share" (of the limit; None without one), "limit_seconds", "rate", "unit",
    "probes": {"gemm_gflops", "copy_gb"}, "missing": {name: why}, "goals": [{"goal", "figure",
    "bound", "found", "met"}]}: medians over the rounds; a ratio and a share are medians of what
    each round gives.
  """
  median = statistics.median
  limits = [
    case.products / g + case.traffic / c for g, c in zip(rates["gemm"], rates["copy"], strict=True)
  ]
  result = {
    "name": case.name,
    "contenders": {
      name: {
        "seconds": median(taken),
        "fastest": min(taken),
        "slowest": max(taken),
        **{key: opened[name][key] for key in ("first_seconds", "extra_mb", "facts")},
      }
      for name, taken in times.items()
    },
    "ratios": {},
    "ratios_of_fastest": {},
    "share": None,
    "limit_seconds": None,
    "rate": None,
    "unit": case.unit,
    "probes": {"gemm_gflops": median(rates["gemm"]) / 1e9, "copy_gb": median(rates["copy"]) / 1e9},
    "missing": missing,
  }
  if OURS in times:
    ours = times[OURS]
    for name, taken in times.items():
      if name != OURS:
        result["ratios"][name] = median(other / own for other, own in zip(taken, ours, strict=True))
        result["ratios_of_fastest"][name] = min(taken) / min(ours)
    if case.products or case.traffic:
      result["limit_seconds"] = median(limits)
      result["share"] = median(limit / own for limit, own in zip(limits, ours, strict=True))
    if case.items:
      result["rate"] = case.items / median(ours)
  result["goals"] = [judged(goal, result) for goal in case.goals]
  return result


def judged(goal, result):
  """Returns a goal beside what was found; found and met are None where the figure is missing."""
  found = figure(result, goal.figure)
  return {
    "goal": goal.text,
    "figure": goal.figure,
    "bound": goal.bound,
    "found": found,
    "met": None if found is None else bool(goal.met(found)),
  }


def figure(result, name):
  """Returns a figure of a case by the names of Goal, or None."""
  kind, _, rest = name.partition("/")
  if kind == "ratio":
    ratios = result["ratios"]
    return min(ratios.values(), default=None) if rest == "best" else ratios.get(rest)
  ours = result["contenders"].get(OURS, {})
  if kind == "facts":
    return ours.get("facts", {}).get(rest)
  return result[kind] if kind in ("share", "rate") else ours.get(kind)
