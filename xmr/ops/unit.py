"""Rows of unit length: the one normalisation of the project, for NumPy and for JAX."""

from typing import TypeVar

import numpy as np

AnyArray = TypeVar("AnyArray")


def unit(x: AnyArray) -> AnyArray:
  """x / |x|_2 along the last axis.

  Each row is first divided by its largest entry, so that no square leaves the range of the type: a
  row of any norm in that range gets length 1. A row of zeros stays zero, and its gradient is
  finite. Subnormal entries (below 1.2e-38 in float32) count on the host; a device may treat them as
  zeros.

  Args:
    x: [..., D] float, NumPy or JAX.
  Returns:
    [..., D] of the same kind and type.
  """
  if isinstance(x, np.ndarray):
    return _unit(x, np, lambda scale: scale)
  # Readers of data use NumPy alone, as JAX takes a second to import.
  import jax

  return _unit(x, jax.numpy, jax.lax.stop_gradient)


def _unit(x, xp, constant):
  scale = constant(xp.max(xp.abs(x), axis=-1, keepdims=True))
  x = x / xp.where(scale > 0, scale, 1)
  square = xp.sum(x * x, axis=-1, keepdims=True)
  return x / xp.sqrt(xp.where(square > 0, square, 1))
