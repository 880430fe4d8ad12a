"""Passes in tiles equal passes at once, and NumPy: sums, maps, the largest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.ops import tiles

COUNTS = [1, 6, 300, 512]


def matrix(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("tiled", [True, False])
def test_one_pass_takes_each_row_once(count, tiled):
  x, y = matrix(0, count, 9), matrix(1, count, 9)

  def function(number, a, b):
    scaled = a * (number[:, None] + 1)
    return (scaled, b), (scaled,), (a > b, scaled)

  sums, totals, kept = jax.jit(lambda x, y: tiles.one_pass(function, x, y, tiled=tiled))(x, y)
  scaled = x * (np.arange(count, dtype=np.float32)[:, None] + 1)
  for found, expected in zip(sums, (scaled, y), strict=True):
    np.testing.assert_allclose(found, expected.sum(axis=1), rtol=1e-4, atol=1e-3)
  np.testing.assert_allclose(totals[0], scaled.sum(axis=0), rtol=1e-4, atol=1e-2)
  np.testing.assert_array_equal(kept[0], x > y)
  np.testing.assert_array_equal(kept[1], scaled)
  np.testing.assert_array_equal(
    jax.jit(lambda x: tiles.sum_of_rows(lambda i, a: a, x, tiled=tiled))(y), sums[1]
  )


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("tiled", [True, False])
def test_rows_are_mapped_once(count, tiled):
  x = matrix(2, count, 9)
  mapped = jax.jit(
    lambda x: tiles.map_rows(lambda number, part: part * (number[:, None] + 1), x, tiled=tiled)
  )(x)
  np.testing.assert_array_equal(mapped, x * (np.arange(count, dtype=np.float32)[:, None] + 1))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("tiled", [True, False])
def test_of_equally_large_entries_the_first_counts(count, tiled):
  x = np.random.default_rng(3).integers(4, size=(count, 7)).astype(np.float32)
  x[count // 2] = -np.inf
  x[:, 3] = -np.inf
  of_row, of_column = jax.jit(
    lambda x: tiles.largest_of_both(lambda number, part: part, x, tiled=tiled)
  )(x)
  np.testing.assert_array_equal(of_row, x.argmax(axis=1))
  np.testing.assert_array_equal(of_column, x.argmax(axis=0))
  for axis in (0, 1):
    value, place = tiles.largest(jnp.asarray(x), axis=axis)
    np.testing.assert_array_equal(value, x.max(axis=axis))
    np.testing.assert_array_equal(place, x.argmax(axis=axis))


def test_the_index_of_nan_lies_inside():
  value, place = tiles.largest(jnp.array([[1.0, np.nan, 2.0]]), axis=1)
  assert np.isnan(value[0]) and 0 <= place[0] < 3
