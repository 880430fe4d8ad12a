"""Locks between processes: files that are only ever locked, never written, never followed."""

import contextlib
import errno
import fcntl
import os
import shutil
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


def held_new(path, make):
  """Makes a file or folder and holds its lock until its descriptor is closed or the process ends.

  Args:
    path: function without arguments that returns a new path.  make: function of a path that makes
      it and returns a descriptor.
  Returns:
    (path, descriptor).  On a file system without locks nothing is held.
  """
  while True:
    made = path()
    number = make(made)
    with contextlib.suppress(OSError):
      fcntl.flock(number, fcntl.LOCK_EX)
    # Between the two lines above another process may take it for abandoned.
    if os.path.lexists(made):
      return made, number
    os.close(number)


def remove_abandoned(path):
  """Removes what `held_new` made in a process that was killed since; leaves what may be in use."""
  with contextlib.suppress(OSError):
    number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
      fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
      if stat.S_ISDIR(os.fstat(number).st_mode):
        shutil.rmtree(path)
      else:
        os.unlink(path)
    finally:
      os.close(number)


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
