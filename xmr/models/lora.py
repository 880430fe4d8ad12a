"""Low-rank adapters: kernels W become W + (alpha / rank) A B, and only A and B are trained."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from xmr.errors import UserError

ADAPTERS = "lora"


def kernels(params, pattern):
  """{path: shape} of the kernels whose path contains a match of a regular expression.

  Args:
    params: nested dict of arrays or shapes.
    pattern: regular expression, such as "attention/(query|value)/kernel".
  Raises:
    UserError: not a regular expression, or no path of a kernel [in, out] contains a match.
  """
  found = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if path[0] != jax.tree_util.DictKey(ADAPTERS)
  }
  flat = [path for path, shape in found.items() if path.endswith("/kernel") and len(shape) == 2]
  try:
    chosen = {path: found[path] for path in flat if re.search(pattern, path)}
  except re.error as error:
    raise UserError(f"config.model.lora.kernels is {pattern!r}: {error}") from None
  if not chosen:
    known = ", ".join(flat[:20]) or "none"
    raise UserError(f"config.model.lora.kernels is {pattern!r}, which no kernel has: {known}")
  return chosen


def start(params, *, rank, pattern, seed):
  """Fresh adapters, which leave the kernels as they are: A ~ N(0, 1 / rank), B = 0.

  Args:
    params: nested dict of arrays or shapes.  rank: int.  pattern: see kernels.
    seed: int; the values of A depend on it and on the kernel's path.
  Returns:
    nested like `params`, {"a": [in, rank], "b": [rank, out]} in place of a kernel; NumPy float32.
  """
  result = {}
  for path, (inputs, outputs) in kernels(params, pattern).items():
    generator = np.random.default_rng([seed, *path.encode()])
    a = generator.normal(0, rank**-0.5, (inputs, rank)).astype(np.float32)
    result |= {f"{path}/a": a, f"{path}/b": np.zeros((rank, outputs), np.float32)}
  return traverse_util.unflatten_dict(result, sep="/")


def merged(params, *, scale):
  """Parameters with their adapters merged into the kernels.

  Args:
    params: nested dict with ADAPTERS next to the encoders.  scale: alpha / rank.
  Returns:
    nested dict without ADAPTERS; kernels are W + scale A B in float32.
  Raises:
    ValueError: an adapter without its kernel.
  """
  adapters: dict = traverse_util.flatten_dict(params.get(ADAPTERS, {}), sep="/")
  base = {name: tree for name, tree in params.items() if name != ADAPTERS}
  result: dict = traverse_util.flatten_dict(base, sep="/")
  for name, a in adapters.items():
    kernel, _, part = name.rpartition("/")
    if kernel not in result:
      raise ValueError(f"there is an adapter of {kernel}, but no such kernel")
    if part == "a":
      result[kernel] = result[kernel] + scale * (a @ adapters[f"{kernel}/b"])
  return traverse_util.unflatten_dict(result, sep="/")


@dataclasses.dataclass(frozen=True)
class Adapted:
  """A model with adapters next to its parameters; it is called like the model.

  Attributes:
    model: linen module.  rank, alpha: of the adapters.  kernels: regular expression, see kernels.
    seed: of the adapters' initial values.
  """

  model: Any
  rank: int
  alpha: float
  kernels: str
  seed: int = 0

  @property
  def image_encoder(self):
    return self.model.image_encoder

  @property
  def text_encoder(self):
    return self.model.text_encoder

  @property
  def scale(self):
    return self.alpha / self.rank

  def line(self, params):
    """One line for the log: how many kernels of each encoder have adapters."""
    chosen = kernels(params, self.kernels)
    counts = {name: sum(path.startswith(f"{name}/") for path in chosen) for name in sorted(params)}
    counts = {name: n for name, n in counts.items() if n or name.endswith("_encoder")}
    found = ", ".join(f"{n or 'NONE'} of {name}" for name, n in counts.items())
    still = " and ".join(name for name, n in counts.items() if not n)
    untrained = f"; {still} is not trained: no path matches {self.kernels!r}" if still else ""
    return f"LoRA of rank {self.rank} on kernels, all else frozen: {found}{untrained}"

  def with_adapters(self, variables):
    """The model's variables with fresh adapters; UserError as kernels."""
    params = variables["params"]
    adapters = start(params, rank=self.rank, pattern=self.kernels, seed=self.seed)
    return {**variables, "params": {**params, ADAPTERS: adapters}}

  def init(self, *inputs, **options):
    """Variables of the model, and adapters."""
    variables = self.with_adapters(self.model.init(*inputs, **options))
    return jax.tree.map(jnp.asarray, variables)

  def apply(self, variables, *inputs, **options):
    """As the model's apply; only the adapters get a gradient."""
    params = {
      name: tree if name == ADAPTERS else jax.lax.stop_gradient(tree)
      for name, tree in variables["params"].items()
    }
    return self.model.apply(
      {**variables, "params": merged(params, scale=self.scale)}, *inputs, **options
    )
