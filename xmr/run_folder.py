"""The folder of a run: its contents, its config, and which process may write into it."""

import contextlib
import json
import os
import pathlib
import sys

import jax

from xmr import checkpoint
from xmr import config as config_lib
from xmr.checkpoint import reading
from xmr.errors import UserError
from xmr.storage.files import read_json, write_arrays, write_json
from xmr.storage.locks import locked
from xmr.terminal import home

SHOWN = 8  # fields in an error: two architectures differ in dozens


def begun(workdir):
  """Returns whether a run folder holds a checkpoint; without one there is nothing to resume or to
  protect.
  """
  return bool(reading.steps(pathlib.Path(workdir) / "checkpoints"))


def imported(workdir):
  """Returns whether a run folder was imported from another project's checkpoint."""
  return (pathlib.Path(workdir) / "source.json").exists()


def keep_scored(config, workdir):
  """Writes the config that an imported run is scored with into its config.json, which from then on
  tells what data it was scored on.
  """
  if imported(workdir):
    write_json(pathlib.Path(workdir) / "config.json", config_lib.flat(config))


def scored(workdir):
  """Returns the fields of data and evaluation, flat, that an imported run was scored with.

  Raises:
    UserError: it was not scored yet; names the command.
  """
  flat = read_json(pathlib.Path(workdir) / "config.json")
  if not flat.get("data.dir") and not (pathlib.Path(workdir) / "results.json").is_file():
    raise UserError(no_data(workdir))
  return {name: x for name, x in flat.items() if name.startswith(("data.", "evaluate."))}


def no_data(workdir):
  """The error message for an imported run without data to score it on."""
  return (
    f"{workdir} was imported and was scored on no data yet; give it some: python -m xmr.main "
    f"--config=configs/pretrained_flickr.py --config.data.dir=DIR --workdir={workdir} --eval_only "
    "(:own, :flickr8k or :coco behind the config's name for other data)"
  )


def check_folder(config, workdir):
  """Raises UserError where the folder holds a run of another config; names up to eight fields that
  differ. The run's config is read from its checkpoint, as a user may have edited config.json.
  """
  if not begun(workdir):
    return
  path = pathlib.Path(workdir) / "config.json"
  if not path.exists():
    raise UserError(f"{workdir} has checkpoints but no config.json; give another --workdir")
  try:
    old = checkpoint.record(workdir)["config"]
  except (UserError, KeyError):
    old = read_json(path)  # No checkpoint can be read; who needs one says so.
  old = {name: home.expanded(value) for name, value in old.items()}
  old = config_lib.flat(config_lib.from_flat(old, where=path))
  different = config_lib.differences(old, config_lib.flat(config))
  if imported(workdir):
    # Nothing was trained here: the imported model may be scored on any data.
    different = [line for line in different if line.startswith(("config.model.", "config.simil"))]
  if different:
    rest = f"; and {len(different) - SHOWN} more" if len(different) > SHOWN else ""
    raise UserError(
      f"{workdir} holds a run of another config ({'; '.join(different[:SHOWN])}{rest}); "
      "give another --workdir"
    )


def check_length(steps, workdir):
  """Raises UserError where a folder was trained beyond the requested last step, as the longer run
  would be scored.
  """
  if not begun(workdir) or imported(workdir):
    return
  done = max(reading.steps(pathlib.Path(workdir) / "checkpoints"))
  if done > steps:
    raise UserError(
      f"{workdir} was trained for {done} steps; config.epochs or config.steps asks for {steps}; "
      "give another --workdir for the shorter run"
    )


def check_data(digests, workdir, *, where):
  """Raises UserError where a folder holds a run on other data; the data may have moved.

  Args:
    digests: of data.digests.  workdir: folder of the run.  where: name of the data, for the error.
  """
  if not begun(workdir):
    return
  try:
    old = checkpoint.record(workdir).get("data") or {}
  except UserError:
    return  # No checkpoint can be read: there is nothing to go on with.
  other = [name for name in digests if name in old and old[name] != digests[name]]
  if other:
    raise UserError(
      f"{workdir} holds a run on other data than {where}: ids, captions or features of "
      f"{', '.join(other)} differ; give another --workdir"
    )


@contextlib.contextmanager
def held(config, workdir, *, vocabulary=None, record=None, inputs=None, eval_only=False):
  """Locks a run folder against other processes that would train in it, and records its run.

  The folder is first made and locked, and then written: config.json, vocabulary.json where there is
  a vocabulary, and data.json where the data has a record. A second process changes nothing. What a
  command left that saved no checkpoint is replaced.

  Args:
    config: of the run.  workdir: its folder.  vocabulary: Vocabulary, or None.
    record: what data.json holds, Splits.record, or None.
    inputs: {name: array} for inputs.npz: what turns raw features or words into the model's input.
    eval_only: True holds and writes nothing, as nothing is trained.
  Raises:
    UserError: another process holds it, it is the folder of another config, its path cannot hold
      checkpoints, or it cannot be written.
  """
  if eval_only or jax.process_index():
    yield
    return

  def busy():
    raise UserError(f"another process is training in {workdir}")

  checkpoint.check_path(workdir)
  folder = pathlib.Path(workdir)
  contents = {"config.json": config_lib.flat(config)}
  if vocabulary is not None:
    contents["vocabulary.json"] = json.loads(vocabulary.to_json())
  if record is not None:
    contents["data.json"] = record
  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      if not stack.enter_context(locked(folder / ".lock", busy=busy)):
        print(
          f"xmr: warning: the file system of {workdir} has no locks; let no second process train "
          "there",
          file=sys.stderr,
        )
      # Again: the run may have begun since its config was compared.
      check_folder(config, workdir)
      if (folder / "config.json").exists() and not begun(folder):
        kept = {*contents, *(["inputs.npz"] if inputs else [])}
        for name in {"vocabulary.json", "data.json", "inputs.npz"} - kept:
          (folder / name).unlink(missing_ok=True)
      for name, content in contents.items():
        write_json(folder / name, content)
      if inputs:
        write_arrays(folder / "inputs.npz", inputs)
    except OSError as error:
      reason = error.strerror or os.strerror(error.errno or 0)
      raise UserError(f"cannot write the run folder {workdir}: {reason}") from None
    yield
