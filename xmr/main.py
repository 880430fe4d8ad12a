"""Trains and scores one config: python -m xmr.main --config=configs/imc_flickr.py
--workdir=runs/imc.

With --eval_only and no --config, the run's own config: python -m xmr.main --eval_only
--workdir=runs/imc. Flags are read before JAX is imported, so that --help and a misspelt flag answer
at once.
"""

import gc
import pathlib
import sys

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import UserError, reported
from xmr.terminal import interrupts

USAGE = "python -m xmr.main --config=FILE[:variant] --workdir=DIR"


def define():
  """Returns the flags of this command but for the config, in a set of their own."""
  own = flags.FlagValues()
  flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; the same command goes on with an unfinished run.",
    flag_values=own,
  )
  flags.DEFINE_bool(
    "eval_only",
    False,
    "Score the best checkpoint of the run, without training; needs no --config.",
    flag_values=own,
  )
  return own


def usage():
  """Returns the text of --help."""
  own = define()
  lines = ["  --config     File of a config, or file:variant."]
  lines += [f"  --{name:10} {own[name].help}" for name in ("workdir", "eval_only")]
  lines.append(
    "  --config.KEY=VALUE  Any field of xmr/config.py: --config.epochs=10, "
    "--config.loss.margin=0.3."
  )
  return "\n".join([__doc__ or "", *lines])


def read(argv):
  """Returns (config, workdir, eval_only) of a command line; UserError for a mistake in it."""
  own = define()
  given = [argument for argument in argv[1:] if not argument.lstrip("-").startswith("config")]
  with command_line.mistakes():
    own([argv[0], *given], known_only=True)
  named = any(argument.startswith(("--config=", "-config=")) for argument in argv[1:])
  if own.eval_only and own.workdir and not named:
    config = config_of_run(own.workdir)
    if not any(argument.lstrip("-").startswith("config.data.") for argument in argv[1:]):
      check_scored(own.workdir)
    with command_line.mistakes():
      config_flags.DEFINE_config_dict("config", config, flag_values=own, sys_argv=argv)
    needed = ("workdir",)
  else:
    config_flags.DEFINE_config_file("config", None, flag_values=own, sys_argv=argv)
    needed = ("config", "workdir")
  own.unparse_flags()
  command_line.read_flags(argv, needed=needed, usage=USAGE, values=own)
  return own.config, own.workdir, own.eval_only


def config_of_run(workdir):
  """Returns the config that a run folder keeps; UserError where there is none."""
  from xmr.config import from_flat
  from xmr.storage.files import read_json
  from xmr.terminal import home

  path = pathlib.Path(home.expanded(workdir)) / "config.json"
  if not path.is_file():
    raise UserError(f"--eval_only: {workdir} is not the folder of a run: it has no config.json")
  return from_flat(read_json(path), where=path)


def check_scored(workdir):
  """Raises UserError where a run was imported and its config names no data to score it on."""
  from xmr import run_folder
  from xmr.terminal import home

  folder = home.expanded(workdir)
  if run_folder.imported(folder):
    run_folder.scored(folder)


def start_jax(config):
  """Joins other processes and turns on the compilation cache; returns nothing."""
  import jax

  from xmr import parallel

  command_line.keep_compiled(config.data.cache_dir)
  parallel.initialize()
  if jax.process_index() == 0:
    devices = jax.devices()
    print(
      f"{len(devices)} {devices[0].platform} device(s), {jax.process_count()} process(es)",
      file=sys.stderr,
    )


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake and 130 where
  Ctrl-C stopped the training.
  """
  if command_line.asks_for_help(argv):
    print(usage())
    return
  with reported():
    interrupts.end_with_parent()
    config, workdir, eval_only = read(argv)
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    start_jax(config)
    from xmr import parallel, preemption, train

    # What is imported stays: the collections in which batches end need not look through it.
    gc.freeze()
    stop = preemption.Stop(every=config.log.steps)
    with parallel.together(), reported():
      train.train_and_evaluate(config, workdir, eval_only=eval_only, stop=stop)
    if stop.signal == "SIGINT":
      # As a shell expects of a command that Ctrl-C ended: what is chained behind it does not run.
      raise SystemExit(130)


if __name__ == "__main__":
  main(sys.argv)
