"""What the threads of orbax and tensorstore leave behind where a save or a restore fails."""

import contextlib
import dataclasses
import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable

from xmr.errors import disk_full


class SaidOnce(logging.Filter):
  """Drops what the threads of a save log of a full disk, with a traceback for each file: `save`
  raises it once.
  """

  def filter(self, record):
    return not (record.exc_info and disk_full(record.exc_info[1]))


for logger in ("absl", "asyncio"):
  logging.getLogger(logger).addFilter(SaidOnce())


def at_work(thread):
  """Says whether the end of the program would wait for a thread."""
  return not thread.daemon and not thread.name.startswith("asyncio_")


@dataclasses.dataclass
class WithoutLateAnswers:
  """A hook of `sys` that passes on what cannot be raised, but for what tensorstore reports to an
  event loop that orbax has closed after the first failure.
  """

  hook: Callable

  def __call__(self, unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
      self.hook(unraisable)


@contextlib.contextmanager
def last_words():
  """Waits for the threads that a failed save or restore leaves at work, and keeps what they say at
  their end from standard error.
  """
  before, hook = threading.enumerate(), sys.unraisablehook
  if not isinstance(hook, WithoutLateAnswers):
    sys.unraisablehook = WithoutLateAnswers(hook)
  # A write that fails leaves others of its array that never start.
  warnings.filterwarnings(
    "ignore", message="coroutine .* was never awaited", category=RuntimeWarning
  )
  try:
    yield
  except Exception:
    give_up = time.monotonic() + 30
    # Asked again and again: threads start others. The idle pools of asyncio end with their loops,
    # whenever those are collected.
    while (
      any(at_work(thread) for thread in set(threading.enumerate()) - set(before))
      and time.monotonic() < give_up
    ):
      time.sleep(0.02)
    # The hook stays: answers may come later still.
    raise
  sys.unraisablehook = hook
