"""Trains a grid of settings over several seeds, and says which differences are real.

  python -m xmr.sweep --config=configs/fullhn_flickr.py:flickr8k_hn --config.data.dir=DIR
  --workdir=runs/sweep \\
    --grid 'loss.name=hard_negative,full_hard_negative' --grid 'mining.scope=batch,train' --seeds 5

Every --grid names a field of xmr/config.py and its values; all combinations are trained, each with
seeds 0 to --seeds - 1 and in a folder of its own. `variant` stands for the config's variant: --grid
'variant=flickr8k_hn,flickr8k_m_hn'. Other fields are set for all runs as in xmr.main:
--config.epochs=10. The same command goes on where it stopped; more values or seeds may be added.
Ends with table.md, table.csv, differences.csv and a plot for every --grid in the workdir.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from absl import flags
from ml_collections import config_flags

from xmr import command_line, recipe
from xmr.config import same_results
from xmr.errors import UserError, reported
from xmr.fields import Section
from xmr.storage.files import read_json
from xmr.terminal import home, interrupts

# A time or a large seed in place of a number of seeds would plan runs until the memory is full.
MOST_SEEDS = 1000
LONGEST_NAME = 255  # bytes of a folder's name, on all file systems in use
QUIET = {"log.progress": "False", "picture": "False"}


@dataclasses.dataclass
class Cell:
  """One run of a sweep."""

  setting: dict  # {key of the grid: text of its value}
  seed: int
  config: object
  source: str  # FILE or FILE:variant
  changes: dict  # {field: text} beside the source
  folder: pathlib.Path

  @property
  def name(self):
    """The setting and the seed in one line."""
    return " ".join(
      [*(f"{key}={value}" for key, value in self.setting.items()), f"seed={self.seed}"]
    )

  def finished(self):
    """True where the folder holds the results of just this config."""
    if not (self.folder / "results.json").is_file():
      return False
    old = read_json(self.folder / "config.json")
    return same_results(old, json.loads(json.dumps(self.asked(old))))

  def asked(self, old):
    """Returns the flat config; fields that the recipe leaves to the data are those of the run in
    the folder.
    """
    values = flat(self.config)
    if values["recipe"] == "by_size":
      open_fields = [key for key in recipe.OPEN if not values[key]]
      values |= {key: old[key] for key in open_fields if key in old}
    return values


def define():
  """Returns the flags of this command, in a set of their own."""
  own = flags.FlagValues()
  flags.DEFINE_string("config", None, "file of a config, or file:variant", flag_values=own)
  flags.DEFINE_multi_string(
    "grid", [], "field=value,value,...; may be given several times", flag_values=own
  )
  flags.DEFINE_integer(
    "seeds",
    1,
    "how many seeds of every setting",
    lower_bound=1,
    upper_bound=MOST_SEEDS,
    flag_values=own,
  )
  flags.DEFINE_string("workdir", None, "folder of the sweep", flag_values=own)
  flags.DEFINE_integer("jobs", 1, "runs side by side", lower_bound=1, flag_values=own)
  return own


def usage(own):
  """Returns the text of --help."""
  names = ("config", "grid", "seeds", "workdir", "jobs")
  shown = "\n".join(f"  --{name:10} {own[name].help.splitlines()[0]}" for name in names)
  return f"{__doc__}\n{shown}\n  --config.KEY=VALUE  for all runs"


def read_flags(own, argv):
  """Returns ({field: text} for all runs, {field: [texts]} of the grid); a mistake becomes a
  UserError.
  """
  ours, changes = [argv[0]], {}
  for argument in map(home.argument, argv[1:]):
    key, equals, value = argument.lstrip("-").partition("=")
    if argument.startswith("-") and key.startswith("config."):
      if not equals:
        raise UserError(f"{argument} has no value; expected --{key}=VALUE")
      changes[key.removeprefix("config.")] = value
    else:
      ours.append(argument)
  command_line.read_flags(
    ours,
    needed=("config", "workdir"),
    values=own,
    usage="python -m xmr.sweep --config=FILE[:variant] --grid 'field=a,b' --workdir=DIR",
  )
  grid = {}
  for item in own.grid:
    key, equals, values = item.partition("=")
    key, values = key.strip().removeprefix("config."), values_of(values)
    if not equals or not all(values) or len(set(values)) < len(values):
      raise UserError(
        f"--grid {item!r} is not a field and its values; expected 'field=value,value', each "
        "value once"
      )
    if key in grid or key in changes:
      raise UserError(f"{key} is given twice; expected it once, in --grid or as --config.{key}")
    if key == "seed":
      raise UserError("--grid 'seed=...' is what --seeds is for")
    grid[key] = values
  return changes, grid


def values_of(text):
  """Returns the values of a field in a grid, split at commas outside brackets."""
  found, depth = [""], 0
  for character in text:
    depth += (character in "([{") - (character in ")]}")
    if character == "," and depth == 0:
      found.append("")
    else:
      found[-1] += character
  return [value.strip() for value in found]


def overridden(config, changes):
  """Returns a config with fields set from texts, as flags --config.KEY=TEXT set them.

  Args:
    config: ConfigDict.  changes: {field: text}.
  Raises:
    UserError: an unknown field, or a value of another type.
  """
  import difflib

  # A name brings the fields of its section, so it comes first.
  for key in sorted(changes, key=lambda key: not key.endswith(".name")):
    known = flat(config)
    if key not in known:
      near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
      own = config.get(key.partition(".")[0])
      if not near and isinstance(own, Section):
        raise UserError(own.unknown(key.partition(".")[2]))
      raise UserError(f"config has no field {key}" + (f"; did you mean {near[0]}?" if near else ""))
    if key.endswith(".name"):
      config.update_from_flattened_dict({key: changes[key]})
  argv = ["xmr.sweep", *(f"--config.{key}={text}" for key, text in changes.items())]
  own = flags.FlagValues()
  with command_line.mistakes():
    config_flags.DEFINE_config_dict("config", config, flag_values=own, sys_argv=argv)
    own(argv)
  return own.config


def flat(config):
  """Returns the config as {"data.name": value}."""
  from xmr import config as config_lib

  return config_lib.flat(config)


def cells(source, changes, grid, seeds, workdir):
  """Returns the runs of a sweep, every config built and checked before the first one starts.

  Args:
    source: FILE or FILE:variant.  changes: {field: text} of all runs.
    grid: {field or "variant": [texts]}.  seeds: int.  workdir: folder of the sweep.
  Returns:
    list of Cell; the runs of a setting follow one another.
  Raises:
    UserError: an unknown field, value or combination (named), or a folder that holds another
      config.
  """
  from xmr import config as config_lib

  path, _, own_variant = source.partition(":")
  found = []
  for values in itertools.product(*grid.values()):
    setting = dict(zip(grid, values, strict=True))
    variant = setting.get("variant", own_variant)
    fields = {key: value for key, value in setting.items() if key != "variant"}
    try:
      for seed in range(seeds):
        given = {**QUIET, **changes, **fields, "seed": str(seed)}
        config = overridden(command_line.load_config(path, variant), given)
        home.expand(config)
        config_lib.validate(config)
        name = (
          ",".join(f"{key}={value}" for key, value in setting.items()).replace("/", "_") or "all"
        )
        if len(os.fsencode(name)) > LONGEST_NAME:
          raise UserError(
            f"the folder of this setting would have a name of {len(os.fsencode(name))} bytes; "
            f"expected at most {LONGEST_NAME}, with fewer or shorter values in --grid"
          )
        folder = pathlib.Path(workdir) / name / f"seed={seed}"
        found.append(
          Cell(setting, seed, config, f"{path}:{variant}" if variant else path, given, folder)
        )
      check_parts(config)
    except UserError as error:
      where = ", ".join(f"{key}={value}" for key, value in setting.items())
      raise UserError(f"{where}: {error}" if where else str(error)) from None
  for cell in found:
    check_folder(cell)
  try:
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
  except OSError as error:
    raise UserError(f"cannot write the folder of the sweep {workdir}: {error.strerror}") from None
  return found


def check_parts(config):
  """Raises UserError where a loss does not know a parameter that the config sets."""
  from xmr import losses

  if config.task == "retrieval":
    losses.table.check(config.loss.name, losses.table.parameters(config.loss))


def check_folder(cell):
  """Raises UserError where the folder of a run holds a run of another config."""
  from xmr import config as config_lib
  from xmr.run_folder import begun

  path = cell.folder / "config.json"
  # A command that trained nothing leaves nothing to protect.
  if not path.is_file() or not (begun(cell.folder) or (cell.folder / "results.json").is_file()):
    return
  old = config_lib.flat(config_lib.from_flat(read_json(path), where=path))
  different = config_lib.differences(old, cell.asked(old))
  if different:
    raise UserError(
      f"{cell.folder} holds a run of another config ({'; '.join(different)}); give another "
      "--workdir"
    )


def check_data(every):
  """Raises UserError where an existing run was trained on other data than this sweep's.

  A dataset is read once for all runs that share it, and not at all where no run has begun.
  """
  from xmr import data, run_folder

  known = {}
  for cell in every:
    if not run_folder.begun(cell.folder):
      continue
    config = cell.config
    key = json.dumps([config.data.to_json_best_effort(), config.batch_size])
    if key not in known:
      known[key] = data.digests(data.load(config))
    where = config.data.dir or config.data.name
    run_folder.check_data(known[key], cell.folder, where=where)


def train(cell, running, stopping):
  """Runs one cell in a process of its own; returns "done", "stopped" or its error in a line.

  Args:
    cell: Cell.  running: list that holds the process while it lives.  stopping: list, not empty
      once all is to stop.
  """
  cell.folder.mkdir(parents=True, exist_ok=True)
  command = [sys.executable, "-m", "xmr.main", f"--config={cell.source}"]
  command += [f"--workdir={cell.folder}"]
  command += [f"--config.{key}={value}" for key, value in cell.changes.items()]
  with (cell.folder / "log.txt").open("a") as log:
    # Out of reach of Ctrl-C, which would come twice: from the terminal and from here. The pipe ends
    # with this process, however that ends.
    process = subprocess.Popen(
      command,
      stdin=subprocess.PIPE,
      stdout=log,
      stderr=subprocess.STDOUT,
      start_new_session=True,
      env={**os.environ, interrupts.PIPE: "1"},
    )
    held = process.stdin
    assert held is not None  # A pipe, as asked for.
    running.append(process)
    if stopping:
      process.terminate()
    code = process.wait()
    running.remove(process)
    held.close()
  if code == 0:
    return "done" if (cell.folder / "results.json").is_file() else "stopped"
  if stopping:
    # The signal came before the run could take it.
    return "stopped"
  lines = (cell.folder / "log.txt").read_text(errors="replace").strip().splitlines()
  return f"status {code}: {lines[-1] if lines else 'no output'} ({cell.folder / 'log.txt'})"


def train_all(todo, jobs, say=print):
  """Trains cells, `jobs` at a time; returns {cell name: error} of those that failed, and True where
  a signal stopped it.
  """
  running, failed, begun, stopping = [], {}, time.perf_counter(), []

  def stop(number, _):
    stopping.append(number)
    for process in list(running):
      process.terminate()

  def one(cell):
    return "stopped" if stopping else train(cell, running, stopping)

  before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
  try:
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
      cell_of = {pool.submit(one, cell): cell for cell in todo}
      for done, future in enumerate(concurrent.futures.as_completed(cell_of), 1):
        cell, outcome = cell_of[future], future.result()
        if outcome == "stopped":
          stopping.append(0)
          continue
        seconds = time.perf_counter() - begun
        left = f"about {seconds / done * (len(todo) - done) / 60:.0f} min left"
        if outcome == "done":
          metrics = read_json(cell.folder / "results.json").get("metrics", {})
          shown = [f"{name} {metrics[name]:#.4g}" for name in ("rsum", "map") if name in metrics]
          outcome = " ".join(shown) or "done"
        else:
          failed[cell.name] = outcome
        say(
          f"[{done}/{len(todo)}] {cell.name}: {outcome}; {seconds / 60:.1f} min, {left}",
          file=sys.stderr,
          flush=True,
        )
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  return failed, bool(stopping)


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake, 1 where runs
  failed.
  """
  own = define()
  if command_line.asks_for_help(argv):
    print(usage(own))
    return
  with reported():
    changes, grid = read_flags(own, argv)
    every = cells(own.config, changes, grid, own.seeds, own.workdir)
    check_data(every)
    todo = [cell for cell in every if not cell.finished()]
    print(
      f"{len(every)} runs, {len(every) - len(todo)} of them finished", file=sys.stderr, flush=True
    )
    failed, stopped = train_all(todo, own.jobs)
    if stopped:
      print("stopped: the same command goes on from there", file=sys.stderr)
      return
    from xmr.sweep import table

    done = [cell for cell in every if cell.finished()]
    if done:
      print(table.write(done, grid, own.workdir))
    if failed:
      print(
        "\n".join(f"xmr: failed: {name}: {error}" for name, error in failed.items()),
        file=sys.stderr,
      )
      raise SystemExit(1)


if __name__ == "__main__":
  main(sys.argv)
