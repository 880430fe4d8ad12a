"""InfoNCE and sigmoid losses against loops over pairs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from xmr.losses import info_nce, sigmoid

LOSSES = {"info_nce": info_nce, "sigmoid": sigmoid}
IDS = np.array([0, 1, 2, 0, 4, 5, 2, 2])


def unit_rows(seed, batch=8, dim=5):
  x = np.random.default_rng(seed).normal(size=(2, batch, dim))
  return (x / np.linalg.norm(x, axis=2, keepdims=True)).astype(np.float32)


def loss_by_loops(name, image, text, match, temperature, bias):
  batch = len(image)
  logits = image.astype(float) @ text.astype(float).T / temperature + bias
  total = 0.0
  for n in range(batch):
    negatives = [m for m in range(batch) if m != n and not match[n][m]]
    if name == "sigmoid":
      total += np.log1p(np.exp(-logits[n, n])) + sum(
        np.log1p(np.exp(logits[n, m])) for m in negatives
      )
    else:
      for row in (logits[n], logits[:, n]):
        total += np.log(np.exp(row[n]) + sum(np.exp(row[m]) for m in negatives)) / 2 - row[n] / 2
  return total / batch


@pytest.mark.parametrize("match", [np.eye(8, dtype=bool), IDS[:, None] == IDS])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_loops(name, match):
  image, text = unit_rows(0)
  loss, terms = LOSSES[name](image, text, match=match, temperature=0.2, bias=-1.5)
  np.testing.assert_allclose(loss, loss_by_loops(name, image, text, match, 0.2, -1.5), rtol=1e-5)
  assert {"i2t", "t2i", "active"} <= set(terms)
  assert 0 < terms["active"] < 1


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope_in_temperature_and_bias_too(name):
  with jax.enable_x64(True):
    image, text = unit_rows(1).astype(np.float64)
    match = IDS[:, None] == IDS

    @jax.jit
    def loss(image, text, temperature, bias):
      return LOSSES[name](image, text, match=match, temperature=temperature, bias=bias)[0]

    check_grads(loss, (image, text, 0.3, -2.0), order=1, modes=["rev"], rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", ["one", "zeros", "identical", "all match"])
def test_degenerate_batches_have_finite_gradients(name, batch):
  image, text = unit_rows(2, batch=1 if batch == "one" else 5)
  match = np.ones((5, 5), bool) if batch == "all match" else None
  if batch == "zeros":
    image, text = 0 * image, 0 * text
  if batch == "identical":
    image = text = np.ones_like(image)
  value_and_grad = jax.value_and_grad(
    lambda i, t: LOSSES[name](i, t, match=match, temperature=0.01)[0], (0, 1)
  )
  loss, gradients = jax.jit(value_and_grad)(image, text)
  assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)
  if name == "info_nce" and batch in ("one", "all match"):
    assert loss == 0
  if name == "info_nce" and batch in ("zeros", "identical"):
    np.testing.assert_allclose(loss, np.log(5), rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_same_on_eight_devices_and_in_bfloat16(name):
  image, text = unit_rows(3, batch=32, dim=24)
  value_and_grad = jax.value_and_grad(lambda i, t: LOSSES[name](i, t), (0, 1), has_aux=True)
  expected = jax.jit(value_and_grad)(image, text)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  found = jax.jit(value_and_grad)(*jax.device_put((image, text), rows))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (image, text)]
  run = jax.jit(LOSSES[name])
  loss, _ = run(*half)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, run(*(np.asarray(x, np.float32) for x in half))[0], rtol=1e-6)
