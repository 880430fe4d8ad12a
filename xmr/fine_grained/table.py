"""The table of FG-CMIR: every variant with several seeds, the baselines, and paired tests."""

import json
import pathlib

import numpy as np

from xmr import losses
from xmr.config import flat, same_results
from xmr.errors import UserError
from xmr.eval.significance import (
  holm,
  over_seeds,
  paired_bootstrap,
  paired_permutation,
  seed_difference,
)
from xmr.fine_grained import checks, report, two_stage
from xmr.fine_grained.config import VARIANTS, labelled
from xmr.fine_grained.data import load
from xmr.fine_grained.semantic_matching import semantic_matching
from xmr.run_folder import check_data, check_folder, held
from xmr.storage.files import read_arrays, read_json, write_json

METRICS = {"i2t/map": "image query", "t2i/map": "text query", "map": "mean"}
BASELINES = {
  "semantic_matching": "semantic matching, LDA",
  "semantic_matching_words": "semantic matching, words",
}
TITLES = {"cross_entropy": "cross entropy of pairs", "lda": "base loss, LDA instead of words"}
DRAWN = ("base", "fine_grained", "cross_entropy", "lda", *BASELINES)
LEVEL = 0.05


def run_table(config, workdir, stop, *, eval_only=False):
  """Runs config.table.variants with config.table.seeds.

  Finished runs are read instead; the variants of a seed share stage 1.

  Args:
    config: with a table.  workdir: gets seed<S>/<variant>, table.md, table.json and the plots.
    stop: Stop.
    eval_only: True scores existing checkpoints without training.
  Returns:
    {"rows": {variant: {metric: over_seeds}}, "tests": {variant: {metric: difference to base}},
    baselines}; None if it was stopped.
  """
  workdir = pathlib.Path(workdir)
  check_folder(config, workdir)
  configs = {
    (v, seed): single(config, v, seed) for seed in config.table.seeds for v in config.table.variants
  }
  for one in configs.values():
    checks.validate(one)
  with held(config, workdir, eval_only=eval_only):
    return rows_of(config, configs, workdir, stop, eval_only=eval_only)


def rows_of(config, configs, workdir, stop, *, eval_only):
  """As run_table, in a locked folder.  configs: {(variant, seed): config of one run}."""
  problems, programs, found = {}, {}, {}
  splits = None
  for (variant, seed), one in configs.items():
    signal = one.graph.signal
    if signal not in problems:
      problems[signal] = load(one, splits=splits)
      splits = problems[signal].splits
    folder = workdir / f"seed{seed}"
    result = None if eval_only else finished(one, folder / variant, problems[signal].digests)
    result = result or two_stage.run(
      one,
      folder / variant,
      stop,
      siamese_dir=folder / "siamese",
      problem=problems[signal],
      programs=programs,
      baselines=False,
      eval_only=eval_only,
    )
    if result is None:
      return None
    found.setdefault(variant, []).append(read_arrays(folder / variant / "queries.npz"))
    values = " · ".join(f"{title} {result['metrics'][name]:.3f}" for name, title in METRICS.items())
    print(f"seed {seed} {variant}: {values}", flush=True)
  problem = problems[config.graph.signal]
  label = problem.label["test"]
  posteriors = report.matching_posteriors(problem)
  rows = {variant: mean_of(runs) for variant, runs in found.items()}
  rows |= {name: report.per_query(p["image"], p["text"], label) for name, p in posteriors.items()}
  results = {
    "dataset": config.data.name,
    "seeds": list(config.table.seeds),
    "rows": {v: {f: over_seeds(x) for f, x in over(runs).items()} for v, runs in found.items()},
    "tests": tests(found, rows) if "base" in found else {},
    "best_against": best_against(found, rows),
    "random": report.random_maps(label)["map"],
    "baselines": {name: semantic_matching(p, label) for name, p in posteriors.items()},
  }
  write_json(workdir / "table.json", _plain(results))
  share = float(np.mean(label[:, None] == label[None, :]))
  drawn = {
    TITLES.get(name, BASELINES.get(name, name)): rows[name] for name in DRAWN if name in rows
  }
  report.curves_figure(drawn, share=share).savefig(workdir / "precision_recall.png")
  draw_labels(configs, workdir, problem, stop)
  text = markdown(results)
  (workdir / "table.md").write_text(text)
  print(text)
  return results


def finished(config, folder, digests):
  """Returns the results of a finished run with this config; None if there is none.

  Raises:
    UserError: the folder holds a run with another config or on other data.
  """
  check_folder(config, folder)
  check_data(digests, folder, where=config.data.dir or config.data.name)
  if not all((folder / name).exists() for name in ("results.json", "queries.npz")):
    return None
  if not same_results(read_json(folder / "config.json"), json.loads(json.dumps(flat(config)))):
    return None
  return read_json(folder / "results.json")


def single(config, variant, seed):
  """Returns the config of one run of a table; UserError for an unknown variant."""
  if variant not in VARIANTS:
    raise UserError(
      f"config.table.variants holds {variant!r}; expected some of {', '.join(VARIANTS)}"
    )
  one = config.copy_and_resolve_references()
  one.table.update({"variants": (), "seeds": ()})
  one.loss = losses.table.section(VARIANTS[variant]["loss.name"]).lock()
  given = losses.table.parameters(config.loss)
  one.loss.update({key: given[key] for key in given if key in one.loss and key != "form"})
  one.update_from_flattened_dict(VARIANTS[variant])
  one.seed = seed
  return one


def draw_labels(configs, workdir, problem, stop):
  """Draws the labels of the first seed, if a variant of the table has any."""
  for (_, seed), one in configs.items():
    if labelled(one):
      similarity = two_stage.label_similarity(
        one, problem, workdir / f"seed{seed}" / "siamese", stop, eval_only=True
      )
      report.draw_labels(workdir, problem, similarity)
      return


def mean_of(runs):
  """Returns the arrays of queries.npz, averaged over seeds."""
  return {name: np.mean([run[name] for run in runs], axis=0) for name in runs[0]}


def by_figure(row):
  """Returns {metric: [Q] average precision} of the arrays of a queries.npz."""
  return {
    "i2t/map": row["i2t/map"],
    "t2i/map": row["t2i/map"],
    "map": (row["i2t/map"] + row["t2i/map"]) / 2,
  }


def over(runs):
  """Returns {metric: [S] MAP of each seed}."""
  sides = {side: np.array([run[side].mean() for run in runs]) for side in ("i2t/map", "t2i/map")}
  return sides | {"map": (sides["i2t/map"] + sides["t2i/map"]) / 2}


def tests(found, rows):
  """Paired differences between every row and base, over queries and over seeds.

  Args:
    found: {variant: one dict of queries.npz per seed}, with "base".
    rows: {variant or baseline: arrays averaged over seeds}.
  Returns:
    {row: {metric: {"difference", "low", "high" (bootstrap over test pairs), "p" (permutation over
    test pairs), "p_holm" (of all rows of that metric), "p_seeds" (Student's, paired by seed; NaN
    for a baseline)}}}. For "map", a test pair counts with the mean of its image and text query.
  """
  names = [name for name in rows if name != "base"]
  result = {name: {} for name in names}
  of_query = {name: by_figure(row) for name, row in rows.items()}
  seeds = {name: over(runs) for name, runs in found.items()}
  for metric in METRICS:
    for name in names:
      pair = of_query[name][metric], of_query["base"][metric]
      test = paired_bootstrap(*pair) | {"p": paired_permutation(*pair)["p"], "p_seeds": np.nan}
      if name in seeds:
        test["p_seeds"] = seed_difference(seeds[name][metric], seeds["base"][metric], paired=True)[
          "p"
        ]
      result[name][metric] = test
    for name, adjusted in zip(
      names, holm([result[name][metric]["p"] for name in names]), strict=True
    ):
      result[name][metric]["p_holm"] = float(adjusted)
  return result


def best_against(found, rows, *, baseline="semantic_matching_words"):
  """Compares the variant with the best mean MAP to a baseline.

  Returns:
    {"row", "baseline", metric: {"difference", "low", "high", "p"}}; {} without that baseline.
  """
  if baseline not in rows:
    return {}
  best = max(found, key=lambda name: over(found[name])["map"].mean())
  ours, theirs = by_figure(rows[best]), by_figure(rows[baseline])
  tested = {}
  for metric in METRICS:
    pair = ours[metric], theirs[metric]
    tested[metric] = paired_bootstrap(*pair) | {"p": paired_permutation(*pair)["p"]}
  return {"row": best, "baseline": baseline, **tested}


def _plain(value):
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  # null, not NaN: the file stays JSON for every reader.
  return None if isinstance(value, float) and not np.isfinite(value) else value


def markdown(results):
  """Returns the table as Markdown: MAP of image queries, of text queries and their mean, and the
  paired difference to base.
  """
  lines = [
    f"# FG-CMIR on {results['dataset']}",
    "",
    f"MAP in percent, test against test, {len(results['seeds'])} seeds: mean ± deviation. "
    "Difference of the mean column to "
    "base with its 95 % interval over test pairs (bootstrap), p of a permutation over test "
    "pairs, Holm's over all rows, and "
    "Student's p over paired seeds.",
    "",
    f"| row | {' | '.join(METRICS.values())} | difference to base | p | p, Holm | p, seeds |",
    "|---|" + "---|" * 7,
  ]
  for variant, row in results["rows"].items():
    cells = [_over_seeds(row[name]) for name in METRICS]
    lines.append(
      f"| {TITLES.get(variant, variant)} | {' | '.join(cells)} | {_test(results, variant)} |"
    )
  for name, values in results["baselines"].items():
    cells = [f"{100 * values[key]:.1f}" for key in METRICS]
    lines.append(f"| {BASELINES[name]} | {' | '.join(cells)} | {_test(results, name)} |")
  chance = f"{100 * results['random']:.1f}"
  lines.append(f"| random | {chance} | {chance} | {chance} | | | | |")
  lines += [
    "",
    *verdicts(results),
    "",
    "Plots: precision_recall.png, hardness.png; hardest pairs: hardness.md",
    "",
  ]
  return "\n".join(lines)


def _over_seeds(metric):
  deviation = f" ± {100 * metric['deviation']:.1f}" if metric["n"] > 1 else ""
  return f"{100 * metric['mean']:.1f}{deviation}"


def _test(results, name):
  test = results["tests"].get(name, {}).get("map")
  if test is None:
    return "| | |"
  seeds = f"{test['p_seeds']:.3f}" if np.isfinite(test["p_seeds"]) else ""
  return f"{_interval(test)} | {test['p']:.4f} | {test['p_holm']:.4f} | {seeds}"


def verdicts(results):
  """Returns lines of Markdown: whether each row's mean MAP differs from base after Holm's
  adjustment, and the content of best_against.
  """
  lines = []
  for name, row in results["tests"].items():
    test = row["map"]
    word = "better" if test["difference"] > 0 else "worse"
    title = TITLES.get(name, BASELINES.get(name, name))
    verdict = f"significantly {word}" if test["p_holm"] <= LEVEL else f"not significantly {word}"
    lines.append(f"- {title}: {verdict} than base at {LEVEL:g} after Holm's adjustment")
  best = results["best_against"]
  if best:
    cells = [
      f"{title} {_interval(best[metric])}, p {best[metric]['p']:.4f}"
      for metric, title in METRICS.items()
    ]
    lines.append(
      f"- {TITLES.get(best['row'], best['row'])} against {BASELINES[best['baseline']]}: "
      f"{'; '.join(cells)}"
    )
  return lines


def _interval(test):
  return f"{100 * test['difference']:+.2f} ({100 * test['low']:+.2f} to {100 * test['high']:+.2f})"
