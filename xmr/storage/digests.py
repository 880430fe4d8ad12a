"""Digests of what we write and read back: a bit that flipped on a disk is found before it becomes a
wrong number.

They find accidents. They are no signature: who can write the file can write its digest.
"""

import io
import json
import zlib

KEY = "crc32"  # field of a JSON object that carries the digest of the others
_CHUNK = 1 << 24


def of_json(value):
  """Returns the digest of a JSON-able value, "crc32 in hexadecimal"."""
  return f"{zlib.crc32(json.dumps(value, sort_keys=True).encode()):08x}"


def of_array(x):
  """Returns "float32[2,3] 1a2b3c4d": type, shape and CRC-32 of the bytes of a NumPy array."""
  import numpy as np

  content = np.ascontiguousarray(x).reshape(-1).view(np.uint8).data
  return f"{x.dtype}[{','.join(map(str, x.shape))}] {zlib.crc32(content):08x}"


def sealed(value):
  """Returns a JSON object with the digest of its fields beside them; read_json compares it."""
  value = json.loads(json.dumps(value))
  return {**value, KEY: of_json(value)}


def unsealed(found):
  """Returns (object without its digest, whether it is what was sealed); True without a digest."""
  if not isinstance(found.get(KEY), str):
    return found, True
  rest = {name: value for name, value in found.items() if name != KEY}
  return rest, found[KEY] == of_json(rest)


def seal(file, key=""):
  """Appends the CRC-32 of a key and a .npy file to it, as a second array, which `numpy.load` leaves
  unread.

  Args:
    file: binary, open for reading and writing.  key: what the array depends on, or "".
  """
  import numpy as np

  file.seek(0)
  digest = _crc(file, key)
  np.save(file, np.uint32(digest))


def whole(array, key=""):
  """Returns whether the .npy file of a memory-mapped array is what was sealed with a key; without a
  key also where its array is the only one.
  """
  import numpy as np

  with open(array.filename, "rb") as file:
    digest = _crc(file, key, array.offset + array.nbytes)
    rest = file.read()
  if not rest:
    return not key
  try:
    return int(np.load(io.BytesIO(rest), allow_pickle=False)) == digest
  except Exception:  # NumPy reads a header as Python, whose errors are of many kinds.
    return False


def _crc(file, key, size=None):
  digest = zlib.crc32(key.encode())
  while size is None or size > 0:
    chunk = file.read(_CHUNK if size is None else min(_CHUNK, size))
    if not chunk:
      break
    digest = zlib.crc32(chunk, digest)
    size = None if size is None else size - len(chunk)
  return digest
