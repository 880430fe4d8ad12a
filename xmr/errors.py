"""The error that a user's mistake raises, and how a command ends with it."""

import contextlib
import os
import re
import select
import sys

from xmr.terminal import interrupts, output

FULL = re.compile(
  "No space left on device|Disk quota exceeded|File too large|Read-only file system"
)
# What XLA says of a GPU before Ampere, and what helps.
OLD_GPU = "Triton support is only enabled for Ampere"
WITHOUT_KERNELS = "this GPU is older than Ampere and compiles no kernels; expected XMR_KERNELS=0"


class UserError(ValueError):
  """A mistake in a config, a file or an argument: what was found, where, and what was expected.

  `tree`, the expected files, ends the message and keeps its lines; a command prints the rest as one
  line.
  """

  def __init__(self, message, *, tree=""):
    super().__init__(message + tree)
    self.tree = tree


class CutOff(Exception):
  """Something outside the command ended its work early; all saved files are whole, and the same
  command continues.
  """


def choice(name, value, known):
  """Raises UserError unless `value` is one of `known`; lists them."""
  if value not in known:
    raise UserError(f"{name} is {value!r}; expected one of {', '.join(map(str, known))}")


def disk_full(error):
  """Returns the system's message if a full disk caused an error, else None."""
  while error is not None:
    found = FULL.search(str(error))
    if found:
      return found[0]
    error = error.__cause__ or error.__context__
  return None


def reader_is_gone():
  """Returns whether no process reads standard output any more, as after `| head`."""
  watched = select.poll()
  watched.register(sys.stdout.fileno(), 0)
  return any(event & select.POLLERR for _, event in watched.poll(0))


@contextlib.contextmanager
def reported():
  """Turns a UserError, or a full disk, into a line on standard error and exit status 2, a CutOff
  into a line and 1, and Ctrl-C into a line and 130; other errors keep their traceback.

  This is the border to the terminal: all text printed inside is made printable.
  """
  with interrupts.heard(), output.plain():
    try:
      with interrupts.kept():
        yield
        sys.stdout.flush()
    except BrokenPipeError:
      if not reader_is_gone():
        raise
      # Python would report it once more when it flushes at exit.
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      raise SystemExit(1) from None
    except KeyboardInterrupt:
      print("xmr: interrupted", file=sys.stderr)
      # Where the interrupt passed through code that a library gave to exec, Python would end by the
      # signal instead of the status. Its next exec forgets that.
      exec("")
      raise SystemExit(interrupts.STATUS) from None
    except UserError as error:
      message = str(error).removesuffix(error.tree)
      print("xmr: error: " + " ".join(message.split()) + error.tree, file=sys.stderr)
      raise SystemExit(2) from None
    except CutOff as error:
      print("xmr: error: " + " ".join(str(error).split()), file=sys.stderr)
      raise SystemExit(1) from None
    except Exception as error:
      if OLD_GPU in str(error):
        print(f"xmr: error: {WITHOUT_KERNELS} in the environment", file=sys.stderr)
        raise SystemExit(2) from None
      reason = disk_full(error)
      if reason is None and isinstance(error, OSError) and error.filename is not None:
        # A folder in the place of a file, no permission, a name that is too long.
        reason = error.strerror
      if reason is None:
        raise
      print(
        f"xmr: error: {reason}: {getattr(error, 'filename', None) or 'while writing'}",
        file=sys.stderr,
      )
      raise SystemExit(2) from None
