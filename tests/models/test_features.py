"""Encoders of features against NumPy, their initial values, dropout and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.models.features import MLP, Linear


def features(rows=6, width=10, seed=0):
  return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def unit(x):
  return x / (np.linalg.norm(x, axis=-1, keepdims=True) + 1e-12)


def with_biases(variables, seed=3):
  """The variables with every zero bias replaced by noise, so that a forgotten bias is seen."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: p if p.ndim > 1 else rng.normal(size=p.shape).astype(np.float32), variables
  )


@pytest.mark.parametrize("input_norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_is_the_formula(input_norm, bias):
  x = features() * 7
  module = Linear(dim=4, bias=bias, input_norm=input_norm)
  variables = with_biases(module.init(jax.random.key(0), x))
  layer = variables["params"]["projection"]
  assert ("bias" in layer) == bias
  expected = unit((unit(x) if input_norm else x) @ layer["kernel"] + layer.get("bias", 0))
  np.testing.assert_allclose(module.apply(variables, x), expected, atol=1e-6)


def test_initial_weights_are_uniform_within_the_published_bound():
  x = features(width=300)
  layer = Linear(dim=200).init(jax.random.key(0), x)["params"]["projection"]
  bound = np.sqrt(6 / 500)
  assert 0.99 * bound < np.abs(layer["kernel"]).max() <= bound
  np.testing.assert_allclose(np.std(layer["kernel"]), bound / np.sqrt(3), rtol=0.02)
  assert not np.any(layer["bias"])


def test_released_mlp_is_the_formula():
  x = features()
  module = MLP(dim=4, activation="tanh")
  variables = with_biases(module.init(jax.random.key(0), x))
  params = variables["params"]
  assert [params[k]["kernel"].shape for k in ("hidden_0", "hidden_1", "projection")] == [
    (10, 10),
    (10, 7),
    (7, 4),
  ]
  y = x
  for name in ("hidden_0", "hidden_1", "projection"):
    y = np.tanh(y @ params[name]["kernel"] + params[name]["bias"])
  np.testing.assert_allclose(module.apply(variables, x), unit(y), atol=1e-6)


def test_mlp_with_hidden_units_ends_linear():
  x = features()
  module = MLP(dim=4, hidden=12, depth=3, input_norm=True)
  variables = with_biases(module.init(jax.random.key(0), x))
  params = variables["params"]
  y = unit(x)
  for i in range(3):
    y = np.maximum(y @ params[f"hidden_{i}"]["kernel"] + params[f"hidden_{i}"]["bias"], 0)
  y = y @ params["projection"]["kernel"] + params["projection"]["bias"]
  assert params["hidden_2"]["kernel"].shape == (12, 12) and (y < 0).any()
  np.testing.assert_allclose(module.apply(variables, x), unit(y), atol=1e-6)


@pytest.mark.parametrize(("hidden", "layers"), [(50, 1), (0, 2)])
def test_dropout_acts_once_and_in_training_only(hidden, layers):
  x = features(rows=64, width=50)
  # Layers that are the identity show the dropped units themselves; the released network drops after
  # its first layer alone.
  module = MLP(
    dim=50, hidden=hidden, depth=layers, activation="none", dropout=0.3, normalize="none"
  )
  eye = {"kernel": jnp.eye(50), "bias": jnp.zeros(50)}
  variables = {
    "params": {name: eye for name in (*(f"hidden_{i}" for i in range(layers)), "projection")}
  }
  dropped = module.apply(variables, x, train=True, rngs={"dropout": jax.random.key(0)})
  kept = np.asarray(dropped) != 0
  assert 0.66 < kept.mean() < 0.74
  np.testing.assert_allclose(dropped[kept], (x / 0.7)[kept], rtol=1e-6)
  other = module.apply(variables, x, train=True, rngs={"dropout": jax.random.key(1)})
  assert (np.asarray(other) != dropped).any()
  np.testing.assert_array_equal(module.apply(variables, x), x)


@pytest.mark.parametrize("module", [Linear(dim=5), MLP(dim=5), MLP(dim=5, hidden=7)])
def test_rows_are_unit_or_as_asked(module):
  x = features()
  variables = module.init(jax.random.key(1), x)
  raw = module.clone(normalize="none").apply(variables, x)
  np.testing.assert_allclose(module.apply(variables, x), unit(np.asarray(raw)), atol=1e-6)
  np.testing.assert_allclose(
    module.clone(normalize="abs").apply(variables, x), np.abs(unit(raw)), atol=1e-6
  )
  jitted = jax.jit(module.apply)(variables, x)
  np.testing.assert_allclose(jitted, module.apply(variables, x), atol=1e-6)


def test_row_of_zeros_has_finite_value_and_gradient():
  x = features()
  x[2] = 0
  module = Linear(dim=4, input_norm=True)
  variables = module.init(jax.random.key(0), x)
  assert not np.any(module.apply(variables, x)[2])
  gradient = jax.grad(lambda x: module.apply(variables, x)[:, 0].sum())(x)
  assert np.isfinite(gradient).all()


@pytest.mark.parametrize("kind", [Linear, MLP])
def test_bfloat16_keeps_float32_parameters_and_rows(kind):
  x = features(width=64)
  module = kind(dim=32, dtype=jnp.bfloat16)
  variables = module.init(jax.random.key(0), x)
  assert {p.dtype for p in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
  half, full = module.apply(variables, x), module.clone(dtype=jnp.float32).apply(variables, x)
  assert half.dtype == jnp.float32 and (half != full).any()
  np.testing.assert_allclose(half, full, atol=0.02)
  np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(
  "x", [np.zeros((2, 8, 8, 3), np.uint8), np.zeros((2, 5), np.int32), np.zeros(5, np.float32)]
)
@pytest.mark.parametrize("kind", [Linear, MLP])
def test_what_is_no_feature_matrix_is_refused(kind, x):
  with pytest.raises(
    ValueError,
    match=rf"{x.shape}.*{x.dtype}.*expected \[B, F\]".replace("(", r"\(").replace(")", r"\)"),
  ):
    kind(dim=4).init(jax.random.key(0), x)
