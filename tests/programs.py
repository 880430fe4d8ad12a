"""Compiled programs that cases share: compilation is most of a test's time, so cases differ in
their data and not in their program.
"""

import functools

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec


@functools.cache
def value(function, **parameters):
  """One jitted function(*arrays, **parameters) per function and parameters."""
  return jax.jit(functools.partial(function, **parameters))


@functools.cache
def value_and_grad(function, argnums=0, has_aux=False, **parameters):
  """The same of value and gradient."""
  return jax.jit(
    jax.value_and_grad(functools.partial(function, **parameters), argnums, has_aux=has_aux)
  )


def mesh(devices=8):
  """A mesh of the first devices, along the axis "data"."""
  return jax.make_mesh(
    (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
  )


def over_eight_devices(arrays):
  """Puts a tree of arrays on eight devices, split by rows."""
  return jax.device_put(arrays, NamedSharding(mesh(), PartitionSpec("data")))


def assert_gradient_is_the_slope(program, *arrays, step=1e-6, rtol=1e-5, atol=1e-7):
  """Holds gradients to a central difference along a random direction, in float64.

  Args:
    program: arrays -> (value or (value, terms), gradients in the leading arrays, one or a tuple of
      them), jitted.
    arrays: numbers or arrays; those that have a gradient are moved.
    step: length of the move of each entry, in units of its random direction.
  """
  with jax.enable_x64(True):
    arrays = [np.asarray(x, np.float64) for x in arrays]
    _, gradients = program(*arrays)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    rng = np.random.default_rng(0)
    moves = [rng.normal(size=x.shape) for x in arrays[: len(gradients)]]
    still = arrays[len(gradients) :]
    high, low = (
      float(jax.tree.leaves(program(*moved, *still)[0])[0])
      for moved in (
        [x + sign * step * m for x, m in zip(arrays, moves, strict=False)] for sign in (1, -1)
      )
    )
  expected = (high - low) / (2 * step)
  found = sum(np.vdot(g, m) for g, m in zip(gradients, moves, strict=True))
  np.testing.assert_allclose(found, expected, rtol=rtol, atol=atol)
