"""Checkpoints of a run: save, resume from the newest that restores, load anywhere for inspection.

Whatever is read is held against the digests that were saved with it.
"""

from xmr.checkpoint.reading import check_path, load, record
from xmr.checkpoint.saving import Checkpoints
from xmr.checkpoint.trees import flatten, nest, unflatten

__all__ = ["Checkpoints", "check_path", "flatten", "load", "nest", "record", "unflatten"]
