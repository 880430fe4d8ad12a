"""The two kinds of arrays that public functions take, and functions with gradients of their own."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Array = np.ndarray | jax.Array


def custom_gradient(*static: int) -> Any:
  """Returns the decorator `jax.custom_vjp`; `static`: indices of the arguments that are no arrays.

  A decorated function keeps `defvjp`. It has type Any, because type checkers otherwise lose the
  types of its results.
  """
  return functools.partial(jax.custom_vjp, nondiff_argnums=static)


def without_masks(gradient):
  """Returns a tree of gradients with None for those of masks, as `defvjp` wants them."""
  return jax.tree.map(lambda x: x if jnp.issubdtype(x.dtype, jnp.floating) else None, gradient)
