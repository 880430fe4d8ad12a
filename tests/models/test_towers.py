"""Blocks of towers: recomputed, and trained from a block on."""

import jax
import numpy as np
import pytest

from xmr.models.transformer import Architecture, Transformer
from xmr.models.vit import ViT


def tower(name, **fields):
  """A small tower and an input of it."""
  generator = np.random.default_rng(0)
  if name == "clip":
    image = generator.normal(size=(64, 32, 32, 3)).astype(np.float32)
    return ViT("clip", width=16, layers=4, heads=2, mlp_width=64, patch=8, grid=4, **fields), (
      image,
    )
  ids = generator.integers(5, 50, (64, 24)).astype(np.int32)
  net = Architecture(
    name, vocabulary=50, hidden=16, depth=4, heads=2, intermediate=64, positions=32
  )
  return Transformer(net, **fields), (ids, np.full(64, 20, np.int32))


@pytest.mark.slow
@pytest.mark.parametrize(
  ("name", "trained"), [("clip", -1), ("clip", 1), ("bert", -1), ("mpnet", 1)]
)
def test_recomputed_blocks_give_equal_gradients_in_less_memory(name, trained):
  plain, inputs = tower(name, train_blocks=trained)
  params = jax.jit(plain.init)(jax.random.key(0), *(each[:1] for each in inputs))["params"]

  def compiled(module):
    def loss(params, *inputs):
      found = module.apply({"params": params}, *inputs)
      return ((found[0] if name == "clip" else found) ** 3).sum()

    return jax.jit(jax.value_and_grad(loss)).lower(params, *inputs).compile()

  plain, remat = compiled(plain), compiled(plain.clone(remat=True))
  (value, want), (same, found) = jax.device_get((plain(params, *inputs), remat(params, *inputs)))
  np.testing.assert_allclose(value, same, rtol=1e-5)
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), want, found)
  for part, block in found.items():
    moved = any(np.any(leaf) for leaf in jax.tree.leaves(block))
    behind = ("layer3", "norm") if name == "clip" else ("layer3", "distances")
    assert moved == (trained < 0 or part in behind), part
  if trained < 0:
    saved, kept = (program.memory_analysis().temp_size_in_bytes for program in (remat, plain))
    assert saved < 0.6 * kept, (saved, kept)


@pytest.mark.slow
def test_dropout_of_recomputed_layers_is_their_own():
  net, inputs = tower("bert", remat=True)
  params = jax.jit(net.init)(jax.random.key(0), *(each[:1] for each in inputs))
  params["params"]["layer1"] = params["params"]["layer0"]

  @jax.jit
  def encoded(key):
    return net.apply(params, *inputs, train=True, tokens=True, rngs={"dropout": key})

  first, other = (encoded(jax.random.key(seed))[1] for seed in (0, 1))
  np.testing.assert_array_equal(first, encoded(jax.random.key(0))[1])
  assert np.any(first != other)
