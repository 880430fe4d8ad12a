"""A run in one folder of plain files: safetensors and JSON, which anything can read."""

import json
import pathlib

import jax
import numpy as np
import safetensors.numpy

from xmr import checkpoint
from xmr import config as config_lib
from xmr.checkpoint import digests
from xmr.data import vocabulary_from_json
from xmr.errors import UserError
from xmr.models import lora
from xmr.storage.digests import of_json, sealed
from xmr.storage.files import read_json, replacing, write_arrays

EXPORT = "model.safetensors"


def merged(run):
  """Returns (variables, flat config) of a run, its adapters added to the weights."""
  flat, variables = config_lib.flat(run.config), run.variables
  if lora.ADAPTERS not in variables["params"]:
    return variables, flat
  scale = flat["model.lora.alpha"] / flat["model.lora.rank"]
  params = jax.tree.map(np.asarray, lora.merged(variables["params"], scale=scale))
  return {**variables, "params": params}, flat | {"model.lora.rank": 0}


def arrays_of(variables):
  """Returns {name: array} as model.safetensors has it: "params.image_encoder.projection.kernel"."""
  return {name: np.asarray(x, order="C") for name, x in checkpoint.flatten(variables).items()}


def adapters(run, path):
  """Writes only the adapters of a run, and what it trained whole beside them (see lora.base), into
  a safetensors file of a few megabytes.

  Raises:
    UserError: the run has none.
  """
  found = run.variables["params"].get(lora.ADAPTERS)
  if found is None:
    raise UserError(f"{run.workdir} has no adapters; expected a run with config.model.lora.rank")
  flat = jax.tree.map(np.asarray, run.model.trained(run.variables["params"]))
  arrays = arrays_of(found) | {".".join(path): np.asarray(x, order="C") for path, x in flat.items()}
  config = run.config.model.lora
  settings = {"rank": str(config.rank), "alpha": str(config.alpha), "init": run.config.init}
  with replacing(path) as file:
    file.write(safetensors.numpy.save(arrays, {"format": "xmr adapters", **settings}))


def write(run, folder):
  """Writes model.safetensors, config.json, vocabulary.json and run.json; returns their folder.
  Adapters are merged.
  """
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  variables, flat = merged(run)
  arrays = arrays_of(variables)
  words = None if run.vocabulary is None else json.loads(run.vocabulary.to_json())
  metadata = {
    "format": "xmr",
    "step": str(run.step),
    "digests": json.dumps(digests.of_arrays(arrays)),
    "vocabulary": of_json(words),
  }
  # Not save_file, whose file only its owner may read: an export is for others, too.
  with replacing(folder / EXPORT) as file:
    file.write(safetensors.numpy.save(arrays, metadata))
  curves = {
    name: [steps.tolist(), [x if np.isfinite(x) else None for x in values.tolist()]]
    for name, (steps, values) in run.metrics.items()
  }
  contents = {
    "config.json": sealed(flat),
    "run.json": sealed({"step": run.step, "metrics": curves}),
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
    UserError: the folder is no export, or its files have changed since they were written.
  """
  try:
    path = folder / "vocabulary.json"
    words = read_json(path) if path.exists() else None
    flat = read_json(folder / "config.json")
    vocabulary = None
    if words is not None:
      vocabulary = vocabulary_from_json(json.dumps(words), prompt=flat.get("data.prompt", ""))
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
    if saved.get("vocabulary", of_json(words)) != of_json(words):
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
  return step, checkpoint.nest(arrays), vocabulary, metrics, flat
