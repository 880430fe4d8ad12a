"""The graph encoder against dense NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse

from xmr.models.graph import GraphEncoder, Laplacian, chebyshev, product

NODES = 7


def laplacian(seed=0, *, isolated=2):
  """Returns (Laplacian, dense matrix) of a random graph in which one node is alone."""
  upper = np.triu(np.random.default_rng(seed).random((NODES, NODES)) < 0.4, 1)
  adjacency = (upper | upper.T).astype(np.float64)
  adjacency[isolated] = adjacency[:, isolated] = 0
  degree = adjacency.sum(axis=1)
  root = np.divide(1, np.sqrt(degree), out=np.zeros(NODES), where=degree > 0)
  dense = (np.eye(NODES) - root[:, None] * adjacency * root[None, :]) - np.eye(NODES)
  rows = sparse.csr_matrix(dense)
  return Laplacian(
    jnp.asarray(rows.data, jnp.float32), jnp.asarray(rows.indices), jnp.asarray(rows.indptr)
  ), dense


def dense_forward(params, signal, dense, *, layers):
  """The network with matrices of all nodes, in float64."""
  x = signal.astype(np.float64)
  for layer in range(layers):
    theta = np.asarray(params[f"theta_{layer}"], np.float64)
    terms = [np.eye(NODES), dense]
    while len(terms) < len(theta):
      terms.append(2 * dense @ terms[-1] - terms[-2])
    convolution = sum(t * term for t, term in zip(theta, terms, strict=False))
    x = np.maximum(x @ convolution.T + np.asarray(params[f"bias_{layer}"], np.float64).T, 0)
  return x @ np.asarray(params["fc"]["kernel"], np.float64) + np.asarray(
    params["fc"]["bias"], np.float64
  )


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("bias", ["node", "shared"])
def test_forward_equals_dense_numpy(order, bias):
  graph, dense = laplacian()
  signal = np.random.default_rng(1).poisson(1.0, (5, NODES)).astype(np.float32)
  encoder = GraphEncoder(dim=4, order=order, bias=bias, start="xavier")
  params = encoder.init(jax.random.key(3), signal, graph)["params"]
  # Zero biases would hide a bias on the wrong axis.
  params = jax.tree.map(
    lambda x: x + 0.1 * jax.random.normal(jax.random.key(x.size), x.shape), params
  )
  expected = dense_forward(params, signal, dense, layers=2)
  np.testing.assert_allclose(
    encoder.apply({"params": params}, signal, graph), expected, rtol=1e-5, atol=1e-5
  )


def test_gradient_of_the_sparse_product_equals_that_of_the_dense_one():
  graph, dense = laplacian()
  x = jnp.asarray(np.random.default_rng(2).normal(size=(NODES, 3)), jnp.float32)
  ours = jax.grad(lambda x: jnp.sum(jnp.sin(product(graph, jnp.tanh(product(graph, x))))))(x)
  theirs = jax.grad(lambda x: jnp.sum(jnp.sin(dense @ jnp.tanh(dense @ x))))(x)
  np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_an_isolated_word_keeps_its_own_signal_and_takes_none():
  graph, _ = laplacian(isolated=2)
  x = np.random.default_rng(2).normal(size=(NODES, 3)).astype(np.float32)
  y = chebyshev(graph, jnp.asarray(x), jnp.asarray([0.5, 3.0, 0.25]))
  np.testing.assert_allclose(y[2], (0.5 - 0.25) * x[2], rtol=1e-6)  # T_2 of 0 is -1


def test_identity_start_is_the_signal_itself():
  graph, _ = laplacian()
  signal = np.random.default_rng(1).poisson(1.0, (5, NODES)).astype(np.float32)
  encoder = GraphEncoder(dim=4)
  params = encoder.init(jax.random.key(0), signal, graph)["params"]
  np.testing.assert_allclose(
    encoder.apply({"params": params}, signal, graph),
    signal @ params["fc"]["kernel"],
    rtol=1e-5,
    atol=1e-6,
  )


def test_signal_of_another_width_is_refused():
  graph, _ = laplacian()
  with pytest.raises(ValueError, match=r"\(2, 3\); expected \(texts, 7\)"):
    GraphEncoder(dim=4).init(jax.random.key(0), jnp.zeros((2, 3)), graph)


@pytest.mark.parametrize("field", ["bias", "start"])
def test_unknown_option_is_refused(field):
  graph, _ = laplacian()
  with pytest.raises(ValueError, match=f"{field} is 'other'; expected one of"):
    GraphEncoder(dim=4, **{field: "other"}).init(jax.random.key(0), jnp.zeros((2, NODES)), graph)
