"""Checkpoints of a run by orbax: save, resume from the newest that restores, load anywhere for
inspection.
"""

import contextlib
import json
import logging
import math
import pathlib
import shutil
import sys
import threading
import time
import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from xmr.errors import UserError, disk_full

managers = ocp.checkpoint_managers


class SaidOnce(logging.Filter):
  """Drops what the threads of a save log of a full disk, with a traceback for each file: `save`
  raises it once.
  """

  def filter(self, record):
    return not (record.exc_info and disk_full(record.exc_info[1]))


for logger in ("absl", "asyncio"):
  logging.getLogger(logger).addFilter(SaidOnce())


def at_work(thread):
  """Says whether the end of the program would wait for a thread."""
  return not thread.daemon and not thread.name.startswith("asyncio_")


@contextlib.contextmanager
def last_words():
  """Waits for the threads that a failed save leaves at work, and keeps what they say at their end
  from standard error.
  """
  before, hook = threading.enumerate(), sys.unraisablehook

  def without_late_answers(unraisable):
    # tensorstore reports a write to an event loop that orbax has closed after the first failure.
    if str(unraisable.exc_value) != "Event loop is closed":
      hook(unraisable)

  sys.unraisablehook = without_late_answers
  # A write that fails leaves others of its array that never start.
  warnings.filterwarnings(
    "ignore", message="coroutine .* was never awaited", category=RuntimeWarning
  )
  try:
    yield
  except Exception:
    give_up = time.monotonic() + 30
    # Asked again and again: threads start others. The idle pools of asyncio end with their loops,
    # whenever those are collected.
    while (
      any(at_work(thread) for thread in set(threading.enumerate()) - set(before))
      and time.monotonic() < give_up
    ):
      time.sleep(0.02)
    # The hook stays: answers may come later still.
    raise
  sys.unraisablehook = hook


def flatten(tree):
  """Returns {"a.b.c": leaf}: a form that does not depend on the classes of optax or flax."""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def targets(tree):
  """Returns flatten() of a tree with each array's shape, type and sharding in its place."""
  return {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
    for name, x in flatten(tree).items()
  }


def unflatten(flat, template):
  """Returns the tree of `template` with the leaves of flatten()."""
  return jax.tree.unflatten(
    jax.tree.structure(template), [flat[name] for name in flatten(template)]
  )


def rank(metrics):
  """Orders checkpoints by score; of equal ones the earlier is the better, as released (strictly
  greater replaces).
  """
  return metrics["score"], -metrics["step"]


def check_path(workdir):
  """Raises UserError where orbax cannot read back what it saves in a folder: it takes the whole
  path for a pattern of names, and a backslash for a separator.
  """
  path = pathlib.Path(workdir).resolve()
  found = sorted(set(str(path)) & set("[*?\\"))
  if found:
    raise UserError(
      f"{path} has {' and '.join(found)} in its path; expected one without [ * ? and \\, which "
      "checkpoints cannot be read back from"
    )


class Checkpoints:
  """The checkpoints of one run folder: the two newest and the best by validation score are kept.

  Two, because a machine can die while the newest is on its way to the disk.
  """

  def __init__(self, workdir, *, read_only=False):
    check_path(workdir)
    self.directory = pathlib.Path(workdir).resolve() / "checkpoints"
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
      read_only=read_only,
      create=not read_only,
      cleanup_tmp_directories=not read_only,
    )
    if not read_only:
      # The manager reads the metadata of every step, and stops at one that a dying disk has cut.
      for step in damaged(self.directory):
        reason = "does not restore (its metadata is cut); put aside"
        print(f"xmr: warning: checkpoint {self.directory / step} {reason}", file=sys.stderr)
        put_aside(self.directory, step)
    self.manager = managers.CheckpointManager(
      self.directory, options=options, item_names=("params", "state", "run")
    )

  def save(self, step, *, params, state, run, score=None):
    """Saves a step: nothing of it is visible under its name until all of it is on disk.

    Args:
      step: int, steps done.
      params: tree of arrays.
      state: tree of everything else that training needs to go on (optimiser, batch statistics,
        bank).
      run: JSON-able dict of config, vocabulary, best score.
      score: float validation score of these parameters; None where they have not been validated.
    Raises:
      UserError: the disk is full; what was saved before stays.
    """
    arguments = ocp.args.Composite(
      params=ocp.args.StandardSave(flatten(params)),
      state=ocp.args.StandardSave(flatten(state)),
      run=ocp.args.JsonSave(run),
    )
    metrics = (
      None
      if score is None or not math.isfinite(score)
      else {"score": float(score), "step": int(step)}
    )
    try:
      with last_words():
        self.manager.save(step, args=arguments, metrics=metrics, force=True)
        self.manager.wait_until_finished()
    except Exception as error:
      reason = disk_full(error)
      if reason is None:
        raise
      raise UserError(
        f"step {step} is not saved in {self.directory}: {reason}; earlier checkpoints are intact"
      ) from error

  def steps(self):
    """Returns the saved steps, oldest first."""
    self.manager.reload()
    return sorted(self.manager.all_steps())

  def latest(self, params, state):
    """Restores the newest step that can be read whole, onto the devices and shardings of the given
    trees.

    Steps that do not restore are reported on standard error and moved to `unreadable/`, so that
    they can be saved again.

    Args:
      params, state: trees like the saved ones, of arrays with shardings.
    Returns:
      (step, params, state, run), or None where there is nothing to restore.
    """
    for step in reversed(self.steps()):
      try:
        return step, *self._restore(step, params, state)
      except (
        Exception
      ) as error:  # Whatever a damaged folder makes orbax raise, the answer is the step before it.
        reason = " ".join(str(error).split())[:200]
        print(
          f"xmr: warning: checkpoint {self.directory / str(step)} does not restore ({reason}); "
          "trying the one before",
          file=sys.stderr,
        )
        self._put_aside(step)
    return None

  def _restore(self, step, params, state):
    restored = self.manager.restore(
      step,
      args=ocp.args.Composite(
        params=ocp.args.StandardRestore(targets(params)),
        state=ocp.args.StandardRestore(targets(state)),
        run=ocp.args.JsonRestore(),
      ),
    )
    return unflatten(restored.params, params), unflatten(restored.state, state), restored.run

  def _put_aside(self, step):
    put_aside(self.directory, str(step))
    self.manager.reload()

  def best(self):
    """Returns the step with the highest validation score, or None where no saved step was
    validated.
    """
    scores = {}
    for step in self.steps():
      metrics = self.manager.metrics(step)
      if metrics:
        scores[step] = rank(metrics)
    return max(scores, key=scores.get) if scores else None

  def close(self):
    self.manager.close()


def damaged(directory):
  """Returns the names of the steps with a metadata file that is no JSON."""
  names = []
  for path in sorted(directory.glob("[0-9]*/**/*METADATA")) + sorted(
    directory.glob("[0-9]*/metrics/metrics")
  ):
    step = path.relative_to(directory).parts[0]
    try:
      # What was never whole has a longer name; the manager removes it.
      if step.isdigit():
        json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError):
      names.append(step)
  return sorted(set(names))


def put_aside(directory, name):
  """Moves a step that cannot be read to `unreadable/` of the run, by process 0."""
  if jax.process_index() == 0:
    target = directory.parent / "unreadable" / name
    shutil.rmtree(target, ignore_errors=True)
    target.parent.mkdir(exist_ok=True)
    shutil.move(directory / name, target)


def load(workdir, step="best"):
  """Loads the parameters and batch statistics of a run as NumPy, on any machine, whatever devices
  trained it.

  Args:
    workdir: folder of a run.
    step: "best" (highest validation score; the newest where none was validated), "latest", or a
      number.
  Returns:
    (step, variables, run): variables {"params": nested dict of NumPy arrays, "batch_stats": ...
    where there are any};
    run: dict of config, vocabulary and best score.
  Raises:
    UserError: not a run folder, no checkpoint in it, or not that step.
  """
  folder = pathlib.Path(workdir)
  if not (folder / "config.json").is_file():
    raise UserError(f"{folder} is not the folder of a run: it has no config.json")
  if not (folder / "checkpoints").is_dir():
    raise UserError(f"{folder} has no checkpoints yet")
  checkpoints = Checkpoints(folder, read_only=True)
  steps = checkpoints.steps()
  if not steps:
    raise UserError(f"{folder} has no checkpoints yet")
  if step == "best":
    step = checkpoints.best() or steps[-1]
  elif step == "latest":
    step = steps[-1]
  if int(step) not in steps:
    raise UserError(
      f"{folder} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}"
    )
  path = checkpoints.directory / str(step)
  checkpoints.close()
  variables = {"params": nest(arrays(path / "params"))}
  state = nest(arrays(path / "state", prefix="batch_stats."))
  variables |= {"batch_stats": state["batch_stats"]} if state else {}
  return int(step), variables, json.loads((path / "run" / "metadata").read_text())


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


def nest(flat):
  """Returns {"a": {"b": x}} of {"a.b": x}."""
  tree = {}
  for name, value in flat.items():
    *parents, leaf = name.split(".")
    node = tree
    for parent in parents:
      node = node.setdefault(parent, {})
    node[leaf] = value
  return tree
