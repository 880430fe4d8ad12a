"""The results of a sweep: means and deviations over seeds, significant differences, and plots of
each field's influence.
"""

import csv
import itertools
import pathlib

import numpy as np

from xmr.eval import significance
from xmr.inspect import influence
from xmr.storage.files import read_arrays, read_json

LEVEL = 0.05
# Shown in the table, where the runs have them. Those of one query are compared over queries too:
# (array, k or None).
SHOWN = (
  "rsum",
  "map",
  "i2t/map",
  "t2i/map",
  "i2t/r1",
  "i2t/r5",
  "i2t/r10",
  "t2i/r1",
  "t2i/r5",
  "t2i/r10",
  "rouge_l/i2t/ndcg",
  "rouge_l/t2i/ndcg",
  "rouge_l/i2i/ndcg",
  "rouge_l/t2t/ndcg",
)
MAIN = ("rsum", "map")  # of a task: plotted, and shown while the runs go on
COMPARED = (
  "rsum",
  "map",
  "i2t/map",
  "t2i/map",
  "i2t/r1",
  "t2i/r1",
  "rouge_l/i2i/ndcg",
  "rouge_l/t2t/ndcg",
)


def write(cells, grid, workdir):
  """Writes table.md, table.csv, differences.csv and influence_FIELD.png of finished runs.

  Args:
    cells: list of finished Cell.  grid: {field: [texts]}.  workdir: folder of the sweep.
  Returns:
    The text of table.md.
  """
  workdir = pathlib.Path(workdir)
  settings = by_setting(cells)
  found = [(name, read(runs)) for name, runs in settings.items()]
  metrics = [name for name in SHOWN if all(name in values for _, (values, _) in found)]
  summary = {
    name: {m: significance.over_seeds(x) for m, x in values.items()} for name, (values, _) in found
  }
  _write_csv(
    workdir / "table.csv",
    [
      {"setting": name, "metric": metric, **figures}
      for name, stats in summary.items()
      for metric, figures in stats.items()
    ],
  )
  compared = differences(found, [m for m in COMPARED if m in metrics])
  _write_csv(workdir / "differences.csv", compared)
  for field, values in grid.items():
    main = next((name for name in MAIN if name in metrics), None)
    if len(values) > 1 and main:
      setting_of = {name: runs[0].setting for name, runs in settings.items()}
      figure = influence.figure(
        field, values, setting_of, {name: stats[main] for name, stats in summary.items()}, name=main
      )
      figure.savefig(workdir / f"influence_{field.replace('.', '_')}.png")
  text = markdown(summary, compared, metrics)
  (workdir / "table.md").write_text(text)
  return text


def by_setting(cells):
  """Returns {"loss.name=a mining.scope=b": its runs, in the order of seeds}."""
  settings = {}
  for cell in cells:
    name = " ".join(f"{key}={value}" for key, value in cell.setting.items()) or "all"
    settings.setdefault(name, []).append(cell)
  return {name: sorted(runs, key=lambda cell: cell.seed) for name, runs in settings.items()}


def read(runs):
  """Returns ({metric: [S] over seeds}, {metric: [Q] per query, averaged over seeds; "group/METRIC":
  [Q]}) of a setting.
  """
  results = [read_json(cell.folder / "results.json")["metrics"] for cell in runs]
  shared = set.intersection(*(set(metrics) for metrics in results))
  values = {
    name: np.array([metrics[name] for metrics in results]) for name in results[0] if name in shared
  }
  queries = {}
  for cell in runs:
    path = cell.folder / "queries.npz"
    if not path.is_file():
      return values, {}
    arrays = read_arrays(path)
    owner = arrays["image_of_text"]
    for metric in COMPARED:
      task, _, figure = metric.rpartition("/")
      if figure == "r1" and f"{task}/rank" in arrays:
        one = 100.0 * (arrays[f"{task}/rank"] == 0)
      elif metric in arrays:
        one = arrays[metric].astype(np.float64)
      else:
        continue
      queries.setdefault(metric, []).append(one)
      # Captions of one image are not independent.
      queries[f"group/{metric}"] = np.arange(len(one)) if len(one) != len(owner) else owner
  means = {name: np.mean(x, axis=0) if isinstance(x, list) else x for name, x in queries.items()}
  return values, means


def differences(found, metrics, *, samples=10000):
  """Compares every two settings, over queries (each its mean over seeds) and over seeds.

  Returns:
    rows of {"metric", "a", "b", "difference", "p_queries", "p_seeds", "survives"}: p of the
    sign-flip test with the captions of an image together, and of Welch's test over seeds, each
    adjusted by Holm among the comparisons of a metric; NaN where a test cannot be made. A
    difference survives where every test that can be made gives less than 0.05; with one seed that
    is the test over queries alone, and survives is None where that cannot be made either (rsum).
  """
  rows = []
  for metric in metrics:
    family = []
    for (a, (values_a, queries_a)), (b, (values_b, queries_b)) in itertools.combinations(found, 2):
      x, y = values_a[metric], values_b[metric]
      row = {
        "metric": metric,
        "a": a,
        "b": b,
        "difference": float(x.mean() - y.mean()),
        "p_queries": np.nan,
      }
      row["p_seeds"] = significance.seed_difference(x, y)["p"]
      if (
        metric in queries_a
        and metric in queries_b
        and len(queries_a[metric]) == len(queries_b[metric])
      ):
        row["p_queries"] = significance.paired_permutation(
          queries_a[metric], queries_b[metric], group=queries_a[f"group/{metric}"], samples=samples
        )["p"]
      family.append(row)
    for key in ("p_queries", "p_seeds"):
      for row, p in zip(family, significance.holm([row[key] for row in family]), strict=True):
        row[key] = float(p)
    for row in family:
      made = [row[key] for key in ("p_queries", "p_seeds") if not np.isnan(row[key])]
      row["survives"] = max(made) < LEVEL if made else None
    rows += family
  return rows


def markdown(summary, compared, metrics):
  """Returns the tables as Markdown."""
  lines = [f"| setting | seeds | {' | '.join(metrics)} |", "|" + "---|" * (len(metrics) + 2)]
  for name, stats in summary.items():
    shown = [_number(stats[m], digits=3 if m.endswith("ndcg") else 1) for m in metrics]
    lines.append(f"| {name} | {next(iter(stats.values()))['n']} | {' | '.join(shown)} |")
  lines += ["", "Mean ± standard deviation over seeds.", ""]
  if not compared:
    return "\n".join(lines)
  tested = [row for row in compared if row["survives"] is not None]
  over = (
    "queries and over seeds"
    if any(not np.isnan(row["p_seeds"]) for row in compared)
    else "queries alone: one seed"
  )
  survive = f"{sum(row['survives'] for row in tested)} of {len(tested)} differences"
  lines += [
    f"{survive} survive (p < {LEVEL} over {over}; adjusted by Holm):",
    "",
    "| metric | a | b | a - b | p over queries | p over seeds | survives |",
    "|---|---|---|---|---|---|---|",
  ]
  words = {True: "yes", False: "no", None: "not tested"}
  for row in compared:
    p = [f"{row[key]:.4f}" if not np.isnan(row[key]) else "-" for key in ("p_queries", "p_seeds")]
    digits = 3 if row["metric"].endswith("ndcg") else 1
    lines.append(
      f"| {row['metric']} | {row['a']} | {row['b']} | {row['difference']:+.{digits}f} | {p[0]} | "
      f"{p[1]} | "
      f"{words[row['survives']]} |"
    )
  return "\n".join([*lines, ""])


def _number(stats, *, digits):
  if np.isnan(stats["deviation"]):
    return f"{stats['mean']:.{digits}f}"
  return f"{stats['mean']:.{digits}f} ± {stats['deviation']:.{digits}f}"


def _write_csv(path, rows):
  if not rows:
    path.unlink(missing_ok=True)
    return
  with path.open("w", newline="") as file:
    writer = csv.DictWriter(file, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
