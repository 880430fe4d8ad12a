"""FG-CMIR as a task: what the table of tasks asks of it."""

import pathlib

from xmr.fine_grained import table, two_stage
from xmr.fine_grained.checks import validate
from xmr.fine_grained.config import base_config
from xmr.fine_grained.run import Run

__all__ = ["Run", "base_config", "train_and_evaluate", "validate"]


def train_and_evaluate(config, workdir, *, eval_only, stop):
  """Runs both stages and scores the test split, or every row of config.table; goes on where an
  earlier start ended.

  Args:
    config: of configs/fgcmir_*.py.  workdir: folder of the run, or of the table.
    eval_only: True scores the best checkpoints that are there, without training.
    stop: Stop, not entered.
  Returns:
    The results, as in results.json (of a table: as in table.json); None where the run was stopped
    before its end.
  Raises:
    UserError: anything wrong in the config or the data, before anything is compiled.
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
  """Prints MAP beside that of the baseline, and says where things lie."""
  cells = " · ".join(
    f"{name} {results['metrics'][name]:.3f}" for name in ("i2t/map", "t2i/map", "map")
  )
  matching = " ".join(
    f"{results['baselines']['semantic_matching'][name]:.3f}"
    for name in ("i2t/map", "t2i/map", "map")
  )
  print(f"{cells} (semantic matching {matching})")
  print(f"results: {pathlib.Path(workdir) / 'results.json'}")
