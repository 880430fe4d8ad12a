"""A run from its folder, or from one that Run.export wrote."""

import json
import pathlib

from xmr import checkpoint, run_folder, tasks
from xmr import config as config_lib
from xmr.data import vocabulary_from_json
from xmr.errors import UserError
from xmr.inspect import export
from xmr.inspect.kept import curves, inputs_of


def load(workdir, step="best", *, as_scored=False):
  """Loads a run; see xmr.inspect.load.

  as_scored: an imported run gets the data that it was scored on.
  """
  folder = pathlib.Path(workdir)
  if (folder / export.EXPORT).is_file():
    step, variables, vocabulary, metrics, flat = export.read(folder)
  else:
    if not str(step).isdigit() and step not in ("best", "latest"):
      raise UserError(f'step is {step!r}; expected "best", "latest" or a number')
    step, variables, record = checkpoint.load(folder, step)
    flat, words = record["config"], record["vocabulary"]
    if as_scored and run_folder.imported(folder):
      flat = flat | run_folder.scored(folder)
    vocabulary = None
    if words is not None:
      vocabulary = vocabulary_from_json(json.dumps(words), prompt=flat.get("data.prompt", ""))
    metrics = curves(folder / "metrics.jsonl")
  config = config_lib.from_flat(flat, where=folder / "config.json")
  return tasks.module(config.task).Run(
    folder,
    config=config,
    step=step,
    variables=variables,
    vocabulary=vocabulary,
    metrics=metrics,
    inputs=inputs_of(folder),
  )
