"""Scores of pairs with negatives that were chosen for them among the rows of a batch on several
devices.

All rows are gathered before the choice, 8 B D bytes of both sides, and no gradient is sent back. A
row has a gradient as the negative of others' pairs, too; the device that holds it computes that
itself, from the gathered rows and the slopes of those pairs' scores, a few numbers a pair.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from xmr.ops import ring
from xmr.ops.arrays import custom_gradient, without_masks

SIDES = (0, 1)  # image, text


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chosen:
  """Rows of one side of a batch that is split over the devices of a mesh of one axis, by index.

  Attributes:
    every: [B, D], or Tokens: all rows, on each device, without a gradient.
    index: [B] int, the chosen ones.  mesh: jax.sharding.Mesh.
  """

  every: Any
  index: Any
  mesh: Any = dataclasses.field(metadata={"static": True})


def row_by_row(function: Callable, image, text, image_negative, text_negative):
  """Returns function(image, text, image_negative, text_negative), where negatives may be Chosen.

  Args:
    function: of four sets of n rows -> tree of [n] float; entry k comes from the rows k alone, and
      nothing in it asks other devices.
    image, text: [B, D], or Tokens.
    image_negative, text_negative: the same, or both Chosen.
  """
  negatives = image_negative, text_negative
  if not all(isinstance(each, Chosen) for each in negatives):
    return function(image, text, *negatives)
  mesh, (axis,) = image_negative.mesh, image_negative.mesh.axis_names
  rows, whole = PartitionSpec(axis), PartitionSpec()
  local = jax.shard_map(
    lambda *arrays: scores(function, axis, SIDES, *arrays),
    mesh=mesh,
    in_specs=(rows, whole, rows),
    out_specs=rows,
  )
  every, index = ([getattr(each, name) for each in negatives] for name in ("every", "index"))
  return local([image, text], every, index)


@custom_gradient(0, 1, 2)
def scores(function, axis_name, sides, own, every, index):
  """function(*own, *negatives) of this device's pairs, inside `jax.shard_map`.

  Args:
    function: as in `row_by_row`, with as many negatives as `sides` names.
    axis_name: the mesh axis of the rows.  sides: of each negative, 0 for an image, 1 for a text.
    own: [image, text], this device's rows.  every: all rows of both, which take no gradient.
    index: [b] int of each negative: its rows in `every`.
  """
  return function(*own, *_rows_at(sides, every, index))


def _rows_at(sides, every, index):
  return [every[side][rows] for side, rows in zip(sides, index, strict=True)]


def _forward(function, axis_name, sides, own, every, index):
  return scores(function, axis_name, sides, own, every, index), (own, every, index)


def _backward(function, axis_name, sides, residuals, cotangent):
  own, every, index = residuals
  _, back = jax.vjp(lambda *own: function(*own, *_rows_at(sides, every, index)), *own)
  gradients = [without_masks(gradient) for gradient in back(cotangent)]
  every_index, every_cotangent = ring.gathered((index, cotangent), axis_name)
  for k, side in enumerate(sides):

    def slopes(pair, k=k):
      """Gradient of the k-th negatives of some pairs."""
      rows = [x[pair] for x in every]
      negatives = _rows_at(sides, every, [each[pair] for each in every_index])
      _, back = jax.vjp(
        lambda x: function(*rows, *negatives[:k], x, *negatives[k + 1 :]), negatives[k]
      )
      return without_masks(back(jax.tree.map(lambda c: c[pair], every_cotangent))[0])

    start = lax.axis_index(axis_name) * len(own[side])
    gradients[side] = _added(gradients[side], slopes, every_index[k] - start, len(own[side]))
  return gradients, None, None


scores.defvjp(_forward, _backward)


def _added(gradient, slopes, at, size):
  """Adds to the gradient of this device's rows what they have as negatives, `size` pairs at a time.

  Usually about so many pairs have their negative here, and one or two turns do; where one row is
  the negative of all, there are as many turns as devices.

  Args:
    gradient: tree of [size, ...].  slopes: function of pairs [size] -> tree of gradients [size,
      ...].
    at: [B] int, where a pair's negative lies among this device's rows; elsewhere if not in [0,
      size).
  """
  here = (at >= 0) & (at < size)
  pairs, count = jnp.nonzero(here, size=len(at), fill_value=0)[0], jnp.sum(here)

  def add(carried):
    turn, total = carried
    first = turn * size
    pair = lax.dynamic_slice_in_dim(pairs, first, size)
    # What does not count is added past the end: nowhere.
    place = jnp.where(first + jnp.arange(size) < count, at[pair], size)
    return turn + 1, jax.tree.map(
      lambda old, new: old.at[place].add(new, mode="drop"), total, slopes(pair)
    )

  start = 0 * count, gradient
  return lax.while_loop(lambda carried: carried[0] * size < count, add, start)[1]
