"""A loss with its parameters: what a training step calls, and how its learned scalars are kept."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

from xmr.errors import UserError
from xmr.fields import resolve
from xmr.losses import table


@dataclasses.dataclass(frozen=True, eq=False)
class Bound:
  """A loss with its parameters bound: call it with its tensors, as the function itself."""

  name: str
  function: Callable
  tensors: Mapping[str, str]  # {argument: name of the tensor}
  parameters: Mapping[str, Any]
  learned: Mapping[str, table.Learned]
  tokens: bool = False  # whether its image and text are Tokens
  chosen: bool = False  # as of its row

  def __call__(self, *tensors, **named):
    """Calls the loss; a parameter given here replaces the bound one."""
    return self.function(*tensors, **{**self.parameters, **named})

  def of(self, tensors, stored=None):
    """Calls the loss on those of a step's tensors that it takes.

    Args:
      tensors: {name: array} of all that the step has; a missing one keeps its default.
      stored: {parameter: [] float32} of the learned parameters, as in `start`.
    Returns:
      (loss, terms); the terms hold the values of the learned parameters, too.
    """
    scalars = self.scalars(stored or {})
    given = {a: tensors[name] for a, name in self.tensors.items() if name in tensors}
    loss, terms = self(**given, **scalars)
    return loss, terms | scalars

  def start(self):
    """Returns {parameter: [] float32}, the stored form of each learned parameter at step 0."""
    return {
      name: np.float32(math.log(how.start) if how.positive else how.start)
      for name, how in self.learned.items()
    }

  def scalars(self, stored):
    """Returns {parameter: [] float32}, the values of the stored forms x: exp(x) where positive."""
    return {
      name: jnp.exp(stored[name]) if how.positive else jnp.asarray(stored[name])
      for name, how in self.learned.items()
      if name in stored
    }

  def projection(self):
    """Returns an optax transformation that keeps the values in params["loss"] at or above their
    lowest, by shortening updates; it is the last of a chain.
    """
    low = {
      name: math.log(how.at_least) if how.positive else how.at_least
      for name, how in self.learned.items()
      if how.at_least is not None
    }

    def cut(updates, params):
      stored = params["loss"]
      kept = {
        name: jnp.maximum(update, low[name] - stored[name]) if name in low else update
        for name, update in updates["loss"].items()
      }
      return {**updates, "loss": kept}

    return optax.stateless(cut)


def get(name, *, learn=(), **parameters):
  """Returns the loss `name` with its parameters bound, ready for the tensors.

  Args:
    name: key of LOSSES.
    learn: names of parameters that are trained.
    **parameters: the loss's own keyword parameters; the others keep their defaults.
  Returns:
    Bound: function of the loss's tensors -> (loss, terms).
  Raises:
    UserError: unknown name (lists the known ones) or parameter (lists the loss's own), a value that
      is not allowed, or a parameter that cannot be learned.
  """
  table.check(name, parameters)
  row = table.row(name)
  values = {key: declared.default for key, declared in row.parameters.items()} | parameters
  learned = {
    key: dataclasses.replace(how, start=values[key])
    for key, how in table.learned(name, learn).items()
  }
  tokens = table.takes_tokens(name, values)
  return Bound(name, resolve(row.function), row.routes, values, learned, tokens, row.chosen)


def get_ring(name, *, gather: bool | str = False, learn=(), **parameters):
  """Returns the form of a loss over several devices with its parameters bound, to be called inside
  shard_map.

  Args:
    name: key of LOSSES.  gather: False for the ring, else as in `xmr.losses.ring`.
    learn, **parameters: as of `get`.
  Returns:
    Bound: function of (image, text, image_id, *, axis_name) -> (loss, terms); see
    `xmr.losses.ring`.
  Raises:
    UserError: as `get`; a loss without a ring form (lists those that have one); a parameter that
      the ring form lacks, set to another value than its default.
  """
  plain, row = get(name, learn=learn, **parameters), table.row(name)
  form = row.ring or (row.gathered if gather else None)
  if form is None:
    known = sorted(key for key, row in table.LOSSES.items() if row.ring)
    raise UserError(
      f"loss {name} has no ring form; expected one of {', '.join(known)}, or config.loss_form=plain"
    )
  # Other similarities than products need all rows at once.
  own = set(table.fields.defaults(form)) - (set() if gather else {"kind"})
  for key, declared in row.parameters.items():
    if key not in own and plain.parameters[key] != declared.default:
      raise UserError(
        f"loss.{key} is {plain.parameters[key]!r}, but {name} in ring form knows only "
        f"{declared.default!r}; expected that, or config.loss_form=plain"
      )
  values = {key: value for key, value in plain.parameters.items() if key in own}
  return dataclasses.replace(
    plain,
    function=functools.partial(resolve(form), gather=gather),
    tensors=table.routes(table.RING_TENSORS),
    parameters=values,
  )
