"""What a program takes at least, known from its shapes before anything is compiled."""

import dataclasses
import math

import jax

from xmr.losses import table as losses


@dataclasses.dataclass(frozen=True)
class TooLarge:
  """A program that no compiler could make fit: its arguments alone are more than the memory.

  Attributes:
    name, rows: as in bound.Program.  parts: {what: bytes} on one device.
  """

  name: str
  rows: int
  parts: dict[str, float]

  @property
  def compiled(self):
    """False."""
    return False

  @property
  def bytes(self):
    """The sum of the parts."""
    return sum(self.parts.values())

  def fits(self, chip):
    """False."""
    del chip
    return False


def per_device(tree):
  """Returns the bytes of a tree of placed shapes on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def of_step(state, batch, pool, config, mesh, *, loss):
  """Returns {what: bytes} that a training step holds on one device, whatever the compiler does.

  Args:
    state: TrainState, batch, pool: of placed shapes.  config: of the run.  mesh: of the slice.
    loss: Bound of the step.
  """
  rows = config.batch_size / mesh.size
  found = {
    "parameters": per_device((state.params, state.batch_stats, state.average)),
    "optimiser": per_device(state.opt_state),
    "training set": per_device((pool, state.bank)),
    "batch": per_device(batch),
    "embeddings": 2 * 4 * rows * config.model.dim,
  }
  if config.loss_form == "plain" and has_ring(loss):
    found["scores"] = 4 * rows * config.batch_size
  return found


def has_ring(loss):
  """Says whether a Bound loss compares all rows of a batch, and has a form that holds no [B, B]."""
  return losses.row(loss.name).ring is not None and not loss.tokens
