"""Floating point operations of a program, counted on its equations.

The compiler's own count takes the body of a loop once, and a GPU's has none.
"""

import math

from jax.extend import core

# What an equation may hold inside, and how often that runs.
INNER = ("jaxpr", "call_jaxpr", "fun_jaxpr", "cond_jaxpr", "body_jaxpr")


def count(jaxpr):
  """Returns the operations of all matrix products and convolutions, over all devices.

  Args:
    jaxpr: core.Jaxpr or ClosedJaxpr, as `jit(...).trace(...).jaxpr`.
  Returns:
    float; a product [M, K] x [K, N] counts 2 M K N. The body of a scan counts its length; of a
    while loop once; of branches the largest counts; inside shard_map the devices.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum(of_equation(equation) for equation in jaxpr.eqns)


def of_equation(equation):
  """Returns the operations of one equation and of what it holds."""
  name, parameters = equation.primitive.name, equation.params
  if name == "dot_general":
    (contracted, _), _ = parameters["dimension_numbers"]
    depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth
  if name == "conv_general_dilated":
    kernel = equation.invars[1].aval.shape
    spec = parameters["dimension_numbers"].rhs_spec
    depth = kernel[spec[1]] * math.prod(kernel[axis] for axis in spec[2:])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * depth / _holes(parameters)
  if name == "cond":
    return max(count(branch) for branch in parameters["branches"])
  times = 1
  if name == "scan":
    times = parameters["length"]
  elif name == "shard_map":
    times = parameters["mesh"].size
  return times * sum(count(inner) for inner in inner_of(parameters))


def inner_of(parameters):
  """Returns the programs that an equation holds."""
  found = [parameters[key] for key in INNER if key in parameters]
  return [x for x in found if isinstance(getattr(x, "jaxpr", x), core.Jaxpr)]


def _holes(parameters):
  # A gradient by a strided convolution multiplies with the zeros between its inputs.
  return math.prod(parameters["lhs_dilation"])
