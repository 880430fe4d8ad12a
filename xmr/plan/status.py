"""What a person sees while a program is compiled: a line that moves, on a terminal."""

import sys
import time

WIDTH = 79
QUIET = 60  # seconds between two lines where standard error is no terminal


class Status:
  """Takes the place of tracking.Writer: lines on standard error, and one that is replaced."""

  active = True

  def __init__(self):
    self.shown, self.said = "", time.monotonic()

  def say(self, text):
    """Prints a line that stays."""
    self.show("")
    print(f"xmr: {text}", file=sys.stderr, flush=True)
    self.said = time.monotonic()

  def show(self, text):
    """Puts a text in place of the one before; elsewhere than on a terminal, now and then a line."""
    if sys.stderr.isatty():
      if text or self.shown:
        sys.stderr.write("\r" + text[:WIDTH].ljust(len(self.shown)) + ("" if text else "\r"))
        sys.stderr.flush()
      self.shown = text[:WIDTH]
    elif text and time.monotonic() - self.said > QUIET:
      self.say(text)
