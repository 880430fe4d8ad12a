"""The checker of annotations: right calls pass, wrong ones are refused or found out."""

import importlib

import numpy as np
import pytest
import typecheck
from jaxtyping import Float, TypeCheckError

import xmr.eval


@typecheck.checked
def product(x: Float[np.ndarray, "N D"], y: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "N M"]:
  if x.shape[1] != y.shape[1]:
    raise ValueError("two widths")
  return (x @ y.T)[:, : 3 if len(y) == 4 else None]


def test_what_fits_passes_and_what_the_function_refuses_keeps_its_error():
  assert product(np.ones((2, 3)), np.ones((5, 3))).shape == (2, 5)
  with pytest.raises(ValueError, match="two widths"):
    product(np.ones((2, 3)), np.ones((5, 2)))


def test_what_breaks_the_types_and_passes_is_found_out():
  with pytest.raises(TypeCheckError, match="parameter 'x'"):
    product(np.ones((2, 3), int), np.ones((5, 3)))
  with pytest.raises(TypeCheckError, match="return value"):
    product(np.ones((2, 3)), np.ones((4, 3)))


def test_the_functions_of_the_listed_packages_are_wrapped():
  for name in ("graded", "ranks", "recall", "top_k", "mean_average_precision"):
    function = getattr(xmr.eval, name)
    assert function.__wrapped__.__module__.startswith("xmr.eval.")
  unit = importlib.import_module("xmr.ops.unit").unit
  assert unit.__wrapped__.__name__ == "unit"
