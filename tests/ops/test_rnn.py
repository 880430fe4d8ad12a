"""The recurrent layers against automatic differentiation of a plain scan."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from xmr.ops import rnn
from xmr.ops.rnn import Weights

FEATURES, HIDDEN = 7, 12


def problem(cell, lengths, steps, seed=0):
  """Returns (x, length, weights, weights of the loss for steps and final)."""
  rng = np.random.default_rng(seed)
  columns = rnn.CELLS[cell].gates * HIDDEN
  shapes = (FEATURES, columns), (HIDDEN, columns), (columns,), (columns,)
  weights = Weights(*(rng.uniform(-0.5, 0.5, shape).astype(np.float32) for shape in shapes))
  batch = len(lengths)
  x, a, b = (
    rng.normal(size=s).astype(np.float32)
    for s in ((batch, steps, FEATURES), (batch, steps, HIDDEN), (batch, HIDDEN))
  )
  return x, np.asarray(lengths, np.int32), weights, a, b


@functools.partial(jax.jit, static_argnames="function")
def values_and_gradients(function, x, length, weights, a, b):
  """Returns ((steps, final), gradients of a weighted sum of both with respect to x and weights)."""

  def loss(x, weights):
    steps, final = function(x, length, weights)
    return jnp.sum(steps * a) + jnp.sum(final * b), (steps, final)

  gradients, outputs = jax.grad(loss, argnums=(0, 1), has_aux=True)(x, weights)
  return outputs, gradients


def assert_same(found, expected, tolerance):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=tolerance * max(1, np.abs(b).max()))


@pytest.mark.parametrize(
  ("cell", "reverse"),
  [
    ("lstm", True),
    pytest.param("gru", False, marks=pytest.mark.slow),
    pytest.param("lstm", False, marks=pytest.mark.slow),
    pytest.param("gru", True, marks=pytest.mark.slow),
  ],
)
def test_values_and_gradients_are_those_of_a_plain_scan(cell, reverse):
  ours = functools.partial(rnn.recurrent, cell=cell, reverse=reverse, shards=1)
  oracle = functools.partial(rnn.plain, cell=cell, reverse=reverse)
  rng = np.random.default_rng(3)
  batches = [
    rng.integers(1, 15, 37),
    np.full(37, 14),
    np.full(37, 1),
    np.append(np.ones(36), 14),
    np.append(np.zeros(5), rng.integers(0, 15, 32)),
  ]
  # All in one shape: one compilation serves every batch.
  for lengths in batches:
    arguments = problem(cell, lengths, steps=14)
    assert_same(
      values_and_gradients(ours, *arguments), values_and_gradients(oracle, *arguments), 1e-5
    )


@pytest.mark.parametrize(
  ("rows", "steps"), [(1, 1), (3, 2), pytest.param(128, 5, marks=pytest.mark.slow)]
)
def test_any_number_of_rows_and_steps(rows, steps):
  lengths = np.random.default_rng(1).integers(1, steps + 1, rows)
  arguments = problem("lstm", lengths, steps)
  ours = functools.partial(rnn.recurrent, shards=1)
  oracle = functools.partial(rnn.plain, cell="lstm", reverse=False)
  assert_same(
    values_and_gradients(ours, *arguments), values_and_gradients(oracle, *arguments), 1e-5
  )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_final_state_alone_is_the_same_with_the_same_gradients(cell):
  x, length, weights, _, b = problem(cell, [3, 0, 9, 1, 6, 9], steps=9)

  def alone(x, length, weights):
    return jnp.zeros(()), rnn.final_state(x, length, weights, cell=cell, reverse=True)

  (_, final), gradients = values_and_gradients(alone, x, length, weights, np.zeros(()), b)
  oracle = functools.partial(rnn.plain, cell=cell, reverse=True)
  (_, expected), expected_gradients = values_and_gradients(
    oracle, x, length, weights, np.zeros((6, 9, HIDDEN)), b
  )
  assert_same((final, gradients), (expected, expected_gradients), 1e-5)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_one_step_is_a_sequence_of_length_1(cell):
  x, length, weights, _, b = problem(cell, np.ones(6), steps=1)

  def step(x, length, weights):
    return jnp.zeros(()), rnn.single_step(x[:, 0], weights, cell=cell)

  (_, final), gradients = values_and_gradients(step, x, length, weights, np.zeros(()), b)
  oracle = functools.partial(rnn.plain, cell=cell, reverse=False)
  (_, expected), expected_gradients = values_and_gradients(
    oracle, x, length, weights, np.zeros((6, 1, HIDDEN)), b
  )
  assert_same((final, gradients), (expected, expected_gradients), 1e-5)


def test_padding_of_nan_is_never_read():
  x, length, weights, a, b = problem("lstm", [3, 0, 9, 1, 6, 9], steps=9)
  dirty = np.where(np.arange(9)[None, :, None] < length[:, None, None], x, np.nan)
  ours = functools.partial(rnn.recurrent, shards=1)
  found, expected = (
    values_and_gradients(ours, values, length, weights, a, b) for values in (dirty, x)
  )
  assert_same(found, expected, 0)


@pytest.mark.parametrize("cell", [pytest.param("lstm", marks=pytest.mark.slow), "gru"])
def test_same_on_1_and_8_devices_without_moving_words_between_them(cell):
  arguments = problem(cell, np.random.default_rng(2).integers(0, 10, 64), steps=9)
  one = values_and_gradients(functools.partial(rnn.recurrent, cell=cell, shards=1), *arguments)
  mesh = Mesh(np.array(jax.devices()), ("data",))
  x, length, weights, a, b = arguments
  x, length, a, b = jax.device_put((x, length, a, b), NamedSharding(mesh, PartitionSpec("data")))
  weights = jax.device_put(weights, NamedSharding(mesh, PartitionSpec()))
  ours = functools.partial(rnn.recurrent, cell=cell)
  eight = values_and_gradients(ours, x, length, weights, a, b)
  assert_same(eight, one, 1e-6)
  program = values_and_gradients.lower(ours, x, length, weights, a, b).compile().as_text()
  assert "all-reduce" in program
  assert not [
    word for word in ("all-gather", "all-to-all", "collective-permute") if word in program
  ]


def test_half_precision_keeps_float32_sums():
  x, length, weights, a, b = problem("lstm", np.random.default_rng(2).integers(1, 10, 16), steps=9)
  full = values_and_gradients(functools.partial(rnn.recurrent, shards=1), x, length, weights, a, b)
  ours = functools.partial(rnn.recurrent, dtype=jnp.bfloat16, shards=1)
  (steps, final), (dx, d_weights) = values_and_gradients(ours, x, length, weights, a, b)
  assert steps.dtype == final.dtype == jnp.bfloat16 and dx.dtype == jnp.float32
  assert all(g.dtype == jnp.float32 for g in d_weights)
  for found, expected in zip(
    jax.tree.leaves((final, dx, d_weights)), jax.tree.leaves((full[0][1], full[1])), strict=True
  ):
    np.testing.assert_allclose(
      found.astype(jnp.float32), expected, atol=0.03 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"cell": "rnn"}, "cell is 'rnn'; expected one of lstm, gru"),
    ({"cell": "gru"}, "weights of gru have shapes"),
    (
      {"length": np.ones(5, np.int32)},
      r"x has shape \(4, 3, 7\) and length \(5,\); expected \[B, L, F\] and \[B\]",
    ),
    ({"shards": 3}, "shards is 3; expected a divisor of the batch, 4"),
  ],
)
def test_arguments_that_do_not_fit_are_refused(changed, message):
  x, length, weights, _, _ = problem("lstm", np.ones(4), steps=3)
  with pytest.raises(ValueError, match=message):
    rnn.recurrent(**{"x": x, "length": length, "weights": weights} | changed)
