"""Files that a reader finds whole or not at all, and JSON that may have been cut or damaged."""

import contextlib
import json
import os
import pathlib
import shutil
import uuid

from xmr.errors import UserError
from xmr.storage import digests
from xmr.storage.locks import held_new, remove_abandoned

KINDS = {dict: "an object", list: "a list"}


@contextlib.contextmanager
def replacing(path):
  """Opens a new file for bytes that takes the place of `path` when the block ends.

  The bytes are on the disk before the name points to them. An error in the block leaves the old
  file as it was and nothing beside it.

  Args:
    path: of the file; its folder exists.
  Yields:
    A binary file, open for reading and writing.
  Raises:
    OSError: the folder is missing or takes no more.
  """
  with _beside(path, _new_file) as temporary, temporary.open("r+b") as file:
    yield file
    file.flush()
    os.fsync(file.fileno())
    temporary.replace(path)


@contextlib.contextmanager
def new_folder(path):
  """Makes a folder that is there whole or not at all, however the process ends.

  Args:
    path: of the folder: none yet, or an empty one.
  Yields:
    pathlib.Path of a folder beside it, which takes its name when the block ends.
  Raises:
    OSError: `path` holds something, or its folder takes no more.
  """
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  with _beside(path, _new_folder) as temporary:
    yield temporary
    temporary.rename(path)


@contextlib.contextmanager
def _beside(path, make):
  """Makes something of a new name beside a path, and removes it and what killed writers of the path
  left; yields its path.
  """
  path = pathlib.Path(path)
  # A random part, as processes of two machines that share the folder may have one number.
  start, end = f".{path.name[:50]}.", ".part"
  with contextlib.suppress(OSError):
    for name in os.listdir(path.parent):
      if name.startswith(start) and name.endswith(end):
        remove_abandoned(path.parent / name)
  temporary, number = held_new(lambda: path.with_name(f"{start}{uuid.uuid4().hex[:12]}{end}"), make)
  try:
    yield temporary
  finally:
    if temporary.is_dir():
      shutil.rmtree(temporary, ignore_errors=True)
    else:
      temporary.unlink(missing_ok=True)
    os.close(number)


def _new_file(path):
  return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)


def _new_folder(path):
  path.mkdir()
  return os.open(path, os.O_RDONLY)


def json_lines(path):
  """Yields (line, object) of each line of a file that holds a JSON object; others, such as one that
  a kill has cut, are skipped. UserError for what is no plain file.
  """
  # A pipe would make the reader wait for ever.
  if os.path.exists(path) and not os.path.isfile(path):
    raise UserError(f"{path} is no plain file; expected lines of JSON")
  for line in pathlib.Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
    with contextlib.suppress(ValueError, RecursionError):
      found = json.loads(line)
      if isinstance(found, dict):
        yield line, found


def write_text(path, text):
  """Writes text as UTF-8."""
  with replacing(path) as file:
    file.write(text.encode("utf-8"))


def write_json(path, value):
  """Writes a value as indented JSON; ValueError for NaN and infinity, which JSON does not have."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_array(path, array, *, key=""):
  """Writes an array as .npy, without pickling; its digest, and that of a key that says what it
  depends on, follows it in the file.
  """
  import numpy as np

  with replacing(path) as file:
    np.save(file, array, allow_pickle=False)
    digests.seal(file, key)


def read_array(path, *, key=""):
  """Returns the array of a .npy file, memory-mapped.

  Raises:
    OSError: no such file.  ValueError: no array of numbers, or not what write_array wrote with this
      key.
  """
  import numpy as np

  # A pipe would make the reader wait for ever.
  if os.path.exists(path) and not os.path.isfile(path):
    raise ValueError("it is no plain file")
  try:
    # Refuses pickled objects, as it cannot map them.
    array = np.lib.format.open_memmap(path, mode="r")
  except OSError:
    raise
  except Exception as error:  # NumPy reads a header as Python, whose errors are of many kinds.
    raise ValueError(str(error) or type(error).__name__) from None
  if not digests.whole(array, key):
    raise ValueError("its bytes are not what was written (digests differ); make it again")
  return array


def write_arrays(path, arrays, *, compressed=True):
  """Writes {name: array} as .npz, without pickling."""
  import numpy as np

  objects = [name for name, x in arrays.items() if np.asarray(x).dtype.hasobject]
  if objects:
    raise ValueError(f"{objects[0]} holds Python objects; expected numbers or text")
  with replacing(path) as file:
    (np.savez_compressed if compressed else np.savez)(file, **arrays)


def read_arrays(path):
  """Returns {name: array} of a .npz file; UserError where there is none, or a damaged one."""
  import numpy as np

  try:
    # A pipe would make the reader wait for ever; and NumPy would leave a damaged file open.
    if not os.path.isfile(path):
      raise ValueError("no plain file")
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
      return dict(arrays)
  except Exception as error:  # Whatever a damaged file makes its readers raise.
    raise UserError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def read_json(path, *, kind=dict):
  """Returns the content of a JSON file.

  Args:
    path: of the file.  kind: dict or list, what it must hold.
  Returns:
    its content, without the digest that `sealed` puts beside the fields of an object.
  Raises:
    UserError: no such file, not UTF-8, no JSON, nested too deeply to be read, of another kind, or
      not what was sealed.
  """
  path = pathlib.Path(path)
  try:
    # A pipe would make the reader wait for ever.
    if path.exists() and not path.is_file():
      raise UserError(f"{path} is no plain file; expected JSON, {KINDS[kind]}")
    found = json.loads(path.read_text(encoding="utf-8"))
  except OSError as error:
    raise UserError(f"cannot read {path}: {error.strerror}") from None
  except UnicodeDecodeError as error:
    raise UserError(f"{path} is not UTF-8 (byte {error.start}); expected JSON") from None
  except json.JSONDecodeError as error:
    raise UserError(f"{path} is not JSON: {error}") from None
  except RecursionError:
    raise UserError(f"{path} is nested too deeply; expected JSON, {KINDS[kind]}") from None
  except UserError:
    raise
  except ValueError as error:  # A number of more digits than Python converts.
    raise UserError(f"{path} holds what cannot be read: {error}") from None
  if not isinstance(found, kind):
    raise UserError(f"{path} holds {json.dumps(found)[:40]}; expected {KINDS[kind]}")
  if kind is dict:
    found, same = digests.unsealed(found)
    if not same:
      raise UserError(
        f"{path} is not what was written (digests differ); delete it to have it made again"
      )
  return found
