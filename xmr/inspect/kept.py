"""What a run's folder holds beside its checkpoints: curves, and arrays that inputs need."""

import json
import zipfile

import numpy as np

from xmr.errors import UserError


def inputs_of(folder):
  """Returns {name: array} of a run's inputs.npz; {} where there is none."""
  path = folder / "inputs.npz"
  if not path.is_file():
    return {}
  try:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
      return dict(saved)
  except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f"{path} is damaged: {error}") from None


def curves(path):
  """Returns {name: (steps [n] int, values [n] float)} of a metrics.jsonl; {} where there is none;
  half lines are skipped.
  """
  points = {}
  if not path.is_file():
    return points
  for line in path.read_text(encoding="utf-8").splitlines():
    try:
      values = json.loads(line)
      step = values.pop("step")
      values.pop("time", None)
    except (json.JSONDecodeError, KeyError, AttributeError):
      continue
    for name, value in values.items():
      points.setdefault(name, []).append((step, np.nan if value is None else value))
  return {
    name: (np.array([s for s, _ in p]), np.array([v for _, v in p], float))
    for name, p in points.items()
  }
