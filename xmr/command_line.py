"""How the commands read their arguments: a mistake is one line, told before JAX is imported."""

import argparse
import os
import re

from absl import flags

from xmr.errors import UserError


def asks_for_help(argv):
  """Says whether a command line of flags asks for help."""
  return any(argument in ("-h", "--help", "-help") for argument in argv[1:])


def read_flags(argv, *, needed=(), usage="", values=flags.FLAGS):
  """Parses flags into `values` and loads the config that --config names.

  Args:
    argv: list of str, the program first; `--config=FILE` comes to the front of it.
    needed: names of flags that must be given.  usage: the command line that is expected, for the
      error.
    values: absl's FlagValues.
  Raises:
    UserError: an unknown flag, config, field or value, one that is missing, or words that are no
      flags.
  """
  # ml_collections wants the file before its fields, and looks at sys.argv itself: sorted in place.
  argv[1:] = sorted(argv[1:], key=lambda argument: not argument.startswith("--config="))
  for argument in argv[1:]:
    path = argument.removeprefix("--config=").partition(":")[0]
    if argument.startswith("--config=") and not os.path.isfile(path):
      raise UserError(f"--config: no file {path}")
  try:
    rest = values(argv)
    if len(rest) > 1:
      raise UserError(f"unexpected arguments {' '.join(rest[1:])}; flags start with --")
    for name in needed:
      if values[name].value in (None, ""):
        raise UserError(f"--{name} is missing: {usage}")
    # A config is loaded when it is first looked at; a sweep's is a name.
    if "config" in values and hasattr(values.config, "lock"):
      values.config.lock()
  except UserError:
    raise
  except (AttributeError, KeyError) as error:
    field = re.search(r"\w[\w.]*", str(error.args[0]).replace("\\n", " "))
    near = re.search(r'Did you mean "(\w+)"', str(error))
    raise UserError(
      f"config has no field {field[0]}" + (f"; did you mean {near[1]}?" if near else "")
    ) from None
  except (flags.Error, TypeError, ValueError, OSError) as error:
    # A config's own complaint comes wrapped in the traceback of the flag that loads it.
    raise UserError(str(error).rpartition("xmr.errors.UserError: ")[2]) from None


def parser(command, description):
  """Returns an empty argparse parser of `python -m command`, for `parsed`."""
  return argparse.ArgumentParser(
    prog=f"python -m {command}",
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    exit_on_error=False,
  )


def parsed(parser, argv, *, needed=(), usage=""):
  """Returns the parsed arguments (argv without the program); UserError for a mistake or a missing
  one of `needed`.
  """

  def refuse(message):
    raise UserError(f"{message}; {parser.prog} --help shows what is expected")

  parser.error = refuse
  try:
    arguments = parser.parse_args(argv)
  except argparse.ArgumentError as error:
    refuse(str(error))
  for name in needed:
    if getattr(arguments, name) is None:
      raise UserError(f"--{name} is missing: {parser.prog} {usage}")
  return arguments


def keep_compiled(cache_dir):
  """Keeps compiled programs, small ones too, in the folder `xla` of a cache; returns nothing."""
  import jax

  jax.config.update("jax_compilation_cache_dir", os.path.join(os.path.expanduser(cache_dir), "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
