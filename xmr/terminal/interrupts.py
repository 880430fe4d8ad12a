"""Ctrl-C: the first ends a command after its cleaning up, with one line; the second at once."""

import atexit
import contextlib
import os
import signal
import threading

PIPE = "XMR_ENDS_WITH_STANDARD_INPUT"  # of the environment
STATUS = 130  # as a shell reports a command that Ctrl-C ended
_asked = threading.Event()


@contextlib.contextmanager
def heard():
  """Makes the first SIGINT a KeyboardInterrupt that `check` remembers, and the second end the
  process; in a thread, or where somebody else takes the signal, nothing changes.

  Where the process is a command, Ctrl-C after the block ends it at once with the same status.
  """
  ours = threading.current_thread() is threading.main_thread() and signal.getsignal(
    signal.SIGINT
  ) in (signal.default_int_handler, signal.SIG_DFL)
  if not ours:
    yield
    return
  before = signal.signal(signal.SIGINT, _first)
  # `xmr` leaves SIG_DFL to a command that `python -m` starts: its process ends after the block. The
  # interpreter takes handlers away before all else, and would then end by the signal.
  ends = before == signal.SIG_DFL
  if ends:
    atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, _ending if ends else before)
    if not ends:
      _asked.clear()


def _ending(*_):
  """Ends a command that has done all but to end: with the status of Ctrl-C, and with its line where
  that was not printed.
  """
  if not _asked.is_set():
    os.write(2, b"xmr: interrupted\n")
  os._exit(STATUS)


def _first(*_):
  _asked.set()
  signal.signal(signal.SIGINT, at_once)
  raise KeyboardInterrupt


def check():
  """Raises KeyboardInterrupt where one came and was lost: Python drops what is raised in a callback
  of the garbage collector.
  """
  if _asked.is_set():
    raise KeyboardInterrupt


@contextlib.contextmanager
def kept():
  """Makes what a block raises a KeyboardInterrupt again where one came before: an extension that is
  interrupted while it is imported raises an ImportError.
  """
  try:
    yield
  except Exception:
    check()
    raise


def end_with_parent():
  """Asks this process to stop, as SIGTERM does, when the one that started it is gone, where that
  one keeps a pipe to our standard input open and says so in the environment.
  """
  if not os.environ.pop(PIPE, ""):
    return

  def watch():
    while os.read(0, 1024):
      pass
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=watch, daemon=True).start()


def at_once(*_):
  """Handler of a signal that ends the process without waiting for anything."""
  os.write(2, b"xmr: interrupted twice: ended at once\n")
  os._exit(STATUS)
