"""The progress of a training for users: a line that fits the terminal, and compile times."""

import contextlib
import hashlib
import json
import pathlib
import threading
import time

from xmr.errors import UserError
from xmr.storage import files

WIDTH = 79
SECONDS = "compile_seconds.json"  # {digest of what was compiled: seconds}, in a cache


def progress_line(*, step, total, epoch, loss, scores, rate, left, width=WIDTH):
  """Returns "12% epoch 3.6  loss 24.71  rsum 437.9  best 441.2  3,390 captions/s  1h02m left".

  Args:
    step, total: steps done, and of the whole run.  epoch: float.  loss: float.
    scores: {name: float}: the last validation and the best so far.
    rate: captions a second.  left: seconds to the end, or None.
    width: columns; spaces and words are shortened first, and numbers are never cut.
  """
  parts = [f"{100 * step // max(1, total):.0f}%", f"epoch {epoch:.1f}", f"loss {_four(loss)}"]
  parts += [f"{name} {_four(value)}" for name, value in scores.items()]
  ends = [] if left is None else [f"{duration(left)} left"]
  for gap, unit in (("  ", " captions/s"), (" ", " captions/s"), (" ", "/s")):
    line = gap.join([*parts, f"{rate:,.0f}{unit}", *ends])
    if len(line) <= width:
      break
  return line


def _four(value):
  """Four digits, zeros at the end too, so that the line does not jump."""
  return f"{value:#.4g}".rstrip(".")


def duration(seconds):
  """Returns "42s", "12m05s", "3h20m" or "2d07h"."""
  seconds = round(seconds)
  for big, small, size in (("d", "h", 86400), ("h", "m", 3600), ("m", "s", 60)):
    if seconds >= size:
      rest = seconds % size * {"d": 24, "h": 60, "m": 60}[big] // size
      return f"{seconds // size}{big}{rest:02}{small}"
  return f"{seconds}s"


@contextlib.contextmanager
def compiling(writer, what, *, key, cache_dir):
  """Announces that a program is compiled and how long it should take; shows the time so far on the
  progress line, and stores the seconds for the next time.

  Args:
    writer: Writer.  what: name of the program, shown to users.
    key: JSON value that the seconds depend on.  cache_dir: folder that stores them.
  """
  if not writer.active:
    yield
    return
  path = pathlib.Path(cache_dir).expanduser() / SECONDS
  digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
  known = _read(path)
  guess = known.get(digest)
  about = "first time here" if guess is None else f"about {max(1, round(guess))} s"
  writer.say(f"compiling {what} ({about})")
  begun, done = time.perf_counter(), threading.Event()

  def tick():
    while not done.wait(0.5):
      writer.show(f"compiling {what} ({about}): {time.perf_counter() - begun:.0f} s")

  thread = threading.Thread(target=tick, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()
  seconds = time.perf_counter() - begun
  writer.say(f"compiled {what} in {seconds:.1f} s")
  # A full cache is no reason to stop a run.
  with contextlib.suppress(OSError):
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {**known, digest: round(seconds, 2)})


def _read(path):
  try:
    found = files.read_json(path)
  except UserError:
    return {}
  return {key: value for key, value in found.items() if isinstance(value, int | float)}
