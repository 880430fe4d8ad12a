"""The intra-modal constraint: released code, loops, direction of its pull, exact thresholds,
memory.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from xmr.losses import imc, intra_modal_constraint, max_of_hinges, sum_of_hinges
from xmr.losses.intra import plain_constraint
from xmr.ops import tiles

DISTANCES = ("l1", "l2", "msd", "cosine")
FORMS = ("released", "paper")


def unit_rows(seed, batch=14, dim=6, spread=1.0):
  x = 0.4 + spread * np.random.default_rng(seed).normal(size=(batch, dim))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def distance_by_loops(a, b, distance):
  a, b = a.astype(float), b.astype(float)
  if distance == "cosine":
    return 1 - sum(a * b)
  total = sum(abs(a - b)) if distance == "l1" else sum((a - b) ** 2)
  return np.sqrt(total) if distance == "l2" else total


def constraint_by_loops(x, distance, lower, upper, form):
  batch = len(x)
  total = 0.0
  rows = [[distance_by_loops(a, b, distance) for b in x] for a in x]
  if form == "released" and distance != "cosine":
    rows = [np.array(row) / max(np.linalg.norm(row), 1e-12) for row in rows]
    first = sorted(rows[0])
    lower, upper = first[round(lower * batch)], first[round(upper * batch)]
  for n, m in itertools.product(range(batch), repeat=2):
    if n != m and lower < rows[n][m] < upper:
      total += 1 - rows[n][m] if form == "released" and distance == "cosine" else rows[n][m]
  return total / batch


BOUNDS = {"l1": (0.3, 1.5), "l2": (0.2, 1.0), "msd": (0.05, 0.8), "cosine": (0.05, 0.5)}


@pytest.mark.parametrize("batch", [2, 3, 10, 14, 30])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_loops(distance, form, batch):
  x = unit_rows(batch, batch)
  # B = 10 and 30 put lower B at 0.5 and 1.5: Python rounds them to 0 and 2.
  lower, upper = BOUNDS[distance] if form == "paper" else (0.05, 0.5)
  expected = constraint_by_loops(x, distance, lower, upper, form)
  found = intra_modal_constraint(x, distance=distance, lower=lower, upper=upper, form=form)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_plain_form_in_value_and_gradient(distance, form):
  lower, upper = BOUNDS[distance] if form == "paper" else (0.05, 0.5)
  bounds = {"lower": lower, "upper": upper}
  fast, plain = (
    jax.jit(jax.value_and_grad(lambda x, f=f: f(x, distance=distance, form=form, **bounds)))
    for f in (intra_modal_constraint, plain_constraint)
  )
  for seed in range(4):
    x = unit_rows(seed, batch=24)
    # Equal rows, but not row 0: two roundings of its threshold may differ.
    x[5] = x[7]
    for found, expected in zip(fast(x), plain(x), strict=True):
      np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("file", ["spread", "paired", "collapsed"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_equals_the_released_code(golden, distance, file):
  stored = golden(f"imc_losses_{file}")
  value, gradient = jax.jit(
    jax.value_and_grad(lambda x: intra_modal_constraint(x, distance=distance))
  )(stored["image"])
  np.testing.assert_allclose(value, stored[f"intra_{distance}"], rtol=1e-5)
  expected = stored[f"intra_{distance}_grad_image"]
  np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_slope_with_the_band_held(distance, form):
  with jax.enable_x64(True):
    lower, upper = BOUNDS[distance] if form == "paper" else (0.05, 0.5)
    check_grads(
      jax.jit(
        lambda x: intra_modal_constraint(x, distance=distance, lower=lower, upper=upper, form=form)
      ),
      (unit_rows(1).astype(np.float64),),
      order=1,
      modes=["rev"],
      rtol=1e-5,
      eps=1e-7,
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_direction_pulls_but_the_released_cosine_pushes(distance, form):
  x = unit_rows(2, batch=24)
  lower, upper = BOUNDS[distance] if form == "paper" else (0.05, 0.5)
  gradient = jax.grad(
    lambda x: intra_modal_constraint(x, distance=distance, lower=lower, upper=upper, form=form)
  )(x)
  before = np.array([[distance_by_loops(a, b, distance) for b in x] for a in x])
  moved = x - 1e-3 * gradient / np.linalg.norm(gradient)
  after = np.array([[distance_by_loops(a, b, distance) for b in moved] for a in np.asarray(moved)])
  shares = before
  if form == "released" and distance == "cosine":
    lower, upper = 0.05, 0.5
  elif form == "released":
    shares = before / np.linalg.norm(before, axis=1, keepdims=True)
    lower, upper = np.sort(shares[0])[[round(0.05 * 24), round(0.5 * 24)]]
  band = (lower < shares) & (shares < upper)
  change = (after - before)[band].mean()
  if form == "released" and distance == "cosine":
    assert change > 1e-6, "the released cosine form pushes"
  else:
    assert change < -1e-6, "pulls"


@pytest.mark.parametrize("distance", ["l1", "l2", "msd"])
def test_entries_equal_to_a_threshold_are_outside(distance):
  # Row 0 alone has both thresholds among its own entries; a threshold rounded differently would let
  # them in.
  value_and_grad = jax.jit(
    jax.value_and_grad(lambda x: intra_modal_constraint(x, distance=distance))
  )
  for seed in range(20):
    x = unit_rows(seed, batch=20, dim=33)
    value, gradient = value_and_grad(x)
    np.testing.assert_allclose(
      value, constraint_by_loops(x, distance, 0.05, 0.5, "released"), rtol=1e-5
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch", ["one", "identical", "zeros", "duplicates", "nearly identical"])
def test_degenerate_batches_have_finite_gradients(distance, form, batch):
  x = unit_rows(3, batch=1 if batch == "one" else 20)
  if batch == "identical":
    x = np.broadcast_to(x[:1], x.shape)
  if batch == "zeros":
    x = 0 * x
  if batch == "duplicates":
    x = x[np.arange(20) // 5]
  if batch == "nearly identical":
    x = x[:1] + 1e-6 * x
  value_and_grad = jax.jit(
    jax.value_and_grad(lambda x: intra_modal_constraint(x, distance=distance, form=form))
  )
  value, gradient = value_and_grad(x)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  if batch in ("one", "identical", "zeros") and not (distance == "cosine" and form == "released"):
    assert value == 0 and not np.any(gradient)
  if batch == "duplicates" and distance != "cosine":
    lower, upper = 0.05, 0.5
    np.testing.assert_allclose(
      value, constraint_by_loops(x, distance, lower, upper, form), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("distance", ["l1", "l2", "msd"])
def test_gradient_of_equal_rows_is_equal(distance):
  x = unit_rows(4, batch=20)[np.arange(20) // 2]
  gradient = jax.grad(lambda x: intra_modal_constraint(x, distance=distance))(x)
  assert np.any(gradient)
  # Row 0 selects the thresholds by rank, so rows 0 and 1 may differ in their band.
  np.testing.assert_allclose(gradient[2::2], gradient[3::2], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_same_under_jit_on_eight_devices_and_in_bfloat16(distance, form):
  x = unit_rows(5, batch=32, dim=24)
  value_and_grad = jax.value_and_grad(
    lambda x: intra_modal_constraint(x, distance=distance, form=form)
  )
  expected = value_and_grad(x)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
  for argument in (x, sharded):
    found = jax.jit(value_and_grad)(argument)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected
    )
  half = jnp.asarray(x, jnp.bfloat16)
  value = intra_modal_constraint(half, distance=distance, form=form)
  assert value.dtype == jnp.float32
  full = intra_modal_constraint(np.asarray(half, np.float32), distance=distance, form=form)
  np.testing.assert_allclose(value, full, rtol=1e-6)


def test_l1_needs_no_array_of_all_pairs_and_features():
  x = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)
  compiled = (
    jax.jit(jax.value_and_grad(lambda x: intra_modal_constraint(x, distance="l1")))
    .lower(x)
    .compile()
  )
  assert compiled.memory_analysis().temp_size_in_bytes <= 48e6


def test_imc_is_the_inter_modal_loss_plus_the_weighted_constraints():
  image, text = unit_rows(6), unit_rows(7)
  for inter, function in (("max_of_hinges", max_of_hinges), ("sum_of_hinges", sum_of_hinges)):
    for reduce in ("sum", "mean"):
      loss, terms = imc(image, text, weight=0.7, distance="l2", reduce=reduce, inter=inter)
      parts = [intra_modal_constraint(x, distance="l2") for x in (image, text)]
      hinges, hinge_terms = function(image, text, reduce=reduce)
      np.testing.assert_allclose(loss, hinges + 0.7 * sum(parts), rtol=1e-6)
      np.testing.assert_allclose([terms["intra_image"], terms["intra_text"]], parts, rtol=1e-6)
      assert terms["inter"] == hinges and terms["active"] == hinge_terms["active"]
  assert {"i2t", "t2i", "same_hardest"} <= set(imc(image, text)[1])


@pytest.mark.parametrize(
  "parameters, message",
  [
    ({"distance": "l3"}, "distance is 'l3'; expected one of l1, l2, msd, cosine"),
    ({"form": "printed"}, "form is 'printed'; expected one of released, paper"),
    ({"lower": 0.6}, "lower is 0.6 and upper is 0.5"),
    ({"upper": 1.5}, "at most 1"),
  ],
)
def test_errors_name_what_was_found(parameters, message):
  with pytest.raises(ValueError, match=message):
    intra_modal_constraint(unit_rows(8), **parameters)
  with pytest.raises(ValueError, match=message):
    imc(unit_rows(8), unit_rows(9), **parameters)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch", [3, 16, 41])
def test_the_tiles_of_one_device_change_nothing(monkeypatch, distance, form, batch):
  lower, upper = BOUNDS[distance] if form == "paper" else (0.05, 0.5)
  image, text = unit_rows(1, batch), unit_rows(2, batch)

  def value_and_gradient():
    def loss(image, text):
      return imc(image, text, distance=distance, lower=lower, upper=upper, form=form)[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(image, text)

  monkeypatch.setattr(tiles, "ROWS", 16)
  in_tiles = value_and_gradient()
  monkeypatch.setattr(tiles, "by_tiles", lambda tiles, at_once, *x, tiled=None: at_once(*x))
  whole = value_and_gradient()
  np.testing.assert_allclose(in_tiles[0], whole[0], rtol=1e-5)
  for found, expected in zip(in_tiles[1], whole[1], strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_one_distance_matrix_is_alive_at_a_time(distance):
  x = jax.ShapeDtypeStruct((1024, 512), np.float32)
  step = jax.jit(
    jax.value_and_grad(lambda image, text: imc(image, text, distance=distance)[0], argnums=(0, 1))
  )
  memory = step.lower(x, x).compile().memory_analysis()
  # Scores or distances [B, B], two gradients and a copy [B, D].
  assert memory.temp_size_in_bytes < 4 * (1.5 * 1024**2 + 3 * 1024 * 512)
