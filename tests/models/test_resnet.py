"""ResNet against naive loops, published sizes, and the two ways of BatchNorm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import random_variables

from xmr.models.resnet import RESNETS, ResNet, torchvision_name


def convolve(x, kernel, stride, padding):
  """[B, H, W, C] by [k, k, C, D], one output position at a time."""
  k = kernel.shape[0]
  x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
  rows, columns = (x.shape[1] - k) // stride + 1, (x.shape[2] - k) // stride + 1
  result = np.zeros((x.shape[0], rows, columns, kernel.shape[-1]))
  for i in range(rows):
    for j in range(columns):
      window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
      result[:, i, j] = np.einsum("bhwc,hwcd->bd", window, kernel)
  return result


def pool(x):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  rows, columns = (x.shape[1] - 3) // 2 + 1, (x.shape[2] - 3) // 2 + 1
  return np.stack(
    [
      np.stack([x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2)) for j in range(columns)], 1)
      for i in range(rows)
    ],
    1,
  )


def norm(x, params, stats):
  return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]


def oracle(x, variables, blocks, bottleneck):
  """The published network, written out."""
  params, stats = variables["params"], variables["batch_stats"]
  x = np.maximum(norm(convolve(x, params["conv1"]["kernel"], 2, 3), params["bn1"], stats["bn1"]), 0)
  x = pool(x)
  for stage, count in enumerate(blocks, start=1):
    for i in range(count):
      p, s = params[f"layer{stage}_{i}"], stats[f"layer{stage}_{i}"]
      stride = 2 if stage > 1 and i == 0 else 1
      layers = ((1, 0), (stride, 1), (1, 0)) if bottleneck else ((stride, 1), (1, 1))
      y = x
      for n, (step, padding) in enumerate(layers, start=1):
        y = norm(convolve(y, p[f"conv{n}"]["kernel"], step, padding), p[f"bn{n}"], s[f"bn{n}"])
        y = np.maximum(y, 0) if n < len(layers) else y
      if "downsample_0" in p:
        x = norm(
          convolve(x, p["downsample_0"]["kernel"], stride, 0), p["downsample_1"], s["downsample_1"]
        )
      x = np.maximum(x + y, 0)
  return x


def small(bottleneck=True, **options):
  return ResNet(blocks=(1, 2), bottleneck=bottleneck, width=4, **options)


def images(rows=2, height=21, width=18, seed=0):
  return np.random.default_rng(seed).normal(size=(rows, height, width, 3)).astype(np.float32)


def trained(module):
  """The compiled forward pass of training: (features, updated statistics)."""
  return jax.jit(functools.partial(module.apply, train=True, mutable=["batch_stats"]))


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("size", [(21, 18), (32, 32)])
def test_equals_the_network_written_out(bottleneck, size):
  x = images(height=size[0], width=size[1])
  module = small(bottleneck)
  variables = random_variables(module, x)
  expected = oracle(x.astype(np.float64), variables, (1, 2), bottleneck)
  grid = module.apply(variables, x, grid=True)
  np.testing.assert_allclose(grid, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  np.testing.assert_allclose(module.apply(variables, x), np.asarray(grid).mean((1, 2)), rtol=1e-5)
  assert module.features == grid.shape[-1]
  np.testing.assert_allclose(
    jax.jit(module.apply)(variables, x), module.apply(variables, x), rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize(
  ("name", "published", "features"),
  [
    ("resnet18", 11_689_512, 512),
    ("resnet34", 21_797_672, 512),
    ("resnet50", 25_557_032, 2048),
    ("resnet101", 44_549_160, 2048),
    ("resnet152", 60_192_808, 2048),
  ],
)
def test_parameter_count_is_the_published_one(name, published, features):
  module = ResNet(*RESNETS[name])
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  classifier = features * 1000 + 1000
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == published - classifier
  grid = jax.eval_shape(
    lambda v, x: module.apply(v, x, grid=True), shapes, jnp.zeros((2, 224, 224, 3))
  )
  assert grid.shape == (2, 7, 7, features) and module.features == features


def test_names_are_torchvisions():
  shapes = jax.eval_shape(
    ResNet(*RESNETS["resnet50"]).init, jax.random.key(0), jnp.zeros((1, 64, 64, 3))
  )
  names = {
    torchvision_name([key.key for key in path])
    for path, _ in jax.tree_util.tree_leaves_with_path(shapes["params"])
  }
  assert {
    "conv1.weight",
    "bn1.bias",
    "layer1.0.downsample.0.weight",
    "layer3.5.conv3.weight",
  } <= names
  assert "layer4.0.downsample.1.weight" in names and len(names) == 159
  assert torchvision_name(("layer2_3", "bn2", "mean")) == "layer2.3.bn2.running_mean"
  assert torchvision_name(("layer2_3", "bn2", "var")) == "layer2.3.bn2.running_var"


def test_frozen_batch_norm_keeps_its_statistics_in_training():
  x, module = images(), small(batch_norm="frozen")
  variables = random_variables(module, x)
  y, updates = trained(module)(variables, x)
  np.testing.assert_array_equal(y, jax.jit(module.apply)(variables, x))
  jax.tree.map(np.testing.assert_array_equal, updates["batch_stats"], variables["batch_stats"])


@pytest.mark.slow
def test_released_batch_norm_uses_the_batch_and_moves_its_statistics():
  x, module = images(rows=4), small(batch_norm="released")
  variables = random_variables(module, x)
  stem = convolve(x.astype(np.float64), variables["params"]["conv1"]["kernel"], 2, 3)
  before = variables["batch_stats"]["bn1"]
  step = trained(module)
  y, updates = step(variables, x)
  after = updates["batch_stats"]["bn1"]
  np.testing.assert_allclose(
    after["mean"], 0.9 * before["mean"] + 0.1 * stem.mean((0, 1, 2)), atol=1e-5
  )
  np.testing.assert_allclose(
    after["var"], 0.9 * before["var"] + 0.1 * stem.var((0, 1, 2)), atol=1e-5
  )
  assert np.abs(y - module.apply(variables, x)).max() > 1e-2
  # The same numbers in a batch of eight: in training a row depends on the others.
  np.testing.assert_allclose(
    step(variables, np.concatenate([x, x]))[0][:4], y, rtol=1e-4, atol=1e-4
  )
  assert np.abs(step(variables, x[:2])[0] - y[:2]).max() > 1e-2


@pytest.mark.parametrize("batch_norm", ["frozen", pytest.param("released", marks=pytest.mark.slow)])
def test_recomputed_blocks_give_equal_gradients_in_less_memory(batch_norm):
  x = images(rows=8, height=32, width=32)
  plain = ResNet(blocks=(5,), bottleneck=True, width=4, batch_norm=batch_norm)
  variables = random_variables(plain, x)

  def compiled(module):
    def loss(params, x):
      y, updates = module.apply(
        {**variables, "params": params}, x, train=True, mutable=["batch_stats"]
      )
      return (y**2).sum(), updates["batch_stats"]

    return jax.jit(jax.grad(loss, has_aux=True)).lower(variables["params"], x).compile()

  plain, remat = compiled(plain), compiled(plain.clone(remat=True))
  want, found = jax.device_get((plain(variables["params"], x), remat(variables["params"], x)))
  assert jax.tree.structure(want) == jax.tree.structure(found)
  # Some are zero but for rounding: biases in front of a batch's statistics.
  largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest), want, found
  )
  saved, kept = (program.memory_analysis().temp_size_in_bytes for program in (remat, plain))
  assert saved < 0.8 * kept, (saved, kept)


@pytest.mark.slow
def test_bfloat16_computes_in_half_and_keeps_float32_state():
  x, module = images(height=32, width=32), small(dtype=jnp.bfloat16, batch_norm="released")
  variables = random_variables(module, x)
  half, updates = trained(module)(variables, x)
  assert half.dtype == jnp.bfloat16
  assert {v.dtype for v in jax.tree.leaves((variables, updates))} == {jnp.dtype("float32")}
  full = trained(module.clone(dtype=jnp.float32))(variables, x)[0]
  np.testing.assert_allclose(half.astype(np.float32), full, atol=0.05 * np.abs(full).max())


def test_wrong_input_and_mode_are_named():
  with pytest.raises(ValueError, match=r"\(2, 32, 32, 1\); expected \[B, H, W, 3\]"):
    small().init(jax.random.key(0), jnp.zeros((2, 32, 32, 1)))
  with pytest.raises(ValueError, match="'off'; expected frozen or released"):
    small(batch_norm="off").init(jax.random.key(0), images())
