"""What reaches a terminal: names and captions of others must not move its cursor, set its title or
stop a command whose encoding lacks a letter.
"""

import contextlib
import re
import sys

# C0 and C1 but for tab and newline, what turns the direction of a line, and halves of surrogates.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text):
  """Returns a text with its control characters as escapes: `\\x1b[2J` in letters."""
  return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class Plain:
  """A text stream that writes what is printable, in any encoding; the rest is the stream's."""

  def __init__(self, stream):
    self.stream = stream

  def __getattr__(self, name):
    return getattr(self.stream, name)

  def write(self, text):
    # A progress line begins with a carriage return; anywhere else one hides what stands before it.
    start = len(text) - len(text.lstrip("\r"))
    shown = text[:start] + printable(text[start:])
    encoding = getattr(self.stream, "encoding", None) or "utf-8"
    try:
      shown.encode(encoding)
    except UnicodeEncodeError:
      shown = shown.encode(encoding, "backslashreplace").decode(encoding)
    self.stream.write(shown)
    return len(text)

  def writelines(self, lines):
    for line in lines:
      self.write(line)


@contextlib.contextmanager
def plain():
  """Makes standard output and error Plain while the block runs."""
  before = sys.stdout, sys.stderr
  sys.stdout, sys.stderr = (x if isinstance(x, Plain) else Plain(x) for x in before)
  try:
    yield
  finally:
    sys.stdout, sys.stderr = before
