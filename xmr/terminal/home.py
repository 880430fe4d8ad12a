"""`~` is the home folder of the user, in every path of a command line and of a config."""

import os


def expanded(value):
  """Returns a value with the home folder in place of a leading `~` or `~user`, where it is a text
  that has one; anything else as it is.
  """
  return os.path.expanduser(value) if isinstance(value, str) else value


def argument(text):
  """Returns an argument of a command line with its path expanded: `~/x`, `--workdir=~/x`.

  A shell expands only the first form, and so does `--workdir=~/x` make a folder named `~`.
  """
  name, equals, value = text.partition("=")
  return f"{name}={expanded(value)}" if text.startswith("-") and equals else expanded(text)


def expand(config):
  """Expands the paths of a ConfigDict in place: no other text of a config begins with `~`."""
  for name, value in config.items():
    if hasattr(value, "items"):
      expand(value)
    elif expanded(value) != value:
      config[name] = expanded(value)
