"""What `python -m xmr.main` does with a config of FG-CMIR."""

import pathlib

from xmr.fine_grained import table, two_stage
from xmr.preemption import Stop


def train_and_evaluate(config, workdir, *, eval_only=False):
  """Runs both stages and scores the test split, or every row of config.table; goes on where an
  earlier start ended.

  Args:
    config: of configs/fgcmir_*.py.  workdir: folder of the run, or of the table.
    eval_only: True scores the best checkpoints that are there, without training.
  Returns:
    The results, as in results.json; None where the run was stopped before its end.
  Raises:
    UserError: anything wrong in the config or the data, before anything is compiled.
  """
  two_stage.validate(config)
  with Stop() as stop:
    if config.table.seeds:
      return table.run_table(config, workdir, stop, eval_only=eval_only)
    results = two_stage.run(config, workdir, stop, eval_only=eval_only)
  if results:
    figures = " · ".join(
      f"{name} {results['metrics'][name]:.3f}" for name in ("i2t/map", "t2i/map", "map")
    )
    matching = results["semantic_matching"]
    print(
      f"{figures} (semantic matching {matching['i2t/map']:.3f} {matching['t2i/map']:.3f} "
      f"{matching['map']:.3f})"
    )
    print(f"results: {pathlib.Path(workdir) / 'results.json'}")
  return results
