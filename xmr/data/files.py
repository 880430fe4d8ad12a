"""Files of a dataset's folder: only plain files are read, and whole."""

import contextlib
import os
import stat

from xmr.errors import UserError


@contextlib.contextmanager
def opened(path, *, what="a file", field=""):
  """Gives a plain file, open for reading bytes.

  Args:
    path: of the file, or of a link to one.
    what: what was expected there, field: config field that named it, for the error.
  Raises:
    UserError: there is no file, it cannot be read, or it is a folder, a device or a pipe, which
      would keep the reader waiting for ever.
  """
  field = f"config.{field}: " if field else ""
  try:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
      os.close(descriptor)
      found = "a folder" if stat.S_ISDIR(kind) else "no plain file"
      raise UserError(f"{field}{path} is {found}; expected {what}")
    with open(descriptor, "rb") as file:
      yield file
  except (OSError, EOFError) as error:
    reason = " ".join(str(getattr(error, "strerror", None) or error).split())
    raise UserError(f"{field}{path} cannot be read: {reason}; expected {what}") from None


def read_file(path, *, what="a file"):
  """Returns the bytes of a plain file; UserError as in `opened`."""
  with opened(path, what=what) as file:
    return file.read()
