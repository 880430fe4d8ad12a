"""Digests of what a checkpoint holds: a bit that flipped on a disk is found before it becomes a
wrong number.
"""

import concurrent.futures
import os

import jax
import numpy as np
from jax.experimental import multihost_utils

from xmr.storage.digests import of_array


def of_arrays(flat):
  """Returns {name: "float32[2,3] 1a2b3c4d"}: type, shape and CRC-32 of the bytes of each array.

  All processes must call it where an array is split over them; each gets all digests.

  Args:
    flat: {name: array}, of NumPy or on devices.
  """
  # One after the other, as an array that is split over processes comes by a collective.
  hosts = ((name, _on_host(x)) for name, x in flat.items())
  # Two threads at least: the next array is fetched while one is summed.
  with concurrent.futures.ThreadPoolExecutor(max(2, min(8, os.cpu_count() or 1))) as pool:
    made = [(name, pool.submit(of_array, x)) for name, x in hosts]
    return {name: digest.result() for name, digest in made}


def _on_host(x):
  if isinstance(x, jax.Array) and not x.is_fully_addressable:
    if x.is_fully_replicated:
      return np.asarray(x.addressable_data(0))
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))
  return np.asarray(x)


def different(found, digests):
  """Returns the names of arrays that are not what was saved: changed, missing or too many.

  Args:
    found: {name: array} as read.  digests: of_arrays() of what was saved.
  """
  now = of_arrays(found)
  return sorted(name for name in {**now, **digests} if now.get(name) != digests.get(name))
