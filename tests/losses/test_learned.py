"""Scalars of a loss that are learned: where they start, what their gradient is, how far they go."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmr import losses, parallel

B, D = 8, 6


def rows(seed=0):
  x = np.random.default_rng(seed).normal(size=(2, B, D))
  return tuple((x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32))


def bound_of(name, form):
  if form == "plain":
    return losses.get(name, learn=("temperature", "bias"))
  ring = losses.get_ring(name, learn=("temperature", "bias"))
  over = parallel.over_rows(parallel.mesh(), ring, gather=form == "gathered")
  return losses.Bound(name, over, ring.tensors, {}, ring.learned)


@pytest.mark.parametrize("form", ["plain", "ring", "gathered"])
@pytest.mark.parametrize("name", ["info_nce", "sigmoid"])
def test_the_gradient_of_a_scalar_equals_finite_differences(name, form):
  image, text = rows()
  bound = bound_of(name, form)
  stored = losses.get(name, learn=("temperature", "bias"), temperature=0.5, bias=-1.0).start()
  tensors = {"image": image, "text": text, "match": None, "image_id": None}

  @jax.jit
  def value(stored):
    return bound.of(tensors, stored)[0]

  gradient = jax.jit(jax.grad(value))(stored)
  for key in stored:
    step = 1e-2
    high, low = (value({**stored, key: np.float32(stored[key] + s)}) for s in (step, -step))
    np.testing.assert_allclose(gradient[key], (high - low) / (2 * step), rtol=2e-3, atol=2e-4)
  # A bias cancels in the softmax; everything else moves the loss.
  assert abs(gradient["temperature"]) > 1e-3
  assert (abs(gradient["bias"]) > 1e-3) == (name == "sigmoid")


def test_scalars_start_as_published():
  clip = losses.get("info_nce", learn=("temperature",))
  assert clip.start() == {"temperature": np.float32(math.log(0.07))}
  siglip = losses.get("sigmoid", learn=("temperature", "bias"))
  assert siglip.start() == {"temperature": np.float32(math.log(0.1)), "bias": -10.0}
  image, text = rows()
  for bound in (clip, siglip):
    tensors = {"image": image, "text": text}
    learned, terms = bound.of(tensors, bound.start())
    np.testing.assert_allclose(learned, bound(image, text)[0], rtol=1e-5)
    assert set(bound.learned) <= set(terms)


def test_what_is_not_learned_is_ignored_by_a_loss_without_it():
  image, text = rows()
  warmup = losses.get("sum_of_hinges")
  stored = losses.get("info_nce", learn=("temperature",)).start()
  found = warmup.of({"image": image, "text": text}, stored)[0]
  assert found == losses.sum_of_hinges(image, text)[0]


def test_the_temperature_of_clip_stays_above_a_hundredth():
  bound = losses.get("info_nce", learn=("temperature", "bias"))
  params = {"loss": {"temperature": np.float32(math.log(0.011)), "bias": np.float32(0)}, "w": 1.0}
  transform = optax.chain(optax.sgd(1.0), bound.projection())
  state = transform.init(params)
  gradient = {"loss": {"temperature": np.float32(3.0), "bias": np.float32(3.0)}, "w": 0.5}
  updates, _ = jax.jit(transform.update)(gradient, state, params)
  after = optax.apply_updates(params, updates)
  np.testing.assert_allclose(jnp.exp(after["loss"]["temperature"]), 0.01, rtol=1e-6)
  assert after["loss"]["bias"] == -3.0 and after["w"] == 0.5


def test_a_step_moves_the_scalar_by_its_own_rate():
  from xmr.config import base_config
  from xmr.training import optim

  config = base_config()
  config.optimizer.multipliers = (("^loss/", 10.0),)
  config.optimizer.clip, config.optimizer.weight_decay = 0.0, 0.5
  params = {"loss": {"temperature": np.float32(0.0)}, "w": np.zeros((2,), np.float32)}
  transform, _ = optim.make(config.optimizer, params, steps_per_epoch=10, total_steps=10)
  gradient = jax.tree.map(np.ones_like, params)
  updates, _ = jax.jit(transform.update)(gradient, transform.init(params), params)
  np.testing.assert_allclose(updates["loss"]["temperature"], 10 * updates["w"][0], rtol=1e-5)
