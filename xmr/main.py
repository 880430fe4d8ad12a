"""Trains and scores one config: python -m xmr.main --config=configs/imc_flickr.py
--workdir=runs/imc.

Flags are read before JAX is imported, so that --help and a misspelt flag answer at once.
"""

import sys

from absl import flags
from ml_collections import config_flags

from xmr import command_line
from xmr.errors import reported

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "File of a config, or file:variant.", lock_config=True
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Folder of the run; the same command goes on with an unfinished run."
)
EVAL_ONLY = flags.DEFINE_bool(
  "eval_only", False, "Score the best checkpoint of the run, without training."
)


def usage():
  """Returns the text of --help."""
  shown = "\n".join(
    f"  --{flag.name:10} {flags.FLAGS[flag.name].help}" for flag in (CONFIG, WORKDIR, EVAL_ONLY)
  )
  fields = (
    "  --config.KEY=VALUE  Any field of xmr/config.py: --config.epochs=10, "
    "--config.loss.margin=0.3."
  )
  return f"{__doc__}\n{shown}\n{fields}"


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
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake."""
  if command_line.asks_for_help(argv):
    print(usage())
    return
  with reported():
    command_line.read_flags(
      argv,
      needed=("config", "workdir"),
      usage="python -m xmr.main --config=FILE[:variant] --workdir=DIR",
    )
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    start_jax(CONFIG.value)
    from xmr import parallel, preemption, train

    stop = preemption.Stop(every=CONFIG.value.log.steps)
    with parallel.together(), reported():
      train.train_and_evaluate(CONFIG.value, WORKDIR.value, eval_only=EVAL_ONLY.value, stop=stop)
    if stop.signal == "SIGINT":
      # As a shell expects of a command that Ctrl-C ended: what is chained behind it does not run.
      raise SystemExit(130)


if __name__ == "__main__":
  main(sys.argv)
