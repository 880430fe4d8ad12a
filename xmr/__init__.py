"""xmr: image-text retrieval losses, mining and evaluation in JAX."""

import importlib
import signal
import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:
  # Python is still looking for the command that `python -m` named. Ctrl-C while it imports ends it
  # as any program, without the traceback of an import; `errors.reported` takes the signal then.
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def __getattr__(name):
  """Imports what notebooks look for in `xmr` when it is first used, not before."""
  if name in ("eval", "inspect", "losses"):
    return importlib.import_module(f"xmr.{name}")
  raise AttributeError(f"module 'xmr' has no attribute {name!r}")
