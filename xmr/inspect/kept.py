"""What a run's folder holds beside its checkpoints: curves, and the arrays that prepare inputs."""

import numpy as np

from xmr.storage.files import json_lines, read_arrays


def inputs_of(folder):
  """Returns {name: array} of a run's inputs.npz; {} where there is none."""
  path = folder / "inputs.npz"
  if not path.is_file():
    return {}
  return read_arrays(path)


def curves(path):
  """Returns {name: (steps [n] int, values [n] float)} of a metrics.jsonl, {} without one.

  Incomplete lines are skipped.
  """
  points = {}
  if not path.is_file():
    return points
  for _, values in json_lines(path):
    step = values.pop("step", None)
    values.pop("time", None)
    if not isinstance(step, int):
      continue
    for name, value in values.items():
      if value is None or isinstance(value, float | int):
        points.setdefault(name, []).append((step, np.nan if value is None else value))
  return {
    name: (np.array([s for s, _ in p]), np.array([v for _, v in p], float))
    for name, p in points.items()
  }
