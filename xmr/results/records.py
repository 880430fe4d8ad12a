"""Records: one JSON file per run or bench, written by a command and never by hand.

A run's record: {"row": the table row that it belongs to, "config": {field: value} where it differs
from the defaults, "seed", "metrics": {name: number}, "versions", "commit", "machine", "seconds",
"date", "command"}; the seed of a baseline is None. A summary of runs whose own records were not
kept has "seeds" (their number), "mean" and "deviation" in place of "seed" and "metrics". A bench's
record is what `python -m xmr.bench NAME --json=FILE` writes, a plan's what
`python -m xmr.plan --json=FILE` does.
"""

import json
import pathlib
import re
import shlex
import statistics

from xmr.errors import UserError
from xmr.storage.files import read_json

RUN = ("row", "config", "seed", "metrics", "versions", "commit", "machine", "seconds", "date")
PATHS = {
  "--workdir": "WORKDIR",
  "--out": "WORKDIR",
  "--config.data.dir": "DATA",
  "--config.data.cache_dir": "CACHE",
}
NEEDED = ("seed", "metrics", "device", "duration", "command", "versions", "commit", "date")
SUMMARY = ("row", "seeds", "mean", "deviation", "commit", "command")


def read(folder):
  """Returns ({row: [record, ...]} of runs and summaries, {file name: record} of benches and plans).

  Args:
    folder: of JSON files.
  Raises:
    UserError: a file that is no record; names the file and the key that is missing.
  """
  rows, benches = {}, {}
  for path in sorted(pathlib.Path(folder).glob("*.json")):
    record = read_json(path)
    if "bench" in record or "plan" in record:
      benches[path.stem] = record
      continue
    missing = [key for key in (SUMMARY if "mean" in record else RUN) if key not in record]
    if missing:
      raise UserError(f"{path} has no {missing[0]!r}; expected a record that a command wrote")
    rows.setdefault(record["row"], []).append(record)
  return rows, benches


def statistics_of(records, metric):
  """Returns (mean, deviation over seeds or None for one, number of seeds) of a metric of a row.

  The deviation divides by the number of seeds less one.

  Raises:
    UserError: a record without the metric, or runs beside a summary.
  """
  summaries = [record for record in records if "mean" in record]
  if summaries:
    if len(records) > 1:
      row = records[0]["row"]
      raise UserError(f"row {row!r} has a summary beside other records; delete {row}.json")
    one = summaries[0]
    if metric not in one["mean"]:
      raise UserError(f"row {one['row']!r} has no metric {metric!r}")
    return one["mean"][metric], one["deviation"].get(metric), one["seeds"]
  for record in records:
    if metric not in record["metrics"]:
      raise UserError(f"row {record['row']!r}, seed {record['seed']}: no metric {metric!r}")
  values = [record["metrics"][metric] for record in records]
  return statistics.mean(values), statistics.stdev(values) if values[1:] else None, len(values)


def of_run(workdir, row, *, baseline="", validation=False):
  """Returns the record of a finished run.

  Args:
    workdir: of the run, with config.json and results.json; the --out of xmr.eval has no config.
    row: that it belongs to.
    baseline: key of the run's "baselines", which are recorded in place of it; "" is the run.
    validation: True records "val/rsum" and the like of the run's step in place of its scores.
  Raises:
    UserError: the run is not finished, has no such baseline, or was not validated at its step.
  """
  workdir = pathlib.Path(workdir)
  results = _read(workdir / "results.json")
  missing = [name for name in NEEDED if name not in results]
  if missing:
    raise UserError(f"{workdir / 'results.json'} has no {missing[0]!r}; --eval_only makes it again")
  if not re.fullmatch(r"[\w.-]+", row):
    raise UserError(
      f"--row is {row!r}; expected letters, digits, points and hyphens: it names a file"
    )
  metrics, seed = results["metrics"], results["seed"]
  if baseline:
    known = results.get("baselines", {})
    if baseline not in known:
      raise UserError(f"--baseline={baseline}: {workdir} has {', '.join(known) or 'no baselines'}")
    metrics, seed = known[baseline], None
  counts = {key: results.get(key) for key in ("n_images", "n_texts", "protocol")}
  if validation:
    metrics, counts = _validated(workdir, results.get("step")), {}
  return {
    "row": row,
    "config": {} if results["seed"] is None else differences(_read(workdir / "config.json")),
    "seed": seed,
    "metrics": metrics,
    "machine": results["device"],
    "seconds": results["duration"],
    "command": anywhere(results["command"]),
    **{key: results[key] for key in ("versions", "commit", "date")},
    **counts,
  }


def _validated(workdir, step):
  """The validation metrics of a step, from metrics.jsonl."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
  for line in map(json.loads, lines):
    found = {name: value for name, value in line.items() if name.startswith("val/")}
    if found and line["step"] == step:
      return found
  raise UserError(f"{path} has no validation of step {step}, whose weights results.json scores")


def _read(path):
  try:
    return read_json(path)
  except UserError as error:
    raise UserError(f"{error}; expected the folder of a finished run") from None


def anywhere(command):
  """Returns a command with WORKDIR, DATA and CACHE in place of the folders of one machine."""
  words = shlex.split(command)
  for i, word in enumerate(words):
    flag, equals, _ = word.partition("=")
    if equals and flag in PATHS:
      words[i] = f"{flag}={PATHS[flag]}"
    elif not equals and flag in PATHS and i + 1 < len(words):
      words[i + 1] = PATHS[flag]
  return shlex.join(words)


def differences(flat_config):
  """Returns the fields of a flat config that differ from the defaults, but for folders."""
  from xmr import config as config_lib

  defaults = json.loads(json.dumps(config_lib.flat(config_lib.base_config())))
  private = ("data.dir", "data.cache_dir", "seed")
  return {
    key: value
    for key, value in flat_config.items()
    if key not in private and value != defaults.get(key)
  }
