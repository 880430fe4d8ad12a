"""The one normalisation of rows, on the host and in JAX, for norms of every size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.ops.unit import unit

ROWS = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)


@pytest.mark.parametrize("factor", (1e-34, 1e-25, 1e-12, 1.0, 1e25, 1e37))
def test_rows_of_any_norm_get_length_one_in_both(factor):
  x = (ROWS * np.float64(factor)).astype(np.float32)
  wide = x.astype(np.float64)
  expected = wide / np.linalg.norm(wide, axis=1, keepdims=True)
  for found in (unit(x), jax.jit(unit)(jnp.asarray(x))):
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-7)


def test_subnormal_rows_get_length_one_on_the_host():
  x = np.array([[3e-41, 4e-41], [0, 1e-45]], np.float32)
  np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 1]], atol=1e-4)


def test_a_row_of_zeros_stays_zero_with_a_finite_gradient():
  x = np.stack([np.zeros(7, np.float32), ROWS[0]])
  for found in (unit(x), unit(jnp.asarray(x))):
    assert not np.asarray(found)[0].any()
  slope = jax.grad(lambda x: (unit(x) * ROWS[:2]).sum())(jnp.asarray(x))
  assert np.isfinite(slope).all()


def test_the_gradient_equals_finite_differences():
  x, direction = ROWS[0].astype(np.float64), ROWS[1].astype(np.float64)
  step = 1e-6
  difference = (unit(x + step * direction) - unit(x - step * direction)) @ ROWS[2] / (2 * step)
  slope = jax.grad(lambda x: unit(x) @ ROWS[2])(jnp.asarray(ROWS[0]))
  np.testing.assert_allclose(slope @ direction, difference, rtol=1e-4)
