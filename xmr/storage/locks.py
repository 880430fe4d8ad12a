"""Locks between processes: files that are only ever locked, never written, never followed."""

import contextlib
import errno
import fcntl
import os
import stat

from xmr.errors import UserError


@contextlib.contextmanager
def locked(path, *, busy):
  """Holds the lock of a file; the system frees it when the process ends, however it ends.

  Args:
    path: of the file, made where it is absent. It is neither cut nor followed where it is a
      symbolic link: in a folder that others can write, a link could name any file of ours.
    busy: function without arguments, called where another process holds the lock: raises, or
      returns in order to wait.
  Yields:
    False on a file system without locks, where nothing is held; else True.
  Raises:
    UserError: something else than a plain file has that name.
  """
  try:
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    number = os.open(path, flags, 0o666)
  except OSError as error:
    if error.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
      raise
    raise UserError(f"{path} is no plain file; expected one to lock, or none") from None
  with os.fdopen(number, "r+b", buffering=0) as file:
    if not stat.S_ISREG(os.fstat(number).st_mode):
      raise UserError(f"{path} is no plain file; expected one to lock, or none")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      busy()
      fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
      yield False
      return
    yield True


@contextlib.contextmanager
def folder_held(folder, *, doing):
  """Makes a folder and holds it while the block runs.

  Args:
    folder: pathlib.Path.  doing: what another process does there, for the error.
  Raises:
    UserError: another process holds it, or it cannot be made.
  """

  def busy():
    raise UserError(f"another process is {doing} in {folder}; wait for it, or name another folder")

  with contextlib.ExitStack() as stack:
    try:
      folder.mkdir(parents=True, exist_ok=True)
      stack.enter_context(locked(folder / ".lock", busy=busy))
    except OSError as error:
      raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    yield
