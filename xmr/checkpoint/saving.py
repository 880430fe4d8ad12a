"""Saving the checkpoints of a run by orbax, and going on from the newest that restores."""

import json
import math
import os
import pathlib
import shutil
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from xmr.checkpoint import digests, reading
from xmr.checkpoint.leaks import without_json
from xmr.checkpoint.threads import last_words
from xmr.checkpoint.trees import flatten, targets, unflatten
from xmr.errors import UserError, disk_full
from xmr.storage.digests import of_json
from xmr.storage.files import read_json

managers = ocp.checkpoint_managers


def rank(metrics) -> Any:
  """Orders checkpoints by score; of equal ones the earlier is the better, as released (strictly
  greater replaces). Orbax says that it wants a float, and compares whatever it gets.
  """
  return metrics["score"], -metrics["step"]


class Checkpoints:
  """The checkpoints of one run folder, for the process that trains in it: the two newest and the
  best by validation score are kept.

  Two, because a machine can die while the newest is on its way to the disk. Nothing in the folder
  is changed before the first save, or before `latest` has found a step that restores.
  """

  def __init__(self, workdir: reading.Folder):
    reading.check_path(workdir)
    self.directory = pathlib.Path(os.path.realpath(workdir)) / "checkpoints"
    self._manager = self._folder = None

  def _open(self):
    """Returns orbax's manager, which reads the metadata of every step and stops at one that a dying
    disk has cut.
    """
    if self._manager is not None:
      if self._folder != _identity(self.directory):
        raise UserError(
          f"{self.directory} was removed or replaced while its run was training; nothing more is "
          "saved there"
        )
      return self._manager
    if not self.directory.parent.is_dir():
      raise UserError(f"{self.directory.parent} was removed while its run was training")
    self._put_aside(damaged(self.directory))
    keep = managers.AnyPreservationPolicy(
      [
        managers.LatestN(2),
        managers.BestN(get_metric_fn=rank, n=1, keep_checkpoints_without_metrics=False),
      ]
    )
    # Saves are synchronous: the train step donates its buffers, and a copy of the state would
    # double the memory.
    options = managers.CheckpointManagerOptions(
      preservation_policy=keep,
      best_fn=rank,
      enable_async_checkpointing=False,
      cleanup_tmp_directories=True,
    )
    self._manager = managers.CheckpointManager(
      self.directory, options=options, item_names=("params", "state", "run")
    )
    self._folder = _identity(self.directory)
    return self._manager

  def save(
    self,
    step: int,
    *,
    params: PyTree,
    state: PyTree,
    run: dict[str, Any],
    score: float | None = None,
  ) -> None:
    """Saves a step: nothing of it is visible under its name until all of it is on disk.

    Args:
      step: int, steps done.
      params: tree of arrays.
      state: tree of everything else that training needs to go on (optimiser, batch statistics,
        bank).
      run: JSON-able dict of config, vocabulary, best score; the digests of all that is saved come
        beside it.
      score: float validation score of these parameters; None where they have not been validated.
    Raises:
      UserError: the disk is full, what was saved before stays; or the folder is gone.
    """
    params, state, run = flatten(params), flatten(state), json.loads(json.dumps(run))
    score = None if score is None or not math.isfinite(score) else float(score)
    saved = {
      "run": of_json({"run": run, "score": score}),
      "params": digests.of_arrays(params),
      "state": digests.of_arrays(state),
    }
    arguments = ocp.args.Composite(
      params=ocp.args.StandardSave(params),
      state=ocp.args.StandardSave(state),
      run=ocp.args.JsonSave({**run, "digests": saved}),
    )
    metrics = None if score is None else {"score": score, "step": int(step)}
    try:
      with last_words(), without_json():
        manager = self._open()
        manager.save(step, args=arguments, metrics=metrics, force=True)
        manager.wait_until_finished()
    except Exception as error:
      reason = disk_full(error)
      if reason is None:
        raise
      raise UserError(
        f"step {step} is not saved in {self.directory}: {reason}; earlier checkpoints are intact"
      ) from error

  def steps(self) -> list[int]:
    """Returns the saved steps, oldest first."""
    return reading.steps(self.directory)

  def latest(self, params: PyTree, state: PyTree) -> tuple[int, Any, Any, dict[str, Any]] | None:
    """Restores the newest step that is as it was saved, onto the devices and shardings of the given
    trees.

    Newer steps that do not restore are reported on standard error and moved to `unreadable/`, so
    that they can be saved again.

    Args:
      params, state: trees like the saved ones, of arrays with shardings.
    Returns:
      (step, params, state, run), or None where there is nothing to restore.
    Raises:
      UserError: there are steps, and none restores; nothing is moved.
    """
    failed = {}
    for step in reversed(self.steps()):
      try:
        found = self._restore(step, params, state)
      except reading.Damaged as error:
        failed[step] = error
        continue
      if failed:
        self._put_aside(failed)
      return step, *found
    if failed:
      reasons = "; ".join(f"step {step} ({reason})" for step, reason in failed.items())
      raise UserError(
        f"no checkpoint in {self.directory} restores: {reasons}. Nothing was changed; to start "
        "afresh, give another --workdir or remove that folder"
      )
    return None

  def _restore(self, step, params, state):
    folder = self.directory / str(step)
    run, _, saved = reading.of_step(folder)
    with reading.careful():
      items = {
        "params": reading.restored(folder / "params", targets(params)),
        "state": reading.restored(folder / "state", targets(state)),
      }
      for item, found in items.items():
        reading.check(item, found, saved)
      return unflatten(items["params"], params), unflatten(items["state"], state), run

  def _put_aside(self, failed):
    """Moves steps that cannot be read, {step: reason}, to `unreadable/`, by process 0."""
    several = jax.process_count() > 1
    if several:
      # None of them is moved while another process still looks at it.
      multihost_utils.sync_global_devices("xmr: checkpoints were read")
    for step, reason in failed.items():
      folder, target = self.directory / str(step), self.directory.parent / "unreadable" / str(step)
      reading.warn(f"checkpoint {folder} does not restore ({reason}); it is moved to {target}")
      if jax.process_index() == 0:
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(exist_ok=True)
        shutil.move(folder, target)
    if several:
      multihost_utils.sync_global_devices("xmr: checkpoints were put aside")

  def best(self) -> int | None:
    """Returns the step with the highest validation score, or None where no saved step was
    validated.
    """
    order = reading.best_first(self.directory)
    if order and reading.score_of(self.directory / str(order[0])) is not None:
      return order[0]
    return None

  def close(self):
    """Ends the threads of the manager."""
    if self._manager is not None:
      self._manager.close()


def _identity(folder):
  """Returns what tells a folder from another of its name; None where there is none."""
  try:
    found = os.stat(folder)
  except FileNotFoundError:
    return None
  return found.st_dev, found.st_ino


def damaged(directory):
  """Returns {step: reason} of the steps at whose metadata or score orbax would stop."""
  found = {}
  for step in reading.steps(directory):
    folder = directory / str(step)
    try:
      reading.of_step(folder)
      for path in (folder / "_CHECKPOINT_METADATA", *folder.glob("*/_METADATA")):
        read_json(path)
    except (reading.Damaged, UserError) as error:
      found[step] = str(error)
  return found
