"""The ring forms equal the plain losses in value, terms and gradient on eight devices, and hold no
[B, B].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest
from jax.sharding import PartitionSpec

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


def ring_form(name, devices=8, gather=False, **parameters):
  """(image, text, image_id, scalars) -> (loss, terms) on global arrays, through shard_map."""
  function = getattr(ring, f"ring_{name}")

  def local(image, text, image_id, scalars):
    return function(image, text, image_id, axis_name="data", gather=gather, **parameters, **scalars)

  rows = PartitionSpec("data")
  return jax.shard_map(
    local,
    mesh=programs.mesh(devices),
    in_specs=(rows, rows, rows, PartitionSpec()),
    out_specs=(PartitionSpec(), PartitionSpec()),
  )


def plain_form(name, **parameters):
  """The plain loss of the same arguments."""

  def plain(image, text, image_id, scalars):
    match = image_id[:, None] == image_id[None, :]
    return losses.LOSSES[name](image, text, match=match, **parameters, **scalars)

  return plain


@functools.cache
def program(case, devices=None, gather=False):
  """Value and gradient of a case, jitted: the ring form, or without devices the plain form."""
  name, parameters = case.split()[0], CASES[case]
  form = (
    ring_form(name, devices, gather, **parameters) if devices else plain_form(name, **parameters)
  )
  return jax.jit(jax.value_and_grad(form, (0, 1, 3), has_aux=True))


def batch(seed, size=16, dim=20):
  generator = np.random.default_rng(seed)
  image = 0.2 + generator.normal(size=(size, dim))
  text = image + generator.normal(size=(size, dim))
  image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
  return (
    image.astype(np.float32),
    text.astype(np.float32),
    generator.integers(0, size // 2, size).astype(np.int32),
  )


def scalars(case, temperature=0.2, bias=-1.0):
  learned = {"temperature": np.float32(temperature), "bias": np.float32(bias)}
  return learned if case in ("info_nce", "sigmoid") else {}


def assert_equal(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-6 * max(1, abs(np.asarray(b)).max()))


@pytest.mark.parametrize(
  "case, gather",
  [(case, False) for case in CASES]
  + [pytest.param(case, True, marks=pytest.mark.slow) for case in CASES],
)
def test_equals_the_plain_loss_and_gradient_on_eight_devices(case, gather):
  arguments = *batch(0), scalars(case)
  expected, found = program(case)(*arguments), program(case, 8, gather)(*arguments)
  assert found[0][1].keys() == expected[0][1].keys()
  assert_equal(found, expected)
  assert any(np.any(leaf) for leaf in jax.tree.leaves(found[1]))


@pytest.mark.parametrize(
  "case, devices",
  [("max_of_hinges", 1), ("max_of_hinges", 2), ("imc", 2)]
  + [
    pytest.param(*each, marks=pytest.mark.slow)
    for each in (("info_nce", 2), ("imc msd", 2), ("imc paper l1", 2), ("imc", 1))
  ],
)
def test_equals_the_plain_loss_and_gradient_on_one_and_two_devices(case, devices):
  arguments = *batch(3), scalars(case)
  assert_equal(program(case, devices)(*arguments), program(case)(*arguments))


@pytest.mark.parametrize("kind", ["identical", "one image", "duplicates"])
@pytest.mark.parametrize("case", ["sum_of_hinges", "max_of_hinges", "info_nce", "sigmoid", "imc"])
@pytest.mark.parametrize("gather", [False, True])
def test_degenerate_batches_equal_the_plain_loss(gather, case, kind):
  image, text, image_id = batch(1)
  if kind == "identical":
    # Of 16 entries that are powers of two: a dot product has one value in every order.
    image, text, image_id = np.zeros_like(image), np.zeros_like(text), np.arange(16, dtype=np.int32)
    image[:, :16] = text[:, :16] = 0.25
  if kind == "one image":
    image_id = np.zeros(16, np.int32)
  if kind == "duplicates":
    image, image_id = image[np.arange(16) // 2], np.arange(16, dtype=np.int32) // 2
  # A power of two, so that equal scores stay equal: which of them is larger would be rounding's
  # choice.
  arguments = image, text, image_id, scalars(case, temperature=0.5, bias=0.0)
  found = program(case, 8, gather)(*arguments)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
  assert_equal(found, program(case)(*arguments))


@pytest.mark.parametrize("name", ["sum_of_hinges", "max_of_hinges"])
@pytest.mark.parametrize("gather", [False, True])
def test_rows_that_are_not_finite_are_seen_in_the_loss(name, gather):
  image, text, image_id = batch(4)
  image[:] = np.nan
  assert np.isnan(program(name, 8, gather)(image, text, image_id, {})[0][0])


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
