"""Losses by name: each returns (loss, terms), a scalar and a dict of scalars. `table` lists them.

Names are imported when they are first used, so `xmr.losses.table` needs no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

from xmr.losses import table

if TYPE_CHECKING:
  from xmr.losses.bound import Bound as Bound
  from xmr.losses.bound import get as get
  from xmr.losses.bound import get_ring as get_ring
  from xmr.losses.intra import intra_modal_constraint as intra_modal_constraint

# Every loss is also a name of this package: `xmr.losses.imc`.
__all__ = ["LOSSES", "RING", "get", "get_ring", "intra_modal_constraint", *sorted(table.LOSSES)]


def __getattr__(name: str) -> Any:
  from xmr.fields import resolve

  if name in table.LOSSES:
    return resolve(table.LOSSES[name].function)
  if name == "LOSSES":
    return {key: resolve(row.function) for key, row in table.LOSSES.items()}
  if name == "RING":
    return {key: resolve(row.ring) for key, row in table.LOSSES.items() if row.ring}
  if name == "intra_modal_constraint":
    return importlib.import_module("xmr.losses.intra").intra_modal_constraint
  if name in ("get", "get_ring", "Bound"):
    return getattr(importlib.import_module("xmr.losses.bound"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
