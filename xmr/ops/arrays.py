"""The two kinds of arrays that public functions take, and functions with gradients of their own."""

import functools
from typing import Any

import jax
import numpy as np

Array = np.ndarray | jax.Array


def custom_gradient(*static: int) -> Any:
  """Returns the decorator `jax.custom_vjp`; `static`: indices of the arguments that are no arrays.

  A decorated function keeps `defvjp`. It has type Any, because type checkers otherwise lose the
  types of its results.
  """
  return functools.partial(jax.custom_vjp, nondiff_argnums=static)
