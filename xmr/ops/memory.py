"""Zeros that loops write over, made so that XLA neither shares nor hoists them."""

import jax.numpy as jnp


def zeros_after(number, shape, dtype):
  """Returns zeros that are computed from a number: min(|number|, 0).

  XLA stores equal constants once and copies them into every loop that overwrites them. It also
  starts independent loops together, so that all their buffers exist at once. These zeros are no
  constant, and they wait for the number.

  Args:
    number: [] float, computed before the zeros.  shape: tuple of int.  dtype: of the result.
  Returns:
    array of `shape`: zeros, or NaN where the number is NaN.
  """
  return jnp.full(shape, jnp.minimum(jnp.abs(number), 0), dtype)
