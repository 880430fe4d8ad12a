"""The band of distances (`xmr.ops.band`) over rows that lie on several devices."""

import functools

import jax
import jax.numpy as jnp

from xmr.ops import band, ring
from xmr.ops.arrays import custom_gradient


@custom_gradient(0, 1)
def constraint(setting, axis_name, x, whole):
  """This device's part of the sum over its rows of the distances inside the band.

  Args:
    setting: band.Setting.  axis_name: the mesh axis of the rows.
    x: [b, D] float, this device's rows.
    whole: [B, D], `ring.gathered(x)`: one block [b, B] instead of blocks that go around, without
      a gradient; or None.
  Returns:
    [] float; the parts of all devices sum to B times the constraint.
  """
  return _forward(setting, axis_name, x, whole)[0]


def _forward(setting, axis_name, x, whole):
  measure = setting.measure
  mean = jax.lax.pmean(jnp.mean(x, axis=0), axis_name)
  rows = x, squares = band.prepared(measure, x, mean)
  whole = None if whole is None else band.prepared(measure, whole, mean)
  meet = functools.partial(ring.meet, rows=rows, axis_name=axis_name, whole=whole)
  block_of = functools.partial(_distances, measure, axis_name, *rows)
  if not setting.quantile:

    def add_fixed(total, others, start):
      return total + jnp.sum(band.fixed_values(setting, block_of(*others, start)))

    return meet(add_fixed, jnp.zeros_like(x, shape=())), (rows, whole, None)

  def add_squares(total, others, start):
    return total + jnp.sum(jnp.square(block_of(*others, start)), axis=1)

  scale = band.row_scale(meet(add_squares, jnp.zeros_like(squares)))
  here = jax.lax.axis_index(axis_name)
  row0, square0, scale0 = (
    jax.lax.psum(jnp.where(here == 0, a[:1], 0), axis_name) for a in (x, squares, scale)
  )
  is_first = (here == 0) & (jnp.arange(len(x)) == 0)
  to_row0 = band.distances(measure, x, row0, squares, square0, is_first[:, None])[:, 0]
  bounds = band.quantile_bounds(setting, ring.gathered(to_row0, axis_name) / scale0)

  def add_values(total, others, start):
    first = jax.lax.dynamic_slice_in_dim(bounds.first, start, len(others[0]))
    rows = band.Rows(scale[:, None], 0.0, is_first[:, None], first[None, :])
    return total + jnp.sum(band.quantile_values(bounds, block_of(*others, start), rows), axis=1)

  total = meet(add_values, jnp.zeros_like(scale))
  return jnp.sum(total), (rows, whole, (scale, total, is_first, bounds))


def _backward(setting, axis_name, residuals, cotangent):
  rows, whole, statistics = residuals
  measure, x = setting.measure, rows[0]
  block_of = functools.partial(_distances, measure, axis_name, *rows)
  if statistics is None:

    def add_fixed(gradient, others, start):
      block = block_of(*others, start)
      slopes = band.fixed_slopes(setting, block)
      return gradient + band.pull_back(measure, slopes.T, block.T, x, others[0])

    gradient = ring.meet(add_fixed, jnp.zeros_like(x), rows, axis_name, whole)
    return cotangent * gradient, None
  scale, total, is_first, bounds = statistics
  own = scale, total, is_first
  if whole is not None:
    whole = *whole, *ring.gathered(own, axis_name)
  here = jax.lax.axis_index(axis_name) * len(x)
  here_first = jax.lax.dynamic_slice_in_dim(bounds.first, here, len(x))

  def add(gradient, others, start):
    y, y_squares, y_scale, y_total, y_is_first = others
    block = block_of(y, y_squares, start)
    there_first = jax.lax.dynamic_slice_in_dim(bounds.first, start, len(y))
    rows = band.Rows(scale[:, None], total[:, None], is_first[:, None], there_first[None, :])
    columns = band.Rows(
      y_scale[None, :], y_total[None, :], y_is_first[None, :], here_first[:, None]
    )
    slopes = band.quantile_slopes(bounds, block, rows)
    slopes += band.quantile_slopes(bounds, block, columns)
    return gradient + band.pull_back(measure, slopes.T, block.T, x, y)

  gradient = ring.meet(add, jnp.zeros_like(x), (*rows, *own), axis_name, whole)
  return cotangent * gradient, None


constraint.defvjp(_forward, _backward)


def _distances(measure, axis_name, x, squares, y, y_squares, start):
  """Distances [b, m] of this device's rows to those from global row `start` on."""
  row = ring.index_of(jax.lax.axis_index(axis_name), len(x))[0]
  diagonal = row[:, None] == start + jnp.arange(len(y))[None, :]
  return band.distances(measure, x, y, squares, y_squares, diagonal)
