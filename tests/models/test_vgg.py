"""VGG19 against torchvision, at sizes where its pooling has work to do and where it has none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_reference as reference

from xmr.interop.torch_files import compare, template
from xmr.models import vgg


@pytest.fixture(scope="module")
def narrow():
  """A PyTorch VGG19 with 32 units in fc6 and fc7, our module and its variables."""
  model = reference.narrow_vgg()
  ours = vgg.VGG(hidden=32)
  shapes = template(ours, jax.ShapeDtypeStruct((1, 64, 64, 3), np.float32))
  variables, problems = compare(shapes, reference.tensors(model), name=vgg.torchvision_name)
  assert not problems
  return model, ours, variables


@pytest.mark.parametrize(
  "size", [32, (96, 40), *(pytest.param(each, marks=pytest.mark.slow) for each in (64, 224))]
)
def test_equals_torchvision_at_any_size(narrow, size):
  model, ours, variables = narrow
  height, width = size if isinstance(size, tuple) else (size, size)
  images = np.random.default_rng(3).standard_normal((2, height, width, 3)).astype(np.float32)
  found = jax.jit(ours.apply)(variables, images)
  assert found.shape == (2, 32)
  assert reference.relative_difference(found, reference.features(model, images)) < 1e-4


def test_planted_faults_are_caught(narrow):
  model, ours, variables = narrow
  images, apply = reference.two_images(), jax.jit(ours.apply)
  want = reference.features(model, images)
  for path, change in [
    (("features_0", "kernel"), lambda kernel: kernel[::-1]),
    (("features_34", "kernel"), lambda kernel: kernel[:, ::-1]),
    (("features_16", "bias"), np.zeros_like),
    # Height, width, channel instead of channel, height, width in front of fc6.
    (
      ("fc6", "kernel"),
      lambda kernel: kernel.reshape(512, 7, 7, -1).transpose(1, 2, 0, 3).reshape(kernel.shape),
    ),
  ]:
    wrong = reference.changed(variables, "params", path, change)
    assert reference.relative_difference(apply(wrong, images), want) > 1e-3, path


def test_dropout_acts_in_training_only(narrow):
  _, ours, variables = narrow
  images = reference.two_images()
  still = ours.apply(variables, images)
  np.testing.assert_array_equal(
    still, ours.apply(variables, images, rngs={"dropout": jax.random.key(0)})
  )
  moved = ours.apply(variables, images, train=True, rngs={"dropout": jax.random.key(0)})
  assert np.mean(np.asarray(moved) == 0) > np.mean(np.asarray(still) == 0)


def test_grid_is_the_map_before_fc6(narrow):
  model, ours, variables = narrow
  import torch

  images = reference.two_images()
  with torch.no_grad():
    want = model.avgpool(model.features(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())))
  found = ours.apply(variables, images, grid=True)
  np.testing.assert_allclose(found, want.numpy().transpose(0, 2, 3, 1), atol=1e-4)


@pytest.mark.slow
def test_recomputation_changes_nothing_but_memory():
  images = reference.two_images(32)
  plain, saving = (
    vgg.VGG(layers=(4, "pool", 8, "pool"), hidden=4, remat=remat) for remat in (False, True)
  )
  variables = plain.init(jax.random.key(0), images)
  gradients = [
    jax.grad(lambda variables, net=net: net.apply(variables, images).sum())(variables)
    for net in (plain, saving)
  ]
  jax.tree.map(np.testing.assert_allclose, *gradients)


def test_computes_in_bfloat16_with_float32_parameters():
  net = vgg.VGG(layers=(4, "pool"), hidden=4, dtype=jnp.bfloat16)
  found, variables = net.init_with_output(jax.random.key(0), reference.two_images(32))
  assert found.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


def test_wrong_shape_is_named():
  with pytest.raises(
    ValueError, match=r"\(2, 16, 16, 3\); expected \[B, H, W, 3\] with H and W at least 32"
  ):
    vgg.VGG(hidden=4).init(jax.random.key(0), np.zeros((2, 16, 16, 3)))
