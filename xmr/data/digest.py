"""Digests of datasets, which tell whether two folders hold the same data."""

import hashlib
import json

import numpy as np

_BLOCK_BYTES = 1 << 26


def digests(splits):
  """Returns {split: 32 hex digits} of ids, captions, labels and features, in their order.

  Neither where the files lie nor the pixels count: images are told apart by their ids.

  Args:
    splits: {name: Split}.
  """
  return {name: _digest(split) for name, split in splits.items()}


def _digest(split):
  digest = hashlib.blake2b(digest_size=16)
  digest.update(json.dumps(split.texts).encode())
  for name in ("image_id", "text_id", "image_of_text", "label", "image_features", "text_features"):
    array = getattr(split, name)
    if array is None:
      continue
    digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
    rows = max(1, _BLOCK_BYTES // max(1, array.itemsize * int(np.prod(array.shape[1:]))))
    for start in range(0, len(array), rows):
      digest.update(np.ascontiguousarray(array[start : start + rows]).data)
  return digest.hexdigest()
