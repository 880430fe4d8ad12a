"""Encoders of pixels: standardising, the small network, and a backbone with its projection, frozen
or not.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import random_variables

from xmr.models import image as image_module
from xmr.models.image import ConvNet, PretrainedEncoder, backbone, standardize
from xmr.models.resnet import ResNet


@pytest.fixture
def tiny(monkeypatch):
  """PretrainedEncoder(**options) on a ResNet of two blocks."""
  network = functools.partial(ResNet, blocks=(1, 1), bottleneck=False, width=8)
  monkeypatch.setitem(image_module.BACKBONES, "tiny", network)
  return functools.partial(PretrainedEncoder, arch="tiny", dim=6)


def pixels(rows=3, size=32, seed=0):
  return np.random.default_rng(seed).integers(0, 256, (rows, size, size, 3), np.uint8)


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


def convolve(x, kernel, bias):
  """3 x 3, stride 2, one row and column of zeros around."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  size = (x.shape[1] - 3) // 2 + 1
  result = np.zeros((x.shape[0], size, size, kernel.shape[-1]))
  for i in range(size):
    for j in range(size):
      result[:, i, j] = (
        np.einsum("bhwc,hwcd->bd", x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3], kernel) + bias
      )
  return result


def group_norm(x, params, groups=8):
  y = x.reshape(*x.shape[:3], groups, -1)
  y = (y - y.mean((1, 2, 4), keepdims=True)) / np.sqrt(y.var((1, 2, 4), keepdims=True) + 1e-6)
  return y.reshape(x.shape) * params["scale"] + params["bias"]


def test_pixels_are_standardized_with_imagenets_values():
  x = pixels()
  red = (x[1, 2, 3, 0] / 255 - 0.485) / 0.229
  blue = (x[1, 2, 3, 2] / 255 - 0.406) / 0.225
  y = standardize(x)
  np.testing.assert_allclose([y[1, 2, 3, 0], y[1, 2, 3, 2]], [red, blue], rtol=1e-5)
  assert y.dtype == jnp.float32 and standardize(x, dtype=jnp.bfloat16).dtype == jnp.bfloat16


def test_convnet_is_the_network_written_out():
  x = pixels(size=24)
  module = ConvNet(dim=7)
  variables = random_variables(module, x)
  params = variables["params"]
  y = np.asarray(standardize(x), np.float64)
  patches = np.zeros((3, 6, 6, 32))
  for i in range(6):
    for j in range(6):
      patch = y[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(3, 48)
      patches[:, i, j] = patch @ params["patch"]["kernel"] + params["patch"]["bias"]
  y = np.maximum(group_norm(patches, params["norm_0"]), 0)
  for i in (1, 2):
    y = convolve(y, params[f"conv_{i}"]["kernel"], params[f"conv_{i}"]["bias"])
    y = np.maximum(group_norm(y, params[f"norm_{i}"]), 0)
  y = np.concatenate([y.reshape(3, -1), y.mean((1, 2))], axis=1)
  y = unit(y @ params["projection"]["kernel"] + params["projection"]["bias"])
  np.testing.assert_allclose(module.apply(variables, x), y, atol=1e-5)
  np.testing.assert_allclose(jax.jit(module.apply)(variables, x), y, atol=1e-5)


@pytest.mark.parametrize("size", [64, 96])
def test_convnet_sees_where_something_is(size):
  scenes = np.zeros((3, size, size, 3), np.uint8)
  for row, corner in enumerate((16, 32, 16)):
    scenes[row, corner : corner + 16, corner : corner + 16, 0] = 255
  module = ConvNet(dim=32)
  a, b, c = np.asarray(module.apply(random_variables(module, scenes), scenes))
  # The mean of the grid alone moves by less than 1e-6.
  assert np.abs(a - b).max() > 0.01 and np.abs(a - c).max() < 1e-5


def test_convnet_in_bfloat16_stays_near():
  x, module = pixels(size=64), ConvNet(dim=32, dtype=jnp.bfloat16)
  variables = random_variables(module, x)
  half, full = module.apply(variables, x), ConvNet(dim=32).apply(variables, x)
  assert {v.dtype for v in jax.tree.leaves(variables)} == {jnp.dtype("float32")} == {half.dtype}
  assert 0 < np.abs(half - full).max() < 0.03


@pytest.mark.parametrize(
  "x",
  [
    np.zeros((2, 32, 32, 3), np.float32),
    np.zeros((2, 9), np.float32),
    np.zeros((2, 32, 32, 1), np.uint8),
  ],
)
def test_what_is_no_image_is_refused(x, tiny):
  for module in (ConvNet(dim=4), tiny()):
    with pytest.raises(ValueError, match="expected .B, H, W, 3. uint8 pixels") as error:
      module.init(jax.random.key(0), x)
    assert str(x.shape) in str(error.value) and str(x.dtype) in str(error.value)


def test_convnet_names_a_size_that_has_no_whole_patches():
  with pytest.raises(ValueError, match="30 x 30 pixels; convnet expects multiples of 4"):
    ConvNet(dim=4).init(jax.random.key(0), pixels(size=30))


@pytest.mark.parametrize("input_norm", [False, True])
def test_backbone_is_projected_as_published(tiny, input_norm):
  x, module = pixels(), tiny(input_norm=input_norm)
  variables = random_variables(module, x)
  assert set(variables["params"]) == {"backbone", "projection"}
  feature = module.apply(variables, x, method="features")
  assert feature.shape == (3, 16)
  layer = variables["params"]["projection"]
  layer["bias"] = np.linspace(-1, 1, 6, dtype=np.float32)
  y = (unit(feature) if input_norm else feature) @ layer["kernel"] + layer["bias"]
  np.testing.assert_allclose(module.apply(variables, x), unit(y), atol=1e-6)


def loss_gradient(module, variables, x):
  def loss(params):
    y, updates = module.apply(
      {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
    )
    return y[:, 0].sum(), updates

  return jax.jit(jax.grad(loss, has_aux=True))


def test_frozen_backbone_has_no_gradient_and_no_backward_pass(tiny):
  x = pixels()
  variables = random_variables(tiny(), x)
  cost = {}
  for trainable in (True, False):
    step = (
      loss_gradient(tiny(trainable=trainable), variables, x).lower(variables["params"]).compile()
    )
    gradient, _ = step(variables["params"])
    moved = [np.abs(g).max() > 0 for g in jax.tree.leaves(gradient["backbone"])]
    assert all(moved) if trainable else not any(moved)
    assert np.abs(gradient["projection"]["kernel"]).max() > 0
    cost[trainable] = step.cost_analysis()["flops"]
  assert cost[False] < 0.5 * cost[True]


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("batch_norm", ["frozen", "released"])
def test_released_statistics_move_even_when_frozen(tiny, trainable, batch_norm):
  x, module = pixels(), tiny(trainable=trainable, batch_norm=batch_norm)
  variables = random_variables(module, x)
  _, updates = loss_gradient(module, variables, x)(variables["params"])
  before, after = jax.tree.leaves(variables["batch_stats"]), jax.tree.leaves(updates["batch_stats"])
  moved = [np.any(a != b) for a, b in zip(before, after, strict=True)]
  assert all(moved) if batch_norm == "released" else not any(moved)


def test_options_reach_the_backbone():
  network = backbone("resnet18", batch_norm="released", remat=True, dtype=jnp.bfloat16)
  assert (network.batch_norm, network.remat, network.dtype) == ("released", True, jnp.bfloat16)
  assert {backbone(name).features for name in image_module.BACKBONES} == {512, 2048, 4096, 1280}


def test_backbone_in_bfloat16_gives_float32_unit_rows(tiny):
  x = pixels()
  variables = random_variables(tiny(), x)
  half, full = tiny(dtype=jnp.bfloat16).apply(variables, x), tiny().apply(variables, x)
  assert half.dtype == jnp.float32 and 0 < np.abs(half - full).max() < 0.05
  np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 1, atol=1e-6)
