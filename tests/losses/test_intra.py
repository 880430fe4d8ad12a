"""The intra-modal constraint: released code, loops, direction of its pull, exact thresholds,
memory.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

from xmr.losses import imc, intra_modal_constraint, max_of_hinges, sum_of_hinges
from xmr.losses.intra import plain_constraint
from xmr.ops import band, tiles

DISTANCES = ("l1", "l2", "msd", "cosine")
FORMS = ("released", "paper")
# In units of the distance, where half of the pairs are inside.
BOUNDS = {"l1": (3.5, 4.7), "l2": (0.7, 1.0), "msd": (0.5, 1.0), "cosine": (0.25, 0.5)}


def bounds(distance, form):
  lower, upper = BOUNDS[distance] if form == "paper" else (0.05, 0.5)
  return {"lower": lower, "upper": upper}


def value_and_grad(distance, form, of=intra_modal_constraint):
  """The program that most tests share, for batches of one shape."""
  return programs.value_and_grad(of, distance=distance, form=form, **bounds(distance, form))


def unit_rows(seed, batch=24, dim=32):
  x = 1 + np.random.default_rng(seed).normal(size=(batch, dim))
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


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_loops(distance, form):
  x = unit_rows(0)
  found, _ = value_and_grad(distance, form)(x)
  expected = constraint_by_loops(x, distance, form=form, **bounds(distance, form))
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert found > 0.1


@pytest.mark.parametrize("batch", [2, 3, 10, 30])
def test_thresholds_of_every_size_of_batch_equal_loops(batch):
  # B = 10 and 30 put lower B at 0.5 and 1.5: Python rounds them to 0 and 2.
  x = unit_rows(batch, batch)
  found = programs.value(intra_modal_constraint, distance="msd")(x)
  expected = constraint_by_loops(x, "msd", 0.05, 0.5, "released")
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_plain_form_in_value_and_gradient_whole_and_in_tiles(
  monkeypatch, distance, form
):
  monkeypatch.setattr(tiles, "ROWS", 10)  # Of 24 rows the last tile reaches back.
  # The trace that it keeps would not see the smaller tiles.
  monkeypatch.setattr(band, "_value_and_gradient", band._value_and_gradient.__wrapped__)
  constraint = functools.partial(
    intra_modal_constraint, distance=distance, form=form, **bounds(distance, form)
  )
  in_tiles = jax.jit(jax.value_and_grad(constraint))
  plain = value_and_grad(distance, form, of=plain_constraint)
  for seed in range(4):
    x = unit_rows(seed)
    # Equal rows, but not row 0: two roundings of its threshold may differ.
    x[5] = x[7]
    expected = plain(x)
    for fast in (value_and_grad(distance, form), in_tiles):
      for found, wanted in zip(fast(x), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("file", ["spread", "paired", "collapsed"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_equals_the_released_code(golden, distance, file):
  stored = golden(f"imc_losses_{file}")
  value, gradient = value_and_grad(distance, "released")(stored["image"])
  np.testing.assert_allclose(value, stored[f"intra_{distance}"], rtol=1e-5)
  expected = stored[f"intra_{distance}_grad_image"]
  np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_slope_with_the_band_held(distance, form):
  programs.assert_gradient_is_the_slope(value_and_grad(distance, form), unit_rows(1), step=1e-8)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_direction_pulls_but_the_released_cosine_pushes(distance, form):
  x = unit_rows(2)
  lower, upper = bounds(distance, form).values()
  gradient = np.asarray(value_and_grad(distance, form)(x)[1])
  before = np.array([[distance_by_loops(a, b, distance) for b in x] for a in x])
  moved = x - 1e-3 * gradient / np.linalg.norm(gradient)
  after = np.array([[distance_by_loops(a, b, distance) for b in moved] for a in moved])
  shares = before
  if form == "released" and distance != "cosine":
    shares = before / np.linalg.norm(before, axis=1, keepdims=True)
    lower, upper = np.sort(shares[0])[[round(0.05 * 24), round(0.5 * 24)]]
  inside = (lower < shares) & (shares < upper)
  change = (after - before)[inside].mean()
  if form == "released" and distance == "cosine":
    assert change > 1e-6, "the released cosine form pushes"
  else:
    assert change < -1e-6, "pulls"


@pytest.mark.parametrize("distance", ["l1", "l2", "msd"])
def test_entries_equal_to_a_threshold_are_outside(distance):
  # Row 0 alone has both thresholds among its own entries; a threshold rounded differently would let
  # them in.
  for seed in range(20):
    x = unit_rows(seed)
    value, gradient = value_and_grad(distance, "released")(x)
    np.testing.assert_allclose(
      value, constraint_by_loops(x, distance, 0.05, 0.5, "released"), rtol=1e-5
    )
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("batch", ["one", "identical", "zeros", "duplicates", "nearly identical"])
def test_degenerate_batches_have_finite_gradients(distance, form, batch):
  x = unit_rows(3, batch=1 if batch == "one" else 24)
  if batch == "identical":
    x = np.broadcast_to(x[:1], x.shape)
  if batch == "zeros":
    x = 0 * x
  if batch == "duplicates":
    x = x[np.arange(24) // 5]
  if batch == "nearly identical":
    x = x[:1] + 1e-6 * x
  value, gradient = value_and_grad(distance, form)(x)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  if batch in ("one", "identical", "zeros") and not (distance == "cosine" and form == "released"):
    assert value == 0 and not np.any(gradient)
  if batch == "duplicates" and distance != "cosine":
    expected = constraint_by_loops(x, distance, form=form, **bounds(distance, form))
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("distance", ["l1", "l2", "msd"])
def test_gradient_of_equal_rows_is_equal(distance):
  x = unit_rows(4)[np.arange(24) // 2]
  _, gradient = value_and_grad(distance, "released")(x)
  assert np.any(gradient)
  # Row 0 selects the thresholds by rank, so rows 0 and 1 may differ in their band.
  np.testing.assert_allclose(gradient[2::2], gradient[3::2], atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("distance", DISTANCES)
def test_same_on_eight_devices(distance, form):
  x, program = unit_rows(5), value_and_grad(distance, form)
  for found, expected in zip(program(programs.over_eight_devices(x)), program(x), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("distance, form", [("l2", "released"), ("cosine", "paper")])
def test_same_without_jit_and_in_bfloat16(distance, form):
  half = jnp.asarray(unit_rows(5), jnp.bfloat16)
  expected, _ = value_and_grad(distance, form)(np.asarray(half, np.float32))
  value = intra_modal_constraint(half, distance=distance, form=form, **bounds(distance, form))
  assert value.dtype == jnp.float32
  np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_l1_needs_no_array_of_all_pairs_and_features():
  x = jax.ShapeDtypeStruct((2048, 1024), jnp.float32)
  compiled = programs.value_and_grad(intra_modal_constraint, distance="l1").lower(x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes <= 48e6


@pytest.mark.parametrize("inter, reduce", [(max_of_hinges, "sum"), (sum_of_hinges, "mean")])
def test_imc_is_the_inter_modal_loss_plus_the_weighted_constraints(inter, reduce):
  image, text = unit_rows(6), unit_rows(7)
  name = {max_of_hinges: "max_of_hinges", sum_of_hinges: "sum_of_hinges"}[inter]
  program = programs.value(imc, weight=0.7, distance="l2", reduce=reduce, inter=name)
  loss, terms = program(image, text)
  parts = [value_and_grad("l2", "released")(x)[0] for x in (image, text)]
  hinges, hinge_terms = programs.value(inter, reduce=reduce)(image, text)
  np.testing.assert_allclose(loss, hinges + 0.7 * sum(parts), rtol=1e-6)
  np.testing.assert_allclose([terms["intra_image"], terms["intra_text"]], parts, rtol=1e-6)
  np.testing.assert_allclose(terms["inter"], hinges, rtol=1e-6)
  assert terms["active"] == hinge_terms["active"] and set(hinge_terms) <= set(terms)


def test_imc_takes_the_hardest_negatives_and_sums_by_default():
  image, text = unit_rows(6), unit_rows(7)
  shapes = jax.eval_shape(imc, image, text)[1]
  assert {"i2t", "t2i", "same_hardest"} <= set(shapes)


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
  x = unit_rows(8)
  for loss, rows in ((intra_modal_constraint, (x,)), (imc, (x, x))):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(functools.partial(loss, **parameters), *rows)


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_one_distance_matrix_is_alive_at_a_time(distance):
  x = jax.ShapeDtypeStruct((1024, 512), np.float32)
  step = programs.value_and_grad(imc, (0, 1), has_aux=True, distance=distance)
  memory = step.lower(x, x).compile().memory_analysis()
  # Scores or distances [B, B], two gradients and a copy [B, D].
  assert memory.temp_size_in_bytes < 4 * (1.5 * 1024**2 + 3 * 1024 * 512)
