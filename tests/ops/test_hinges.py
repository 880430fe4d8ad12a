"""Hinges and searches in one pass equal their plain forms, in value and gradient."""

import jax
import numpy as np
import pytest

from xmr.ops import hinges, tiles


def scores(size, seed=0):
  rng = np.random.default_rng(seed)
  # Quarters: some scores are equal, and some hinges are exactly 0.
  return (rng.integers(-8, 9, (size, size)) / 4).astype(np.float32), rng.random((size, size)) < 0.8


@pytest.mark.parametrize("size", [1, 9, 40])
def test_sums_equal_the_plain_form(monkeypatch, size):
  monkeypatch.setattr(tiles, "ROWS", 16)
  x, negative = scores(size)
  positive = x.diagonal()

  def value(function, x, positive):
    i2t, t2i, active = function(0.25, x, positive, negative)
    return 0.5 * i2t + 2 * t2i, active

  found, expected = (
    jax.jit(jax.value_and_grad(lambda *a, f=f: value(f, *a), (0, 1), has_aux=True))(x, positive)
    for f in (hinges.sums, hinges.plain_sums)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, expected)


@pytest.mark.parametrize("size", [1, 9, 40])
def test_the_hardest_equal_the_plain_form(monkeypatch, size):
  monkeypatch.setattr(tiles, "ROWS", 16)
  x, negative = scores(size, seed=1)
  negative[:, 0] = False
  found, expected = (jax.jit(f)(x, negative) for f in (hinges.hardest, hinges.plain_hardest))
  some = negative.any(axis=1), negative.any(axis=0)
  for one, other, counted in zip(found, expected, some, strict=True):
    np.testing.assert_array_equal(np.asarray(one)[counted], np.asarray(other)[counted])
