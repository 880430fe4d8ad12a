"""EfficientNetV2: what happens in training, and what a wrong variable does. The proof of every size
is in test_convert.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference

from xmr.models import efficientnet
from xmr.models.efficientnet import Stage

SMALL = (Stage(True, 1, 1, 8, 2), Stage(True, 2, 2, 8, 2), Stage(False, 2, 1, 8, 2))


@pytest.fixture(scope="module")
def small():
  """A network with every kind of block and its random variables."""
  net = efficientnet.EfficientNetV2(SMALL, head=16, drop=0.8)
  variables = jax.jit(net.init)(jax.random.key(0), reference.two_images(32))
  return net, variables


def test_blocks_are_skipped_in_training_only(small):
  net, variables = small
  images = np.repeat(reference.two_images(32)[:1], 64, axis=0)
  still = np.asarray(jax.jit(net.apply)(variables, images))
  # Convolutions of XLA may round rows of a batch differently.
  np.testing.assert_allclose(still, np.repeat(still[:1], 64, axis=0), atol=1e-5)
  trained = jax.jit(functools.partial(net.apply, train=True))
  moved = np.asarray(trained(variables, images, rngs={"dropout": jax.random.key(1)}))
  # Five blocks have a residual and all but the first a chance to be skipped: each image draws its
  # own.
  assert 4 < len(np.unique(moved.round(4), axis=0)) <= 16


def test_skipping_keeps_the_mean():
  block = efficientnet.Block(Stage(True, 1, 1, 3, 1), 1, drop=0.5)
  images = np.repeat(reference.two_images(8)[:1], 4000, axis=0)
  variables = block.init(jax.random.key(0), images[:1])
  branch = block.apply(variables, images[:1]) - images[:1]
  found = block.apply(variables, images, True, rngs={"dropout": jax.random.key(1)}) - images
  np.testing.assert_allclose(found.mean(0), branch[0], atol=0.05 * np.abs(branch).max())


def test_frozen_statistics_do_not_move_and_released_ones_do(small):
  net, variables = small
  images, rngs = reference.two_images(32), {"dropout": jax.random.key(0)}
  for batch_norm, moves in (("frozen", False), ("released", True)):
    _, changed = net.copy(batch_norm=batch_norm).apply(
      variables, images, train=True, rngs=rngs, mutable=["batch_stats"]
    )
    old, new = (
      jax.tree.leaves(variables["batch_stats"]),
      jax.tree.leaves(changed.get("batch_stats", {})),
    )
    assert moves == (bool(new) and any(np.any(a != b) for a, b in zip(old, new, strict=True)))


@pytest.mark.slow
def test_recomputation_changes_nothing_but_memory(small):
  net, variables = small
  images, rngs = reference.two_images(32), {"dropout": jax.random.key(0)}

  def gradient(net):
    return jax.grad(
      lambda p: net.apply(variables | {"params": p}, images, train=True, rngs=rngs).sum()
    )(variables["params"])

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    gradient(net),
    gradient(net.copy(remat=True)),
  )


def test_grid_averages_to_the_features(small):
  net, variables = small
  images = reference.two_images(64)
  grid = net.apply(variables, images, grid=True)
  assert grid.shape == (2, 16, 16, 16)
  np.testing.assert_allclose(grid.mean((1, 2)), net.apply(variables, images), rtol=1e-5)


@pytest.mark.slow
def test_computes_in_bfloat16_with_float32_parameters(small):
  net, variables = small
  found = net.copy(dtype=jnp.bfloat16).apply(variables, reference.two_images(32))
  assert found.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    found.astype(np.float32), net.apply(variables, reference.two_images(32)), atol=0.05
  )


def test_unknown_batch_norm_and_wrong_shape_are_named(small):
  net, _ = small
  with pytest.raises(ValueError, match="batch_norm is 'Frozen'; expected 'frozen' or 'released'"):
    net.copy(batch_norm="Frozen").init(jax.random.key(0), reference.two_images(32))
  with pytest.raises(ValueError, match=r"\(2, 3, 32, 32\); expected \[B, H, W, 3\]"):
    net.init(jax.random.key(0), np.zeros((2, 3, 32, 32), np.float32))
