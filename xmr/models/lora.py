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
# Beginnings of the paths of a model's parameters.
WHOLE = ("image_encoder/", "text_encoder/", "shared/")


def base(config):
  """Beginnings of the paths that adapters leave as they are: all that the run did not draw afresh.

  With `config.init` that is the model. Otherwise it is each backbone that has `weights`; what is
  fresh, such as a projection, is trained beside the adapters.
  """
  sides = (side for side in ("image", "text") if config.model[side].weights)
  return WHOLE if config.init else tuple(f"{side}_encoder/backbone/" for side in sides)


def kernels(params, pattern, base=WHOLE):
  """{path: shape} of the kernels whose path contains a match of a regular expression.

  Args:
    params: nested dict of arrays or shapes.
    pattern: regular expression, such as "attention/(query|value)/kernel".
    base: beginnings of the paths to look at.
  Raises:
    UserError: not a regular expression, or no path of a kernel [in, out] contains a match.
  """
  found = {
    jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if path[0] != jax.tree_util.DictKey(ADAPTERS)
  }
  flat = [
    path
    for path, shape in found.items()
    if path.endswith("/kernel") and len(shape) == 2 and path.startswith(base)
  ]
  try:
    chosen = {path: found[path] for path in flat if re.search(pattern, path)}
  except re.error as error:
    raise UserError(f"config.model.lora.kernels is {pattern!r}: {error}") from None
  if not chosen:
    known = ", ".join(flat[:20]) or "none"
    raise UserError(f"config.model.lora.kernels is {pattern!r}, which no kernel has: {known}")
  return chosen


def start(params, *, rank, pattern, seed, base=WHOLE):
  """Fresh adapters, which leave the kernels as they are: A ~ N(0, 1 / rank), B = 0.

  Args:
    params: nested dict of arrays or shapes.  rank: int.  pattern, base: see kernels.
    seed: int; the values of A depend on it and on the kernel's path.
  Returns:
    nested like `params`, {"a": [in, rank], "b": [rank, out]} in place of a kernel; NumPy float32.
  """
  result = {}
  for path, (inputs, outputs) in kernels(params, pattern, base).items():
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
    base: beginnings of the paths that stay as they are; what is elsewhere is trained, too.
    seed: of the adapters' initial values.
  """

  model: Any
  rank: int
  alpha: float
  kernels: str
  base: tuple[str, ...] = WHOLE
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
    """One line for the log: how many kernels of each encoder have adapters, and what else is
    trained.
    """
    chosen = kernels(params, self.kernels, self.base)
    counts = {name: sum(path.startswith(f"{name}/") for path in chosen) for name in sorted(params)}
    held = {each.split("/")[0] for each in self.base}
    counts = {n: count for n, count in counts.items() if count or n in held - {"shared"}}
    found = ", ".join(f"{count or 'NONE'} of {name}" for name, count in counts.items())
    fresh = {
      path[0] if path[0] not in held else "/".join(path[:2]) for path in self.trained(params)
    }
    beside = f" but {', '.join(sorted(fresh))}, which no weights were given for" if fresh else ""
    still = " and ".join(name for name, count in counts.items() if not count)
    untrained = f"; {still} is not trained: no path matches {self.kernels!r}" if still else ""
    return f"LoRA of rank {self.rank} on kernels, all else frozen{beside}: {found}{untrained}"

  def trained(self, params):
    """{path: leaf} of the model's parameters that are trained whole, outside `base`."""
    flat: dict = traverse_util.flatten_dict({n: params[n] for n in params if f"{n}/" in WHOLE})
    return {path: x for path, x in flat.items() if not "/".join(path).startswith(self.base)}

  def with_adapters(self, variables):
    """The model's variables with fresh adapters; UserError as kernels."""
    params = variables["params"]
    adapters = start(params, rank=self.rank, pattern=self.kernels, seed=self.seed, base=self.base)
    return {**variables, "params": {**params, ADAPTERS: adapters}}

  def init(self, *inputs, **options):
    """Variables of the model, and adapters."""
    variables = self.with_adapters(self.model.init(*inputs, **options))
    return jax.tree.map(jnp.asarray, variables)

  def apply(self, variables, *inputs, **options):
    """As the model's apply; what is in `base` gets no gradient."""
    flat: dict = traverse_util.flatten_dict(variables["params"], sep="/")
    params = traverse_util.unflatten_dict(
      {
        path: jax.lax.stop_gradient(x) if path.startswith(self.base) else x
        for path, x in flat.items()
      },
      sep="/",
    )
    return self.model.apply(
      {**variables, "params": merged(params, scale=self.scale)}, *inputs, **options
    )
