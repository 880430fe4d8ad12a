"""Zeros that loops write over, made so that XLA neither shares nor hoists them."""

import jax.numpy as jnp


def zeros_after(number, shape, dtype):
  """Returns zeros that are computed from a number: min(|number|, 0).

  XLA keeps equal constants once and copies them into every loop that writes over them, and it
  starts independent loops together, so that the buffers of all are alive at once. These zeros are
  no constant, and wait for the number.

  Args:
    number: [] float, what is to be finished before.  shape: tuple of int.  dtype: of the result.
  Returns:
    array of `shape`: zeros, or NaN where the number is NaN.
  """
  return jnp.full(shape, jnp.minimum(jnp.abs(number), 0), dtype)
