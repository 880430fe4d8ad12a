"""Where negatives come from: the scopes, and the training set on the devices.

`table` lists the scopes; only it needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from xmr.mining.scopes import check, make

__all__ = ["check", "make"]


def __getattr__(name: str) -> Any:
  if name in __all__:
    return getattr(importlib.import_module("xmr.mining.scopes"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
