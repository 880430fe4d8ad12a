"""All pairs of rows that lie on several devices: each query reduces its scores to one number.

There are two ways, with equal results up to rounding. In the ring, blocks of rows go around the
devices; the backward pass sends them around again and recomputes each [b, b] block, so that neither
pass holds more than one. It moves 12 B D bytes (rows, then rows and their gradient). In the other,
all rows of both sides are gathered first, 8 B D bytes, or 4 B D where they are sent as bfloat16. A
device then scores its images with all texts, [b, B], and in the backward pass also its texts with
all images, so that it has the whole gradient of its own rows and none is sent.

Every function is called inside `jax.shard_map` (its default `check_vma=True`) with rows sharded
over the mesh axis `axis_name`. Gradients are written by hand.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xmr.ops import tiles
from xmr.ops.arrays import custom_gradient, without_masks
from xmr.ops.similarity import PRECISION


class Reduced(NamedTuple):
  """What each query keeps of its scores, all [n]: a value with a gradient, extras without one."""

  value: jax.Array
  extra: tuple


class Rule(NamedTuple):
  """How scores [n, m] of n queries become one number per query.

  start(positive) -> Reduced of no scores.
  of(scores, negative, positive, index) -> Reduced of one block; index [1, m]: the global rows of
    its columns.
  join(parts) -> Reduced of several blocks in any order, [k, n] each.
  slope(kept, scores, negative, positive, index) -> d value / d scores.
  positive_slope(kept) -> d value / d positive, [n].
  """

  start: Callable
  of: Callable
  join: Callable
  slope: Callable
  positive_slope: Callable = lambda kept: jnp.zeros_like(kept.value)


def around(visit, kept, moving, axis_name):
  """Calls kept, moving = visit(kept, moving, source) once per device; `moving` goes around the ring
  and ends where it began.
  """
  size, here = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
  forward = [(i, (i + 1) % size) for i in range(size)]

  def step(turn, carried):
    kept, moving = visit(*carried, (here - turn) % size)
    return kept, jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, forward), moving)

  return jax.lax.fori_loop(0, size, step, (kept, moving))


def meet(visit, kept, rows, axis_name, whole=None):
  """Calls kept = visit(kept, block, start) for blocks that together are all rows; returns the last
  `kept`.

  Args:
    visit: function of `kept`, a block of rows, and the block's first global row.
    rows: tree of [b, ...] that goes around.  whole: tree of [B, ...] of all rows, if every device
      holds them; they are then the only block, and nothing goes around.
  """
  if whole is not None:
    return visit(kept, whole, 0)
  size = len(jax.tree.leaves(rows)[0])
  return around(
    lambda kept, moving, source: (visit(kept, moving, source * size), moving), kept, rows, axis_name
  )[0]


def gathered(x, axis_name):
  """All rows of a tree, [b, ...] -> [B, ...], without a gradient."""
  return jax.tree.map(
    lambda x: jax.lax.all_gather(jax.lax.stop_gradient(x), axis_name, tiled=True), x
  )


def all_rows(tree, axis_name, gather):
  """`gathered`, with rows [b, D] rounded to `gather` on their way where it is a type of 16 bits and
  no True or "float32"; the result has the type of the rows.
  """

  def whole(x):
    if gather in (True, "float32") or x.dtype == bool:
      return gathered(x, axis_name)
    # Sent as integers, as XLA's collectives on CPUs would send bfloat16 as float32.
    bits = jax.lax.bitcast_convert_type(x.astype(gather), jnp.uint16)
    return jax.lax.bitcast_convert_type(gathered(bits, axis_name), gather).astype(x.dtype)

  return jax.tree.map(whole, tree)


def as_sent(tree, gather):
  """This device's rows as others get them from `all_rows`, so that each device scores a pair by the
  same numbers; rounding counts as no change in the gradient.
  """

  def rounded(x):
    if gather in (True, "float32") or x.dtype == bool:
      return x
    return x + jax.lax.stop_gradient(x.astype(gather).astype(x.dtype) - x)

  return jax.tree.map(rounded, tree)


@custom_gradient(0, 1)
def reduce(rule, axis_name, image, text, positive, image_id):
  """Reduced scores of this device's images over all texts, and of its texts over all images, with
  the texts going around.

  Args:
    rule: one of the rules below.  axis_name: the mesh axis of the rows.
    image, text: [b, D] float, this device's rows.  positive: [b] float, an input of the rule.
    image_id: [b] int; rows of one number are never each other's negatives.
  Returns:
    (Reduced of the images, Reduced of the texts), [b] each.
  """
  return _reduce_forward(rule, axis_name, image, text, positive, image_id)[0]


@custom_gradient(0, 1, 2)
def reduce_gathered(rule, axis_name, score, own, every, scalars, negative, positive):
  """`reduce` where every device has all rows.

  Args:
    rule, axis_name, positive: as in `reduce`.
    score: function of (rows [n, D], others [m, D], scalars, text_query=: whether the rows are
      texts) -> scores [n, m].
    own: (image, text), this device's rows.  every: (images, texts), all of them, which take no
      gradient.  scalars: tree of numbers that score needs.
    negative: [b, B] bool, which of all rows may be negatives of this device's; the same of its
      images among all texts as of its texts among all images.
  """
  return _gathered_forward(rule, axis_name, score, own, every, scalars, negative, positive)[0]


def search(axis_name, scores, negative):
  """Index of the hardest negative of this device's images and of its texts, [b] each; NOWHERE where
  there is none. Without a gradient.

  Args:
    scores: [b, B] of this device's images with all texts.  negative: [b, B] bool.
  """
  found = _reduced(HARDEST, axis_name, scores, negative, jnp.zeros_like(scores[:, 0]))
  return tuple(side.extra[0] for side in found)


def _block(image, text, image_id, text_id):
  return jnp.matmul(image, text.T, precision=PRECISION), image_id[:, None] != text_id[None, :]


def index_of(block, size):
  """Global indices [1, size] of the rows of a block."""
  return (block * size + jnp.arange(size))[None, :]


def _slopes(rule, weights, kept, block, positives, indices):
  """Slope of the loss in each score of a block [n, m], from both its row and its column."""
  scores, negative = block
  of_rows = rule.slope(kept[0], scores, negative, positives[0], indices[0])
  of_columns = rule.slope(kept[1], scores.T, negative.T, positives[1], indices[1])
  return weights[0][:, None] * of_rows + (weights[1][:, None] * of_columns).T


def _positive_slopes(rule, weights, kept):
  return sum(w * rule.positive_slope(part) for w, part in zip(weights, kept, strict=True))


def _reduce_forward(rule, axis_name, image, text, positive, image_id):
  here, size = jax.lax.axis_index(axis_name), image.shape[0]

  def joined(kept, new):
    return rule.join(jax.tree.map(lambda *x: jnp.stack(x), kept, new))

  def visit(rows, moving, source):
    text, text_id, text_positive, columns = moving
    scores, negative = _block(image, text, image_id, text_id)
    rows = joined(rows, rule.of(scores, negative, positive, index_of(source, size)))
    of_columns = rule.of(scores.T, negative.T, text_positive, index_of(here, size))
    return rows, (text, text_id, text_positive, joined(columns, of_columns))

  start = rule.start(positive)
  rows, moving = around(visit, start, (text, image_id, positive, start), axis_name)
  return (rows, moving[-1]), (image, text, positive, image_id, rows, moving[-1])


def _reduce_backward(rule, axis_name, residuals, cotangents):
  image, text, positive, image_id, rows, columns = residuals
  row_weight, column_weight = (cotangent.value for cotangent in cotangents)
  here, size = jax.lax.axis_index(axis_name), image.shape[0]

  def visit(image_gradient, moving, source):
    text, text_id, text_positive, columns, column_weight, text_gradient = moving
    slopes = _slopes(
      rule,
      (row_weight, column_weight),
      (rows, columns),
      _block(image, text, image_id, text_id),
      (positive, text_positive),
      (index_of(source, size), index_of(here, size)),
    )
    image_gradient += jnp.matmul(slopes, text, precision=PRECISION)
    text_gradient += jnp.matmul(slopes.T, image, precision=PRECISION)
    return image_gradient, (text, text_id, text_positive, columns, column_weight, text_gradient)

  moving = (text, image_id, positive, columns, column_weight, jnp.zeros_like(text))
  image_gradient, moving = around(visit, jnp.zeros_like(image), moving, axis_name)
  positive_gradient = _positive_slopes(rule, (row_weight, column_weight), (rows, columns))
  return image_gradient, moving[-1], positive_gradient, None


reduce.defvjp(_reduce_forward, _reduce_backward)


def _reduced(rule, axis_name, scores, negative, positive):
  """Reduced scores of this device's images, and of its texts."""
  here, (size, batch) = jax.lax.axis_index(axis_name), scores.shape
  rows = rule.of(scores, negative, positive, index_of(0, batch))
  parts = rule.of(scores.T, negative.T, gathered(positive, axis_name), index_of(here, size))
  # Each device gets what all devices found for its own texts.
  exchange = functools.partial(jax.lax.all_to_all, axis_name=axis_name, split_axis=0, concat_axis=0)
  return rows, rule.join(jax.tree.map(lambda x: exchange(x.reshape(-1, size)), parts))


def _gathered_forward(rule, axis_name, score, own, every, scalars, negative, positive):
  kept = _reduced(rule, axis_name, score(own[0], every[1], scalars), negative, positive)
  return kept, (own, every, scalars, negative, positive, kept)


def _gathered_backward(rule, axis_name, score, residuals, cotangents):
  own, every, scalars, negative, positive, kept = residuals
  here, (size, batch) = jax.lax.axis_index(axis_name), negative.shape
  weights = tuple(cotangent.value for cotangent in cotangents)
  all_kept, all_weights, all_positive = gathered((kept, weights, positive), axis_name)

  def of(side, rows):
    others, is_text = every[1 - side], side == 1
    scores, back = jax.vjp(
      lambda rows, scalars: score(rows, others, scalars, text_query=is_text), rows, scalars
    )
    slopes = _slopes(
      rule,
      (weights[side], all_weights[1 - side]),
      (kept[side], all_kept[1 - side]),
      (scores, negative),
      (positive, all_positive),
      (index_of(0, batch), index_of(here, size)),
    )
    gradient, of_scalars = back(slopes)
    return without_masks(gradient), of_scalars

  image, of_scalars = of(0, own[0])
  # One after the other, so that the blocks of scores do not exist side by side.
  text, _ = jax.lax.optimization_barrier((own[1], image))
  text, _ = of(1, text)
  return (image, text), None, of_scalars, None, _positive_slopes(rule, weights, kept)


reduce_gathered.defvjp(_gathered_forward, _gathered_backward)


def _sum_of_parts(parts):
  return jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=x.dtype), parts)


def _totals(value, wrong):
  """A rule whose value is a sum over negatives; it counts all negatives and the wrong ones."""

  def start(positive):
    none = jnp.zeros_like(positive, dtype=jnp.int32)
    return Reduced(jnp.zeros_like(positive), (none, none))

  def of(scores, negative, positive, index):
    masks = negative & wrong(scores, positive[:, None]), negative
    total = jnp.sum(jnp.where(negative, value(scores, positive[:, None]), 0), axis=1)
    return Reduced(total, tuple(jnp.sum(mask, axis=1, dtype=jnp.int32) for mask in masks))

  return start, of, _sum_of_parts


HINGES = Rule(
  *_totals(lambda scores, floor: jax.nn.relu(scores - floor), lambda scores, floor: scores > floor),
  slope=lambda kept, scores, negative, floor, index: (negative & (scores > floor[:, None])).astype(
    scores.dtype
  ),
  positive_slope=lambda kept: -kept.extra[0].astype(kept.value.dtype),
)

SOFTPLUS = Rule(
  *_totals(lambda scores, _: jax.nn.softplus(scores), lambda scores, _: scores >= 0),
  slope=lambda kept, scores, negative, positive, index: jnp.where(
    negative, jax.nn.sigmoid(scores), 0
  ),
)


NOWHERE = 2**31 - 1  # the index of no negative


def _hardest(scores, negative, positive, index):
  best, first = tiles.largest(jnp.where(negative, scores, -jnp.inf), axis=1)
  first = jnp.where(best == -jnp.inf, NOWHERE, index[0, first]).astype(jnp.int32)
  return Reduced(best, (first,))


def _hardest_of_parts(parts):
  top = jnp.max(parts.value, axis=0)
  # Ties go to the lowest index. NaN equals nothing, and the loss has to show it.
  first = jnp.where((parts.value == top) | jnp.isnan(parts.value), parts.extra[0], NOWHERE)
  return Reduced(top, (jnp.min(first, axis=0),))


HARDEST = Rule(
  lambda positive: Reduced(
    jnp.full_like(positive, -jnp.inf), (jnp.full_like(positive, NOWHERE, dtype=jnp.int32),)
  ),
  _hardest,
  _hardest_of_parts,
  slope=lambda kept, scores, negative, positive, index: (index == kept.extra[0][:, None]).astype(
    scores.dtype
  ),
)


def _log_sum_exp(scores, negative, positive, index):
  scores = jnp.where(negative, scores, -jnp.inf)
  return Reduced(jax.nn.logsumexp(scores, axis=1), (jnp.max(scores, axis=1),))


def _log_sum_exp_slope(kept, scores, negative, positive, index):
  value = jnp.where(kept.value > -jnp.inf, kept.value, 0)
  return jnp.where(negative, jnp.exp(scores - value[:, None]), 0)


LOG_SUM_EXP = Rule(
  lambda positive: Reduced(jnp.full_like(positive, -jnp.inf), (jnp.full_like(positive, -jnp.inf),)),
  _log_sum_exp,
  lambda parts: Reduced(jax.nn.logsumexp(parts.value, axis=0), (jnp.max(parts.extra[0], axis=0),)),
  _log_sum_exp_slope,
)
