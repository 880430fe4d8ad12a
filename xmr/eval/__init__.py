"""Evaluation of embeddings against ground truth: it never sees a model."""

import importlib
import sys
import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from xmr.eval.average_precision import mean_average_precision
  from xmr.eval.blocks import similarity
  from xmr.eval.graded import graded
  from xmr.eval.protocol import recall
  from xmr.eval.ranks import ranks
  from xmr.eval.top_k import top_k

__all__ = ["graded", "mean_average_precision", "ranks", "recall", "similarity", "top_k"]


class _Package(types.ModuleType):
  """This package, whose functions are imported when they are first used: only `table` needs no JAX.

  The functions are properties, since Python would replace three of them by the modules of the same
  names.
  """


def _function(module, name):
  def get(self):
    return getattr(importlib.import_module(f"{self.__name__}.{module}"), name)

  return property(get, lambda self, value: None)


for _name, _module in {
  "graded": "graded",
  "mean_average_precision": "average_precision",
  "ranks": "ranks",
  "recall": "protocol",
  "similarity": "blocks",
  "top_k": "top_k",
}.items():
  setattr(_Package, _name, _function(_module, _name))
sys.modules[__name__].__class__ = _Package
