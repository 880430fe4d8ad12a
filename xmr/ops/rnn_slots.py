"""How steps of sequences are stored: sorted by length, phase after phase, without the padding."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Phases of the time loop; lengths for which the products after it are compiled, and the least
# number of slots between two.
PHASES = 4
LEVELS = 16
MIN_SLOTS = 256


class Plan(NamedTuple):
  """The slot of each step of each row.  D shards of N rows, S slots per shard.

  order: [D, N] row of the shard at each sorted index.  rank: [D, N] its inverse.
  length: [D, N] in sorted order.  end: [phases] step at which each phase ends.
  base: [phases + 1] first slot of each phase; the last entry is the number of slots in use.
  """

  order: jax.Array
  rank: jax.Array
  length: jax.Array
  end: jax.Array
  base: jax.Array


def sizes_of(rows):
  """Returns the number of rows in each phase, all of them first; multiples of 8 suit vector
  units.
  """
  return tuple(
    sorted(
      {min(rows, -(-rows * i // (8 * PHASES)) * 8) for i in range(1, PHASES + 1)}, reverse=True
    )
  )


def levels_of(rows, steps):
  """Returns (levels, slots per level), together at least rows x steps slots."""
  each = max(MIN_SLOTS, -(-rows * steps // LEVELS))
  return -(-rows * steps // each), each


def plan_of(length, sizes):
  order = jnp.argsort(-length, axis=1, stable=True)
  length = jnp.take_along_axis(length, order, axis=1)
  # A phase ends with the longest row, in any shard, of those that the next phase drops.
  longest = jnp.max(length, axis=0)
  end = jnp.stack([longest[n] for n in (*sizes[1:], 0)])
  slots = jnp.diff(end, prepend=0) * jnp.array(sizes)
  base = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(slots, dtype=jnp.int32)])
  return Plan(order, jnp.argsort(order, axis=1), length, end, base)


def _first_slot(plan, sizes, step):
  """Returns the first slot of each step, same shape as `step`."""
  phase = jnp.sum(step[..., None] >= plan.end[:-1], axis=-1)
  begin = jnp.concatenate([jnp.zeros(1, jnp.int32), plan.end[:-1]])
  return plan.base[phase] + (step - begin[phase]) * jnp.array(sizes)[phase]


def pack(x, plan, sizes, slots, reverse):
  """x [D, N, L, F] in rows and steps -> [D, S, F] in slots, zero where a slot holds no step."""
  slot = jnp.arange(slots)
  phase = jnp.sum(slot[:, None] >= plan.base[1:-1], axis=-1)
  begin = jnp.concatenate([jnp.zeros(1, jnp.int32), plan.end[:-1]])
  inside, size = slot - plan.base[phase], jnp.array(sizes)[phase]
  step, row = begin[phase] + inside // size, inside % size
  length = plan.length[:, row]
  valid = (step < length) & (slot < plan.base[-1])
  step = jnp.where(valid, length - 1 - step if reverse else step, 0)
  flat = x.reshape(x.shape[0], -1, x.shape[-1])
  packed = jnp.take_along_axis(flat, (plan.order[:, row] * x.shape[2] + step)[..., None], axis=1)
  return jnp.where(valid[..., None], packed, 0)


def unpack(packed, plan, sizes, steps, reverse, after=None):
  """The inverse of pack: [D, S, F] -> [D, N, L, F], zero from each row's length on.

  With `after` [D, N, F], each step gets the slot of the next step, and the last step gets `after`.
  """
  length = jnp.take_along_axis(plan.length, plan.rank, axis=1)[..., None]
  step = jnp.arange(steps)
  valid = step < length
  step = jnp.where(valid, length - 1 - step if reverse else step, 0)
  if after is not None:
    last = step == length - 1
    step = jnp.where(last, 0, step + 1)
  slot = _first_slot(plan, sizes, step) + plan.rank[..., None]
  rows = jnp.take_along_axis(packed, slot.reshape(len(slot), -1, 1), axis=1).reshape(
    *valid.shape, -1
  )
  if after is not None:
    rows = jnp.where(last[..., None], after[..., None, :], rows)
  return jnp.where(valid[..., None], rows, 0)
