"""Looking into a run: load it, encode, search, draw. Imports wait until they are used, so that
--help is fast.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from xmr.inspect.runs import Run

__all__ = ["Run", "load"]


def load(workdir, step="best"):
  """Loads a run for inspection, on any machine, without its training data.

  Args:
    workdir: folder of a run, or one that Run.export wrote.
    step: "best" (highest validation score), "latest", or a number.
  Returns:
    Run.
  Raises:
    UserError: not a run folder, no checkpoint in it, not that step, or a config of another version.
  """
  from xmr.inspect import loading

  return loading.load(workdir, step)


def __getattr__(name: str) -> Any:
  if name == "Run":
    from xmr.inspect import runs

    return runs.Run
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
