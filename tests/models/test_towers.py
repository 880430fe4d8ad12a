"""Blocks of towers: recomputed, and trained from a block on."""

import jax
import numpy as np
import pytest

from xmr.models.vit import ViT


@pytest.mark.slow
@pytest.mark.parametrize("trained", [-1, 1])
def test_recomputed_blocks_give_equal_gradients_in_less_memory(trained):
  plain = ViT(
    "clip", width=16, layers=4, heads=2, mlp_width=64, patch=8, grid=4, train_blocks=trained
  )
  image = np.random.default_rng(0).normal(size=(64, 32, 32, 3)).astype(np.float32)
  params = jax.jit(plain.init)(jax.random.key(0), image[:1])["params"]

  def compiled(module):
    def loss(params, image):
      return (module.apply({"params": params}, image)[0] ** 3).sum()

    return jax.jit(jax.grad(loss)).lower(params, image).compile()

  plain, remat = compiled(plain), compiled(plain.clone(remat=True))
  want, found = jax.device_get((plain(params, image), remat(params, image)))
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * largest), want, found)
  for name, block in found.items():
    moved = any(np.any(leaf) for leaf in jax.tree.leaves(block))
    assert moved == (trained < 0 or name in ("layer3", "norm")), name
  if trained < 0:
    saved, kept = (program.memory_analysis().temp_size_in_bytes for program in (remat, plain))
    assert saved < 0.6 * kept, (saved, kept)
