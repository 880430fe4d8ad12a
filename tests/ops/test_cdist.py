"""Sums over features for all pairs, in tiles and all at once, against the array of all pairs and
features.
"""

import jax
import numpy as np
import pytest

from xmr.ops import cdist

VALUES = {"absolute": np.abs, "shortfall_squared": lambda u: np.minimum(u, 0) ** 2}
SLOPES = {"absolute": np.sign, "shortfall_squared": lambda u: 2 * np.minimum(u, 0)}


def rows(seed, count, dim):
  x = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
  # Equal features and equal rows: there the slope of |u| is 0.
  x[:, 1] = x[0, 1]
  x[-1] = x[0]
  return x


@pytest.mark.parametrize("term", VALUES)
@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("sizes", [(5, 3, 7), (20, 300, 20), (270, 18, 33)])
def test_value_and_gradient_equal_the_definition(term, tiled, sizes):
  n, m, dim = sizes
  x, y = rows(0, n, dim), rows(1, m, dim)
  y[0] = x[0]
  weight = rows(2, n, m)
  difference = x[:, None].astype(np.float64) - y[None]
  found, back = jax.vjp(lambda x, y: cdist.sum_over_features(term, x, y, tiled), x, y)
  np.testing.assert_allclose(found, VALUES[term](difference).sum(axis=2), rtol=1e-5, atol=1e-5)
  slope = weight[..., None] * SLOPES[term](difference)
  for one, expected in zip(back(weight), (slope.sum(axis=1), -slope.sum(axis=0)), strict=True):
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 6, 300])
def test_pairs_of_one_set_are_symmetric_and_equal_rows_have_distance_0(count):
  x = rows(3, count, 20)
  found = np.asarray(jax.jit(lambda x: cdist.sum_over_pairs("absolute", x, tiled=True))(x))
  np.testing.assert_allclose(found, cdist.plain("l1", x), rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(found, found.T)
  assert found[0, -1] == 0 and not found.diagonal().any()
