"""Trains and scores one config: python -m xmr.main --config=configs/imc_flickr.py --workdir=runs/imc.

Flags are read before JAX is imported, so that --help and a misspelt flag answer at once.
"""

import os
import re
import sys

from absl import flags
from ml_collections import config_flags

from xmr.errors import UserError, reported

CONFIG = config_flags.DEFINE_config_file("config", None, "File of a config, or file:variant.", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; the same command goes on with an unfinished run.")
EVAL_ONLY = flags.DEFINE_bool("eval_only", False, "Score the best checkpoint of the run, without training.")


def read_flags(argv):
  """Parses the flags; a mistake becomes a UserError."""
  # ml_collections wants the file before its fields, and looks at sys.argv itself: sorted in place.
  argv[1:] = sorted(argv[1:], key=lambda argument: not argument.startswith("--config="))
  try:
    rest = flags.FLAGS(argv)
    if len(rest) > 1:
      raise UserError(f"unexpected arguments {' '.join(rest[1:])}; flags start with --")
    for name in ("config", "workdir"):
      if flags.FLAGS[name].value is None:
        raise UserError(f"--{name} is missing: python -m xmr.main --config=FILE[:variant] --workdir=DIR")
    # Loaded when it is first looked at.
    return CONFIG.value.lock()
  except UserError:
    raise
  except (AttributeError, KeyError) as error:
    field = re.search(r"\w[\w.]*", str(error.args[0]).replace("\\n", " "))
    near = re.search(r'Did you mean "(\w+)"', str(error))
    raise UserError(f"config has no field {field[0]}" + (f"; did you mean {near[1]}?" if near else "")) from None
  except (flags.Error, TypeError, ValueError, OSError) as error:
    # A config's own complaint comes wrapped in the traceback of the flag that loads it.
    raise UserError(str(error).rpartition("xmr.errors.UserError: ")[2]) from None


def usage():
  """Returns the text of --help."""
  shown = "\n".join(f"  --{flag.name:10} {flags.FLAGS[flag.name].help}" for flag in (CONFIG, WORKDIR, EVAL_ONLY))
  fields = "  --config.KEY=VALUE  Any field of xmr/config.py: --config.epochs=10, --config.loss.margin=0.3."
  return f"{__doc__}\n{shown}\n{fields}"


def start_jax(config):
  """Joins other processes and turns on the compilation cache; returns nothing."""
  import jax

  from xmr import parallel

  folder = os.path.join(os.path.expanduser(config.data.cache_dir), "xla")
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  parallel.initialize()
  if jax.process_index() == 0:
    devices = jax.devices()
    print(f"{len(devices)} {devices[0].platform} device(s), {jax.process_count()} process(es)", file=sys.stderr)


def main(argv):
  """Runs one command line; returns nothing, raises SystemExit(2) for a user's mistake."""
  if any(argument in ("-h", "--help", "-help") for argument in argv[1:]):
    print(usage())
    return
  with reported():
    config = read_flags(argv)
    from absl import logging

    logging.set_verbosity(logging.ERROR)
    start_jax(config)
    from xmr import parallel, run

    with parallel.together(), reported():
      run.run(config, WORKDIR.value, eval_only=EVAL_ONLY.value)


if __name__ == "__main__":
  main(sys.argv)
