"""Sums over features of a function of x - y for all pairs of rows, without the [N, M, D] array, and their gradients."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Term(NamedTuple):
  """A function f of the difference u = x - y, w f'(u) as a function of (w, x, y), and the name of u -> f(-u)."""

  value: Callable
  weighted_slope: Callable
  mirrored: str


TERMS = {
  # Compared, not subtracted: exactly 0 between equal features, and no slower.
  "absolute": Term(jnp.abs, lambda w, x, y: jnp.where(x > y, w, jnp.where(x < y, -w, 0)), "absolute"),
  "shortfall_squared": Term(
    lambda u: jnp.square(jnp.minimum(u, 0)), lambda w, x, y: 2 * w * jnp.minimum(x - y, 0), "excess_squared"
  ),
  "excess_squared": Term(
    lambda u: jnp.square(jnp.maximum(u, 0)), lambda w, x, y: 2 * w * jnp.maximum(x - y, 0), "shortfall_squared"
  ),
}
# Features (forward) and rows (backward) that one fused pass over the accumulator takes.
UNROLL = 16


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sum_over_features(term, x, y):
  """out[n, m] = sum over d of f(x[n, d] - y[m, d]).

  Args:
    term: key of TERMS: "absolute" (L1 distance) or "shortfall_squared" (max(0, y - x)^2).
    x: [N, D] float.  y: [M, D] float.
  Returns:
    [N, M]; temporaries of the forward and backward pass are of this size or of the inputs'.
  """
  value = TERMS[term].value
  features = y.shape[1]
  steps = -(-features // UNROLL)
  # Padding with equal features adds f(0) = 0.
  pad = ((0, 0), (0, steps * UNROLL - features))
  x_by_feature, y_by_feature = jnp.pad(x, pad).T, jnp.pad(y, pad).T

  def add(step, total):
    a = jax.lax.dynamic_slice_in_dim(x_by_feature, step * UNROLL, UNROLL)
    b = jax.lax.dynamic_slice_in_dim(y_by_feature, step * UNROLL, UNROLL)
    return total + sum(value(a[k][:, None] - b[k][None, :]) for k in range(UNROLL))

  return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(x, shape=(x.shape[0], y.shape[0])))


def weighted_slopes(term, weight, x, y):
  """out[n, d] = sum over m of weight[m, n] f'(x[n, d] - y[m, d]); [M, N], [N, D], [M, D] -> [N, D]."""
  slope = TERMS[term].weighted_slope
  rows = y.shape[0]
  steps = -(-rows // UNROLL)
  pad = steps * UNROLL - rows
  y, weight = jnp.pad(y, ((0, pad), (0, 0))), jnp.pad(weight, ((0, pad), (0, 0)))

  def add(step, total):
    b = jax.lax.dynamic_slice_in_dim(y, step * UNROLL, UNROLL)
    w = jax.lax.dynamic_slice_in_dim(weight, step * UNROLL, UNROLL)
    return total + sum(slope(w[k][:, None], x, b[k][None, :]) for k in range(UNROLL))

  return jax.lax.fori_loop(0, steps, add, jnp.zeros_like(x))


def _forward(term, x, y):
  return sum_over_features(term, x, y), (x, y)


def _backward(term, residuals, cotangent):
  x, y = residuals
  mirrored = TERMS[term].mirrored
  return weighted_slopes(term, cotangent.T, x, y), weighted_slopes(mirrored, cotangent, y, x)


sum_over_features.defvjp(_forward, _backward)
