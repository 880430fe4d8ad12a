"""Variables for a network without compiling its initialiser, which costs more than the test
itself.
"""

import jax
import numpy as np


def random_variables(module, *inputs, seed=0):
  """Variables of the module's shapes: kernels N(0, 2 / fan in), everything else (biases, scales,
  statistics) U(0.5, 1.5).
  """
  rng = np.random.default_rng(seed)

  def draw(leaf):
    if leaf.ndim < 2:
      return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
    return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(np.float32)

  return jax.tree.map(draw, jax.eval_shape(module.init, jax.random.key(0), *inputs))
