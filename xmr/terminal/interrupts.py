"""Ctrl-C: the first ends a command after its cleaning up, with one line; the second at once."""

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
  """
  ours = threading.current_thread() is threading.main_thread() and signal.getsignal(
    signal.SIGINT
  ) in (signal.default_int_handler, signal.SIG_DFL)
  if not ours:
    yield
    return
  before = signal.signal(signal.SIGINT, _first)
  try:
    yield
  finally:
    signal.signal(signal.SIGINT, before)
    _asked.clear()


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
