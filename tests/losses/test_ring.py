"""The ring forms equal the plain losses in value, terms and gradient on eight devices, and hold no
[B, B].
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from xmr import losses
from xmr.losses import ring

CASES = {
  "sum_of_hinges": {},
  "max_of_hinges": {},
  "info_nce": {},
  "sigmoid": {},
  "imc": {"distance": "l1"},
  "imc l2": {"distance": "l2"},
  "imc msd": {"distance": "msd", "inter": "sum_of_hinges"},
  "imc cosine": {"distance": "cosine", "reduce": "mean"},
  "imc paper l1": {"distance": "l1", "form": "paper", "lower": 1.0, "upper": 5.0},
  "imc paper cosine": {"distance": "cosine", "form": "paper", "upper": 0.9},
}


def mesh(devices):
  return jax.make_mesh(
    (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
  )


def ring_form(name, devices=8, gather=False, **parameters):
  """(image, text, image_id, scalars) -> (loss, terms) on global arrays, through shard_map."""
  function = getattr(ring, f"ring_{name}")

  def local(image, text, image_id, scalars):
    return function(image, text, image_id, axis_name="data", gather=gather, **parameters, **scalars)

  rows = PartitionSpec("data")
  return jax.shard_map(
    local,
    mesh=mesh(devices),
    in_specs=(rows, rows, rows, PartitionSpec()),
    out_specs=(PartitionSpec(), PartitionSpec()),
  )


def batch(seed, size=48, dim=20):
  generator = np.random.default_rng(seed)
  image = 0.2 + generator.normal(size=(size, dim))
  text = image + generator.normal(size=(size, dim))
  image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
  return (
    image.astype(np.float32),
    text.astype(np.float32),
    generator.integers(0, size // 2, size).astype(np.int32),
  )


def assert_equal(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6 * max(1, abs(np.asarray(b)).max()))


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_plain_loss_and_gradient_on_eight_devices(case, gather):
  name, parameters = case.split()[0], CASES[case]
  image, text, image_id = batch(0)
  scalars = {"temperature": 0.2, "bias": -1.0} if name in ("info_nce", "sigmoid") else {}

  def plain(image, text, image_id, scalars):
    match = image_id[:, None] == image_id[None, :]
    return losses.LOSSES[name](image, text, match=match, **parameters, **scalars)

  expected = jax.jit(jax.value_and_grad(plain, (0, 1, 3), has_aux=True))(
    image, text, image_id, scalars
  )
  form = ring_form(name, gather=gather, **parameters)
  found = jax.jit(jax.value_and_grad(form, (0, 1, 3), has_aux=True))(image, text, image_id, scalars)
  assert found[0][1].keys() == expected[0][1].keys()
  assert_equal(found, expected)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(found[1]))


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("case", ["max_of_hinges", "info_nce", "imc", "imc msd", "imc paper l1"])
def test_equals_the_plain_loss_and_gradient_on_one_and_two_devices(case, devices):
  name, parameters = case.split()[0], CASES[case]
  image, text, image_id = batch(3, size=24)

  def plain(image, text):
    match = image_id[:, None] == image_id[None, :]
    return losses.LOSSES[name](image, text, match=match, **parameters)

  form = ring_form(name, devices, **parameters)
  expected = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(image, text)
  found = jax.jit(jax.value_and_grad(lambda *x: form(*x, image_id, {}), (0, 1), has_aux=True))(
    image, text
  )
  assert_equal(found, expected)


@pytest.mark.parametrize("kind", ["identical", "one image", "duplicates"])
@pytest.mark.parametrize("name", ["sum_of_hinges", "max_of_hinges", "info_nce", "sigmoid", "imc"])
@pytest.mark.parametrize("gather", [False, True])
def test_degenerate_batches_equal_the_plain_loss(gather, name, kind):
  image, text, image_id = batch(1, size=16)
  if kind == "identical":
    image, text, image_id = (
      np.full_like(image, 0.25),
      np.full_like(text, 0.25),
      np.arange(16, dtype=np.int32),
    )
  if kind == "one image":
    image_id = np.zeros(16, np.int32)
  if kind == "duplicates":
    image, image_id = image[np.arange(16) // 2], np.arange(16, dtype=np.int32) // 2

  # A power of two, so that equal scores stay equal: which of them is larger would be rounding's
  # choice.
  parameters = {"temperature": 0.5} if name in ("info_nce", "sigmoid") else {}

  def plain(image, text, image_id, scalars):
    return losses.LOSSES[name](
      image, text, match=image_id[:, None] == image_id[None, :], **parameters
    )

  expected = jax.jit(jax.value_and_grad(plain, (0, 1), has_aux=True))(image, text, image_id, {})
  found = jax.jit(
    jax.value_and_grad(ring_form(name, gather=gather, **parameters), (0, 1), has_aux=True)
  )(image, text, image_id, {})
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
  assert_equal(found, expected)


@pytest.mark.parametrize("name", ["sum_of_hinges", "max_of_hinges"])
@pytest.mark.parametrize("gather", [False, True])
def test_rows_that_are_not_finite_are_seen_in_the_loss(name, gather):
  image, text, image_id = batch(4, size=16)
  image[:] = np.nan
  assert np.isnan(jax.jit(ring_form(name, gather=gather))(image, text, image_id, {})[0])


@pytest.mark.parametrize("name", ["max_of_hinges", "imc"])
def test_memory_is_that_of_one_block(name):
  size, dim = 8192, 16
  rows = jax.ShapeDtypeStruct((size, dim), jnp.float32)
  ids = jax.ShapeDtypeStruct((size,), jnp.int32)
  step = jax.jit(jax.value_and_grad(ring_form(name), (0, 1), has_aux=True))
  temporary = step.lower(rows, rows, ids, {}).compile().memory_analysis().temp_size_in_bytes
  # Per device: blocks of [B / 8, B / 8] and rows, where the plain form has [B, B].
  assert temporary <= 10 * 4 * (size // 8) ** 2 < 4 * size**2


def test_errors_name_what_was_found():
  image, text, image_id = batch(2, size=16)
  with pytest.raises(
    ValueError, match=r"image_id has shape \(2, 1\); expected \(2,\) for 2 images"
  ):
    ring_form("max_of_hinges")(image, text, image_id[:, None], {})
