"""Encoders by name, listed in `table`, and the dual encoder that a config describes.

Names are imported when they are used, since `xmr.models.table` alone needs no JAX.
"""

import functools
import importlib
from typing import TYPE_CHECKING, Any

from xmr.models import table

if TYPE_CHECKING:
  from xmr.models.dual_encoder import DualEncoder, build

__all__ = ["IMAGE_ENCODERS", "TEXT_ENCODERS", "DualEncoder", "build"]


def __getattr__(name: str) -> Any:
  from xmr.fields import resolve

  if name in ("DualEncoder", "build"):
    return getattr(importlib.import_module("xmr.models.dual_encoder"), name)
  if name in ("IMAGE_ENCODERS", "TEXT_ENCODERS"):
    rows = table.SIDES[name.partition("_")[0].lower()]
    return {key: functools.partial(resolve(row.path), **row.fixed) for key, row in rows.items()}
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
