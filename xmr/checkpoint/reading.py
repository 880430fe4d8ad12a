"""Reading checkpoints, on any machine and by any process: which steps a run has, what each holds,
and whether it still is what was saved.
"""

import contextlib
import math
import os
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from xmr.checkpoint import digests
from xmr.checkpoint.threads import last_words
from xmr.checkpoint.trees import nest
from xmr.errors import UserError
from xmr.storage.digests import of_json
from xmr.storage.files import read_json

Folder = str | os.PathLike[str]
# The system takes 4,096 bytes; orbax's names below the folder of a run take up to 150.
LONGEST_PATH = 3800


class Damaged(Exception):
  """A step that cannot be read as it was saved; the message says why."""


@contextlib.contextmanager
def careful():
  """Turns whatever a damaged folder makes orbax raise into Damaged."""
  try:
    with last_words():
      yield
  except Damaged:
    raise
  except Exception as error:
    reason = " ".join(str(error).split()) or type(error).__name__
    raise Damaged(reason[:200]) from error


def check_path(workdir: Folder) -> None:
  """Raises UserError where orbax cannot read back what it saves in a folder: it takes the whole
  path for a pattern of names, and a backslash for a separator; or where the path is too long.
  """
  path = os.path.realpath(workdir)
  found = sorted(set(path) & set("[*?\\"))
  if found:
    raise UserError(
      f"{path} has {' and '.join(found)} in its path; expected one without [ * ? and \\, which "
      "checkpoints cannot be read back from"
    )
  size = len(os.fsencode(path))
  if size > LONGEST_PATH:
    raise UserError(
      f"the path {path[:80]}... has {size:,} bytes; expected at most {LONGEST_PATH:,}, so "
      "that what lies in it has a path that the system takes"
    )


def steps(directory: pathlib.Path) -> list[int]:
  """Returns the steps that lie in a folder of checkpoints, oldest first; what was never whole has a
  longer name, and a step is a folder.
  """
  if not directory.is_dir():
    return []
  names = (x.name for x in directory.iterdir() if x.is_dir())
  return sorted(int(name) for name in names if name.isdigit() and name.isascii())


def of_step(folder):
  """Returns (run, score, digests) of the folder of a step: the dict that was saved beside the
  arrays, the validation score or None, and the digests of the arrays or None (older versions wrote
  none).

  Raises:
    Damaged: they are not what was saved.
  """
  with careful():
    run = read_json(folder / "run" / "metadata")
    metrics = folder / "metrics" / "metrics"
    score = read_json(metrics)["score"] if metrics.exists() else None
    if score is not None and not math.isfinite(score):
      raise Damaged(f"its score is {score}")
    saved = run.pop("digests", None)
    if saved is None:
      return run, score, None
    if saved.pop("run") != of_json({"run": run, "score": score}):
      raise Damaged("its run or score is not what was saved")
    return run, score, saved


def check(item, found, saved, *, prefix=""):
  """Raises Damaged where the arrays of an item ("params" or "state") are not those that were
  saved, of which only those whose name starts with `prefix` were read.
  """
  if saved is None:
    return
  wanted = {name: x for name, x in saved[item].items() if name.startswith(prefix)}
  wrong = digests.different(found, wanted)
  if wrong:
    raise Damaged(f"{item}: {', '.join(wrong[:3])} is not what was saved (digests differ)")


def arrays(path, *, prefix=""):
  """Reads an item of flatten() as {name: NumPy array}, only the names that start with `prefix`."""
  handler = ocp.PyTreeCheckpointHandler()
  metadata = handler.metadata(path).tree
  names = [name for name in metadata if name.startswith(prefix)]
  if not names:
    return {}
  with ocp.Checkpointer(handler) as checkpointer:
    target = {name: 0 for name in names}
    return checkpointer.restore(
      path,
      args=ocp.args.PyTreeRestore(
        item=target,
        restore_args={name: ocp.RestoreArgs(restore_type=np.ndarray) for name in names},
        partial_restore=True,
      ),
    )


def restored(path, targets):
  """Reads an item of flatten() onto the devices and shardings of {name: ShapeDtypeStruct}."""
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
    return checkpointer.restore(path, args=ocp.args.StandardRestore(targets))


def warn(text):
  """Prints a warning, in process 0."""
  if jax.process_index() == 0:
    print(f"xmr: warning: {text}", file=sys.stderr)


def score_of(folder):
  """Returns the validation score of the folder of a step, or None; infinity where it cannot be
  read, so that who looks for the best comes upon the step and names it.
  """
  try:
    return of_step(folder)[1]
  except Damaged:
    return math.inf


def best_first(directory):
  """Returns the steps of a folder by validation score, then those without one, the newest first; of
  equal ones the earlier is the better, as released (strictly greater replaces).
  """
  scores = {step: score_of(directory / str(step)) for step in steps(directory)}
  scored = {step: score for step, score in scores.items() if score is not None}
  rest = set(scores) - set(scored)
  return sorted(scored, key=lambda step: (-scored[step], step)) + sorted(rest, reverse=True)


def load(
  workdir: Folder, step: str | int = "best"
) -> tuple[int, dict[str, PyTree[np.ndarray]], dict[str, Any]]:
  """Loads the parameters and batch statistics of a run as NumPy, on any machine, whatever devices
  trained it.

  Where "best" or "latest" is damaged, the next one is taken, with a warning.

  Args:
    workdir: folder of a run.
    step: "best" (highest validation score; the newest where none was validated), "latest", or a
      number.
  Returns:
    (step, variables, run): variables {"params": nested dict of NumPy arrays, "batch_stats": ...
    where there are any};
    run: dict of config, vocabulary and best score.
  Raises:
    UserError: not a run folder, no checkpoint in it, not that step, or none that can be read.
  """
  return _first(workdir, step, _variables)


def record(workdir: Folder) -> dict[str, Any]:
  """Returns the run, dict of config, vocabulary and best score, of the newest checkpoint that can
  be read; errors as in load.
  """
  return _first(workdir, "latest", lambda folder: of_step(folder)[:1])[1]


def _variables(folder):
  run, _, saved = of_step(folder)
  with careful():
    params, state = arrays(folder / "params"), arrays(folder / "state", prefix="batch_stats.")
    check("params", params, saved)
    check("state", state, saved, prefix="batch_stats.")
  stats = {"batch_stats": nest(state)["batch_stats"]} if state else {}
  return {"params": nest(params), **stats}, run


def _first(workdir, step, read):
  """Returns (step, *read(its folder)) of the first step that can be read, in the order that `step`
  asks for.
  """
  folder = pathlib.Path(workdir)
  check_path(folder)
  if not (folder / "config.json").is_file():
    raise UserError(f"{folder} is not the folder of a run: it has no config.json")
  directory = pathlib.Path(os.path.realpath(folder)) / "checkpoints"
  there = steps(directory)
  if not there:
    raise UserError(f"{folder} has no checkpoints yet")
  if step == "best":
    order = best_first(directory)
  elif step == "latest":
    order = there[::-1]
  elif str(step) in map(str, there):
    order = [int(step)]
  else:
    raise UserError(
      f"{folder} has no checkpoint of step {step}; it has {', '.join(map(str, there))}"
    )
  reasons = []
  for place, number in enumerate(order):
    try:
      return number, *read(directory / str(number))
    except Damaged as error:
      reasons.append(f"{number} ({error})")
      if place + 1 < len(order):
        warn(
          f"checkpoint {directory / str(number)} does not restore ({error}); trying step "
          f"{order[place + 1]}"
        )
  others = sorted(set(there) - set(order))
  raise UserError(
    f"no checkpoint of {folder} can be read: step {'; '.join(reasons)}"
    + (f"; it has {', '.join(map(str, others))}, too" if others else "")
  )
