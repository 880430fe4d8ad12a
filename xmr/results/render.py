"""Tables and figures of the documentation, rendered from records into marked blocks of its pages.

A page holds `<!-- table: NAME -->` ... `<!-- end -->`; `docs/results/tables.json` says for each
NAME which rows, which metrics and how many decimals, and `fields.tables` has those of the config.
Nothing between the marks is typed.
"""

import hashlib
import io
import json
import pathlib
import re

from xmr.errors import UserError
from xmr.results import fields, records
from xmr.results.grid import grid
from xmr.storage.files import read_json

BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
DIGEST = re.compile(r"<!-- records: (\w+) -->")


def pages(root):
  """Returns the pages of a repository that hold tables: README.md and docs/**/*.md."""
  root = pathlib.Path(root)
  return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def rendered(root):
  """Returns {path: text} of every page and figure as the records of a repository make them.

  Args:
    root: of the repository.
  Raises:
    UserError: a block names no table, a table no row, a row no record.
  """
  folder = pathlib.Path(root) / "docs" / "results"
  rows, benches = records.read(folder / "records")
  tables = read_json(folder / "tables.json")
  for name, of in tables.items():
    if not isinstance(of, dict):
      raise UserError(f"table {name!r} in {folder / 'tables.json'} is {of!r}; expected an object")

  generated = fields.tables()

  def block(match):
    name = match[2]
    if name in generated:
      return match[1] + generated[name] + "\n" + match[4]
    if name not in tables:
      raise UserError(f"no table {name!r} in {folder / 'tables.json'}")
    return match[1] + table(tables[name], rows, benches) + "\n" + match[4]

  made = {}
  for path in pages(root):
    text = path.read_text(encoding="utf-8")
    if BLOCK.search(text):
      made[path] = BLOCK.sub(block, text)
  for name, of in tables.items():
    if of.get("figure"):
      made[folder / f"{name}.svg"] = figure(of, rows)
  return made


def same(old, new):
  """Says whether a file on the disk is what the records make; of a figure its numbers count."""
  before, after = DIGEST.search(old), DIGEST.search(new)
  return before[1] == after[1] if before and after else old == new


def table(of, rows, benches):
  """Returns a Markdown table.

  Args:
    of: {"rows": [[label, row]], "columns": [[heading, metric, decimals]]},
      {"cells": [[label, [row]]], "heads": [heading], "metric", "decimals"}, {"benches": [names]},
      {"kernels": [names]} or {"plans": [[label, name]]}.
    rows, benches: of `records.read`.
  """
  if "benches" in of:
    return grid(*_times(of, benches))
  if "plans" in of:
    return grid(*_plans(of, benches))
  if "kernels" in of:
    return grid(*_kernels(of, benches))
  if "cells" in of:
    return grid(*_cells(of, rows))
  heads = ["", "seeds", *(heading for heading, _, _ in of["columns"]), "code"]
  lines = []
  for label, row in of["rows"]:
    found = _records_of(rows, row)
    shown = [_number(found, metric, decimals) for _, metric, decimals in of["columns"]]
    commits = sorted({(record["commit"] or "?")[:7] for record in found})
    lines.append([label, str(_seeds(found)), *shown, ", ".join(commits)])
  return grid(heads, lines)


def _cells(of, rows):
  lines = []
  for label, names in of["cells"]:
    found = [_records_of(rows, name) for name in names]
    commits = sorted({(record["commit"] or "?")[:7] for each in found for record in each})
    shown = [_number(each, of["metric"], of["decimals"]) for each in found]
    lines.append([label, *shown, ", ".join(commits)])
  return ["", *of["heads"], "code"], lines


def _times(of, benches):
  heads = ["case", "best of the others", "ratio", "share of the limit", "goals", "more memory"]
  lines = []
  for name in of["benches"]:
    if name not in benches:
      raise UserError(f"no record {name}.json of a bench; python -m xmr.bench makes it")
    bench = benches[name]
    cores = bench["cores"] or bench["machine"]["cores"]
    machine = f"{bench['machine']['processor']}, {cores} core{'s' * (cores > 1)}"
    for case in bench["cases"]:
      share = "-" if case["share"] is None else f"{case['share']:.0%}"
      memory = case["contenders"].get("xmr", {}).get("extra_mb")
      best = min(case["ratios"], key=case["ratios"].get, default=None)
      lines.append(
        [
          f"{bench['bench']}: {case['name']}",
          best or "-",
          f"{case['ratios'][best]:.2f}" if best else "-",
          share,
          "; ".join(map(_judged, case["goals"])) or "-",
          "-" if memory is None else f"{memory:.0f} MB",
          machine,
          bench["versions"].get("xmr") or "-",
        ]
      )
  return [*heads, "machine", "code"], lines


def _judged(goal):
  said = {True: "met", False: "missed", None: "not measured"}[goal["met"]]
  return f"{goal['goal'].replace('>=', '≥').replace('<=', '≤')}: {said}"


def _plans(of, plans):
  heads = [
    "config",
    "slice",
    "peak per device",
    "of its memory",
    "sent per step",
    "at least",
    "binds",
  ]
  lines = []
  for label, name in of["plans"]:
    if name not in plans:
      raise UserError(f"no record {name}.json of a plan; python -m xmr.plan --json makes it")
    plan = plans[name]
    step = plan["programs"][0]
    peak, sent = step["memory"]["peak"], sum(moved["sent"] for moved in step["moved"])
    lines.append(
      [
        f"{label}, {step['rows']:,} pairs",
        plan["plan"],
        _mib(peak),
        f"{peak / plan['chip']['memory']:,.1%}",
        f"{sent / 2**20:,.1f} MiB",
        _time(step["seconds"][step["binds"]]),
        step["binds"],
      ]
    )
  return heads, lines


def _kernels(of, benches):
  heads = ["sum", "chip", "B", "inputs and outputs", "XLA moves", "kernel moves", "ratio"]
  lines = []
  for name in of["kernels"]:
    if name not in benches:
      raise UserError(f"no record {name}.json; python -m xmr.bench.kernels makes it")
    for case in benches[name]["cases"]:
      xla, kernel = case["xla"]["moved"], case.get("kernel", {}).get("moved")
      shown = ["-", "-"] if kernel is None else [_mib(kernel), f"{xla / kernel:.1f}"]
      batch = f"{case['batch']:,}"
      line = [case["name"], benches[name]["chip"], batch, _mib(case["least"]), _mib(xla), *shown]
      lines.append(line)
  return heads, lines


def _mib(number):
  return f"{number / 2**20:,.0f} MiB" if number < 10 * 2**30 else f"{number / 2**30:,.1f} GiB"


def _time(seconds):
  return f"{1e3 * seconds:.2f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def _records_of(rows, row):
  if row not in rows:
    raise UserError(f"no record of row {row!r}; python -m xmr.results --add=WORKDIR --row={row}")
  return rows[row]


def _seeds(found):
  return found[0]["seeds"] if "seeds" in found[0] else len(found)


def _number(found, metric, decimals):
  try:
    mean, deviation, _ = records.statistics_of(found, metric)
  except UserError:
    return "-"
  spread = (
    "" if deviation is None else f"\u00a0±\u00a0{deviation:.{decimals}f}"
  )  # One cell, one line.
  return f"{mean:.{decimals}f}{spread}"


def figure(of, rows):
  """Returns an SVG of a table's first metric: a dot per row, a bar of one deviation either side."""
  heading, metric, _ = of["columns"][0]
  points = []
  for label, row in of["rows"]:
    mean, deviation, _ = records.statistics_of(_records_of(rows, row), metric)
    points.append((re.sub(r"[*`]", "", label), mean, deviation or 0.0))
  digest = hashlib.sha256(json.dumps([heading, points]).encode()).hexdigest()[:16]
  return _drawn(heading, points).replace("<svg", f"<!-- records: {digest} -->\n<svg", 1)


def _drawn(heading, points):
  import matplotlib

  matplotlib.use("agg")
  from matplotlib import pyplot

  with matplotlib.rc_context({"svg.hashsalt": "xmr", "font.size": 9}):
    made, axis = pyplot.subplots(figsize=(7, 0.6 + 0.28 * len(points)), layout="constrained")
    places = range(len(points), 0, -1)
    axis.errorbar(
      [mean for _, mean, _ in points], places, xerr=[d for *_, d in points], fmt="o", capsize=3
    )
    axis.set_yticks(places, [label for label, *_ in points])
    axis.set_xlabel(heading)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    file = io.StringIO()
    made.savefig(file, format="svg", metadata={"Date": None})
    pyplot.close(made)
  return file.getvalue()
