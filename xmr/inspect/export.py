"""A run in one folder of plain files: safetensors and JSON, which anything can read."""

import json
import pathlib

import numpy as np
import safetensors.numpy

from xmr import checkpoint
from xmr import config as config_lib
from xmr.checkpoint import digests
from xmr.data import Vocabulary
from xmr.errors import UserError
from xmr.files import read_json, write_arrays

EXPORT = "model.safetensors"


def write(run, folder):
  """Writes model.safetensors, config.json, vocabulary.json and run.json; returns their folder."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  arrays = {name: np.asarray(x, order="C") for name, x in checkpoint.flatten(run.variables).items()}
  words = None if run.vocabulary is None else json.loads(run.vocabulary.to_json())
  safetensors.numpy.save_file(
    arrays,
    folder / EXPORT,
    metadata={
      "format": "xmr",
      "step": str(run.step),
      "digests": json.dumps(digests.of_arrays(arrays)),
      "vocabulary": digests.of_json(words),
    },
  )
  curves = {
    name: [steps.tolist(), [x if np.isfinite(x) else None for x in values.tolist()]]
    for name, (steps, values) in run.metrics.items()
  }
  contents = {
    "config.json": config_lib.flat(run.config),
    "run.json": {"step": run.step, "metrics": curves},
  }
  if words is not None:
    contents["vocabulary.json"] = words
  if run.inputs:
    write_arrays(folder / "inputs.npz", run.inputs)
  for name, content in contents.items():
    (folder / name).write_text(
      json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
  return folder


def read(folder):
  """Returns (step, variables, vocabulary, metrics, flat config) of an export, as attributes of Run.

  Raises:
    UserError: it is none, or not what was written.
  """
  try:
    path = folder / "vocabulary.json"
    words = read_json(path) if path.exists() else None
    vocabulary = None if words is None else Vocabulary.from_json(json.dumps(words))
    record = read_json(folder / "run.json")
    metrics = {
      name: (np.array(steps), np.array(values, float))
      for name, (steps, values) in record["metrics"].items()
    }
    with safetensors.safe_open(folder / EXPORT, framework="numpy") as file:
      arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
      saved = file.metadata() or {}
    # Exports of older versions have none.
    wrong = digests.different(arrays, json.loads(saved["digests"])) if "digests" in saved else []
    if saved.get("vocabulary", digests.of_json(words)) != digests.of_json(words):
      wrong.append("vocabulary.json")
    if wrong:
      raise UserError(
        f"{folder} is no export of a run: {', '.join(wrong[:3])} is not what was saved (digests "
        "differ)"
      )
    step = int(record["step"])
  except UserError:
    raise
  except Exception as error:  # Whatever a damaged file makes its reader raise.
    reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
    raise UserError(f"{folder} is no export of a run: {reason}") from None
  return step, checkpoint.nest(arrays), vocabulary, metrics, read_json(folder / "config.json")
