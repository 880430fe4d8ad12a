"""FG-CMIR as a task: the functions that the table of tasks requires."""

import pathlib

from xmr.fine_grained import table, two_stage
from xmr.fine_grained.checks import validate
from xmr.fine_grained.config import base_config
from xmr.fine_grained.run import Run

__all__ = ["Run", "base_config", "train_and_evaluate", "validate"]


def train_and_evaluate(config, workdir, *, eval_only, stop):
  """Runs both stages and scores the test split, or runs every row of config.table.

  An interrupted run resumes.

  Args:
    config: of configs/fgcmir_*.py.  workdir: folder of the run or of the table.
    eval_only: True scores the best existing checkpoints without training.
    stop: Stop, not entered.
  Returns:
    The results, as in results.json (of a table: as in table.json); None if the run was stopped
    before its end.
  Raises:
    UserError: an error in the config or the data, raised before anything is compiled.
  """
  validate(config)
  with stop:
    if config.table.seeds:
      return table.run_table(config, workdir, stop, eval_only=eval_only)
    results = two_stage.run(config, workdir, stop, eval_only=eval_only)
  if results:
    show(results, workdir)
  return results


def show(results, workdir):
  """Prints MAP with that of the baseline, and the paths of the files written."""
  cells = " · ".join(
    f"{name} {results['metrics'][name]:.3f}" for name in ("i2t/map", "t2i/map", "map")
  )
  matching = " ".join(
    f"{results['baselines']['semantic_matching'][name]:.3f}"
    for name in ("i2t/map", "t2i/map", "map")
  )
  print(f"{cells} (semantic matching {matching})")
  print(f"results: {pathlib.Path(workdir) / 'results.json'}")
