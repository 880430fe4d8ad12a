"""The table of FG-CMIR: every form of the labels with several seeds, semantic matching beside them, paired tests."""

import pathlib

import numpy as np

from xmr import fine_grained, fine_grained_report
from xmr.eval.significance import over_seeds, seed_difference
from xmr.experiment import check_folder, claim
from xmr.fine_grained_data import load
from xmr.writers import write_json

FIGURES = ("i2t/map", "t2i/map", "map")
FORMS = {"hardness": "h"}  # variant -> form, where they differ


def loss_fields(variant):
  """Returns the fields of config.loss of a variant by name."""
  if variant == "base":
    return {"name": fine_grained.BASE}
  form = {} if variant == "fine_grained" else {"form": FORMS.get(variant, variant)}
  return {"name": "fine_grained_similarity", **form}


def run_table(config, workdir, stop):
  """Runs config.table.variants with config.table.seeds; finished runs are read, stage 1 is shared by a seed's variants.

  Args:
    config: with a table.  workdir: gets seed<S>/<variant>, table.md and results.json.  stop: Stop.
  Returns:
    {"rows": {variant: {figure: over_seeds}}, "tests": {variant: {figure: seed_difference to base}}, "semantic_matching"};
    None where it was stopped.
  """
  workdir = pathlib.Path(workdir)
  check_folder(config, workdir)
  claim(config, workdir, None)
  rows = [(variant, seed) for seed in config.table.seeds for variant in config.table.variants]
  configs = {row: _single(config, *row) for row in rows}
  for single in configs.values():
    fine_grained.validate(single)
  problem, found = load(config), {}
  for (variant, seed), single in configs.items():
    folder = workdir / f"seed{seed}"
    result = fine_grained.run(
      single, folder / variant, stop, siamese_dir=folder / "siamese", problem=problem, baselines=False
    )
    if result is None:
      return None
    found.setdefault(variant, []).append(result["metrics"])
    print(f"seed {seed} {variant}: " + " · ".join(f"{name} {result['metrics'][name]:.3f}" for name in FIGURES), flush=True)
  values = {v: {name: [metrics[name] for metrics in rows] for name in FIGURES} for v, rows in found.items()}
  results = {
    "dataset": config.data.name, "seeds": list(config.table.seeds),
    "rows": {v: {name: over_seeds(x) for name, x in row.items()} for v, row in values.items()},
    "tests": {
      v: {name: seed_difference(x, values["base"][name], paired=True) for name, x in row.items()}
      for v, row in values.items() if v != "base" and "base" in values
    },
    "random": fine_grained_report.random_map(problem.label["test"]),
    **fine_grained_report.matching(problem),
  }  # fmt: skip
  write_json(workdir / "results.json", _plain(results))
  text = markdown(results)
  (workdir / "table.md").write_text(text)
  print(text)
  return results


def _single(config, variant, seed):
  single = config.copy_and_resolve_references()
  with single.ignore_type():
    single.table.update({"variants": (), "seeds": ()})
    single.loss.update({key: None for key in ("form", "name")} | loss_fields(variant))
    single.seed = seed
  return single


def _plain(value):
  if isinstance(value, dict):
    return {key: _plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(item) for item in value]
  # null, not NaN: the file stays JSON for every reader.
  return None if isinstance(value, float) and not np.isfinite(value) else value


def markdown(results):
  """Returns the table as Markdown: MAP of image query, text query and mean, and the paired difference to base."""
  lines = [
    f"MAP on {results['dataset']}, test against test, {len(results['seeds'])} seeds: mean ± deviation; difference of the mean "
    "column to base with Student's p over paired seeds",
    "", "| loss | image query | text query | mean | difference | p |", "|---|---|---|---|---|---|",
  ]  # fmt: skip
  for variant, row in results["rows"].items():
    cells = [f"{row[name]['mean']:.3f} ± {row[name]['deviation']:.3f}" for name in FIGURES]
    test = results["tests"].get(variant, {}).get("map")
    cells.append(f"{test['difference']:+.4f} | {test['p']:.3f}" if test else "|")
    lines.append(f"| {variant} | {' | '.join(cells)} |")
  for name, title in (("semantic_matching", "semantic matching"), ("semantic_matching_words", "semantic matching, words")):
    cells = [f"{results[name][key]:.3f}" for key in FIGURES]
    lines.append(f"| {title} | {' | '.join(cells)} | | |")
  chance = f"{results['random']:.3f}"
  lines.append(f"| random | {' | '.join([chance] * 3)} | | |")
  return "\n".join(lines) + "\n"
