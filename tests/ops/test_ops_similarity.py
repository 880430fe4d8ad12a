"""Similarities of embeddings against the released order similarity and loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from xmr.ops.similarity import VECTORS, rowwise, similarity


def rows(seed, count, dim=7):
  return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def pair_by_loops(image, text, kind):
  if kind == "order":
    return -np.sqrt(
      sum(max(0.0, t - v) ** 2 for v, t in zip(image.astype(float), text, strict=True))
    )
  dot = sum(v * t for v, t in zip(image.astype(float), text, strict=True))
  return (
    dot
    if kind == "dot"
    else dot / np.sqrt(sum(image.astype(float) ** 2) * sum(text.astype(float) ** 2))
  )


@pytest.mark.parametrize("dim", [1, 7, 16, 33])
@pytest.mark.parametrize("kind", VECTORS)
def test_equals_loops_in_both_directions(kind, dim):
  image, text = rows(0, 6, dim), rows(1, 9, dim)
  expected = np.array([[pair_by_loops(v, t, kind) for t in text] for v in image])
  np.testing.assert_allclose(similarity(image, text, kind=kind), expected, atol=2e-6)
  np.testing.assert_allclose(
    similarity(text, image, kind=kind, text_query=True), expected.T, atol=2e-6
  )
  np.testing.assert_allclose(rowwise(image, text[:6], kind=kind), np.diagonal(expected), atol=2e-6)


def test_order_equals_the_released_code(golden):
  stored = golden("order_similarity")
  found = similarity(stored["image"], stored["text"], kind="order")
  np.testing.assert_allclose(found, stored["order_similarity"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", VECTORS)
def test_gradient_is_the_slope(kind):
  with jax.enable_x64(True):
    image, text = rows(2, 5).astype(np.float64), rows(3, 4).astype(np.float64)
    weight = rows(4, 5, 4).astype(np.float64)
    check_grads(
      jax.jit(lambda v, t: jnp.sum(weight * similarity(v, t, kind=kind))),
      (image, text),
      order=1,
      modes=["rev"],
      rtol=1e-5,
    )


@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("value", [0.0, 1.0, 1e-25])
def test_zero_equal_and_tiny_rows_have_finite_gradients(kind, value):
  x = np.full((3, 4), value, np.float32)
  scores, gradient = jax.jit(jax.value_and_grad(lambda x: jnp.sum(similarity(x, x, kind=kind))))(x)
  assert np.isfinite(scores) and np.isfinite(gradient).all()
  if kind == "cosine":
    np.testing.assert_allclose(scores, 0 if value == 0 else 9, rtol=1e-6)


def test_errors_name_what_was_found():
  with pytest.raises(ValueError, match=r"query has shape \(2, 7\) and gallery \(3, 5\)"):
    similarity(rows(0, 2), rows(1, 3, 5))
  with pytest.raises(ValueError, match="kind is 'l2'; expected one of cosine, dot, order"):
    similarity(rows(0, 2), rows(1, 3), kind="l2")
