"""How the commands read their arguments: a mistake gives one line, before JAX is imported."""

import argparse
import contextlib
import importlib.machinery
import importlib.util
import os
import re
import sys
import traceback

from absl import flags

from xmr.errors import UserError
from xmr.terminal import home


def asks_for_help(argv):
  """Says whether a command line of flags asks for help."""
  return any(argument in ("-h", "--help", "-help") for argument in argv[1:])


def read_flags(argv, *, needed=(), usage="", values=flags.FLAGS):
  """Parses flags into `values` and loads the config that --config names.

  Args:
    argv: list of str, the program first; the function moves `--config=FILE` to the front.
    needed: names of flags that must be given.  usage: the expected command line, for the error.
    values: absl's FlagValues.
  Raises:
    UserError: an unknown or missing flag, config, field or value, or words that are no flags.
  """
  # ml_collections wants the file before its fields, and looks at sys.argv itself: sorted in place.
  argv[1:] = sorted(
    map(home.argument, argv[1:]), key=lambda argument: not argument.startswith("--config=")
  )
  for argument in argv[1:]:
    if argument.startswith("--config="):
      # Loaded once more than needed, to tell mistakes in the file from mistakes in the flags that
      # change its fields.
      load_config(*argument.removeprefix("--config=").partition(":")[::2])
  if "config" in values and values["config"].parser.flag_type() == "config object":
    values["config"].parser = NamesFirst(values["config"].parser, argv)
  with mistakes():
    rest = values(argv)
    if len(rest) > 1:
      raise UserError(f"unexpected arguments {' '.join(rest[1:])}; flags start with --")
    for name in needed:
      if values[name].value in (None, ""):
        raise UserError(f"--{name} is missing: {usage}")
    # A config is loaded when it is first read; a sweep's is a name.
    if "config" in values and hasattr(values.config, "lock"):
      values.config.lock()
      home.expand(values.config)


@contextlib.contextmanager
def mistakes():
  """Turns what absl and ml_collections raise for a wrong flag, field or value into a UserError."""
  try:
    yield
  except UserError:
    raise
  except (AttributeError, KeyError) as error:
    if "; expected some of" in str(error):
      raise UserError(str(error).strip("'\"")) from None
    field = re.search(r"\w[\w.]*", str(error.args[0]).replace("\\n", " "))
    near = re.search(r'Did you mean "(\w+)"', str(error))
    raise UserError(
      f"config has no field {field[0] if field else error}"
      + (f"; did you mean {near[1]}?" if near else "")
    ) from None
  except (flags.Error, TypeError, ValueError, OSError) as error:
    # A config's own complaint comes wrapped in the traceback of the flag that loads it.
    raise UserError(str(error).rpartition("xmr.errors.UserError: ")[2]) from None


def load_config(path, variant=""):
  """Returns the config of a file, or of its variant if one is named.

  Raises:
    UserError: no such file, or a file that does not parse, that raises, or without get_config.
  """
  if not os.path.isfile(path):
    raise UserError(f"--config: no file {path}")
  # The folder above, so that a config can import what it shares with others.
  for folder in (os.path.dirname(os.path.dirname(os.path.abspath(path))), os.getcwd()):
    if folder not in sys.path:
      sys.path.insert(0, folder)
  name = f"config_{os.path.splitext(os.path.basename(path))[0]}"
  try:
    # By name, as its suffix need not be .py.
    loader = importlib.machinery.SourceFileLoader(name, path)
    spec = importlib.machinery.ModuleSpec(name, loader, origin=path)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    config = module.get_config(variant) if variant else module.get_config()
  except UserError:
    raise
  except SyntaxError as error:
    where = f"{error.filename}, line {error.lineno}" if error.lineno else path
    raise UserError(f"--config: {where}: {error.msg}; expected a Python file") from None
  except Exception as error:
    mine = [each for each in traceback.extract_tb(error.__traceback__) if each.filename == path]
    where = f"{path}, line {mine[-1].lineno}" if mine else path
    raise UserError(f"--config: {where}: {type(error).__name__}: {error}") from None
  if not hasattr(config, "lock"):
    found = type(config).__name__
    raise UserError(f"--config: get_config of {path} returns a {found}; expected a ConfigDict")
  return config


class NamesFirst(flags.ArgumentParser):
  """Parser of --config that applies flags naming a loss or an encoder first, so that their fields
  are known when the other flags are read, in any order.
  """

  def __init__(self, parser, argv):
    self.parser, self.argv = parser, argv

  def parse(self, argument):
    """Returns the config of a file, with its sections named as on the command line."""
    from xmr.fields import Section

    config = self.parser.parse(argument)
    for flag, following in zip(self.argv, [*self.argv[1:], ""], strict=True):
      found = re.fullmatch(r"--?config\.([\w.]+)\.name(=.*)?", flag)
      if found is None:
        continue
      section = config
      for part in found[1].split("."):
        section = section.get(part, {}) if hasattr(section, "get") else {}
      if isinstance(section, Section):
        section.name = following if found[2] is None else found[2][1:]
    return config

  def flag_type(self):
    return self.parser.flag_type()


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
  given = sys.argv[1:] if argv is None else argv
  try:
    arguments = parser.parse_args([home.argument(text) for text in given])
  except argparse.ArgumentError as error:
    refuse(str(error))
  for name in needed:
    if getattr(arguments, name) is None:
      raise UserError(f"--{name} is missing: {parser.prog} {usage}")
  return arguments


def keep_compiled(cache_dir):
  """Keeps compiled programs, small ones too, in the folder `xla` of a cache; returns nothing. What
  JAX_COMPILATION_CACHE_DIR names is kept to.
  """
  if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    return
  import jax

  jax.config.update("jax_compilation_cache_dir", os.path.join(home.expanded(cache_dir), "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
