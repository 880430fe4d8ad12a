"""The ring: blocks of rows go around the devices, and each query keeps one number of its scores.

Every function is called inside `jax.shard_map` (its default `check_vma=True`) with rows sharded
over the mesh axis `axis_name`. Gradients are written by hand: a second turn of the ring recomputes
each [b, b] block, so that neither pass holds more than one block.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from xmr.ops import tiles
from xmr.ops.similarity import PRECISION


class Reduced(NamedTuple):
  """What one query keeps of the scores it met: a value with gradient, and a tuple of extras
  without; all [b].
  """

  value: jax.Array
  extra: tuple


class Rule(NamedTuple):
  """How scores [b, b] (queries in rows) become one number per query.

  start(positive) -> Reduced.  update(kept, scores, negative, positive, index) -> Reduced, with
  index [1, b] the global rows. slope(kept, scores, negative, positive, index) -> d value / d
  scores, [b, b]. positive_slope(kept) -> d value / d positive, [b].
  """

  start: Callable
  update: Callable
  slope: Callable
  positive_slope: Callable = lambda kept: jnp.zeros_like(kept.value)


def around(visit, kept, moving, axis_name):
  """kept, moving = visit(kept, moving, source) once per device; moving goes around and is home
  again at the end.
  """
  size, here = jax.lax.axis_size(axis_name), jax.lax.axis_index(axis_name)
  forward = [(i, (i + 1) % size) for i in range(size)]

  def step(turn, carried):
    kept, moving = visit(*carried, (here - turn) % size)
    return kept, jax.tree.map(lambda x: jax.lax.ppermute(x, axis_name, forward), moving)

  return jax.lax.fori_loop(0, size, step, (kept, moving))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def reduce(rule, axis_name, image, text, positive, image_id):
  """Reduced scores of this device's images over all texts, and of its texts over all images."""
  return _reduce_forward(rule, axis_name, image, text, positive, image_id)[0]


def _block(image, text, image_id, text_id):
  return jnp.matmul(image, text.T, precision=PRECISION), image_id[:, None] != text_id[None, :]


def index_of(block, size):
  """Global indices [1, size] of the rows of a block."""
  return (block * size + jnp.arange(size))[None, :]


def _reduce_forward(rule, axis_name, image, text, positive, image_id):
  here, size = jax.lax.axis_index(axis_name), image.shape[0]

  def visit(rows, moving, source):
    text, text_id, text_positive, columns = moving
    scores, negative = _block(image, text, image_id, text_id)
    rows = rule.update(rows, scores, negative, positive, index_of(source, size))
    columns = rule.update(columns, scores.T, negative.T, text_positive, index_of(here, size))
    return rows, (text, text_id, text_positive, columns)

  start = rule.start(positive)
  rows, moving = around(visit, start, (text, image_id, positive, start), axis_name)
  return (rows, moving[-1]), (image, text, positive, image_id, rows, moving[-1])


def _reduce_backward(rule, axis_name, residuals, cotangents):
  image, text, positive, image_id, rows, columns = residuals
  row_weight, column_weight = (cotangent.value for cotangent in cotangents)
  here, size = jax.lax.axis_index(axis_name), image.shape[0]

  def visit(image_gradient, moving, source):
    text, text_id, text_positive, columns, column_weight, text_gradient = moving
    scores, negative = _block(image, text, image_id, text_id)
    slopes = row_weight[:, None] * rule.slope(
      rows, scores, negative, positive, index_of(source, size)
    )
    mirrored = rule.slope(columns, scores.T, negative.T, text_positive, index_of(here, size))
    slopes += (column_weight[:, None] * mirrored).T
    image_gradient += jnp.matmul(slopes, text, precision=PRECISION)
    text_gradient += jnp.matmul(slopes.T, image, precision=PRECISION)
    return image_gradient, (text, text_id, text_positive, columns, column_weight, text_gradient)

  moving = (text, image_id, positive, columns, column_weight, jnp.zeros_like(text))
  image_gradient, moving = around(visit, jnp.zeros_like(image), moving, axis_name)
  positive_gradient = row_weight * rule.positive_slope(rows) + column_weight * rule.positive_slope(
    columns
  )
  return image_gradient, moving[-1], positive_gradient, None


reduce.defvjp(_reduce_forward, _reduce_backward)


def _count(mask):
  return jnp.sum(mask, axis=1, dtype=jnp.int32)


def _no_count(positive):
  return jnp.zeros_like(positive, dtype=jnp.int32)


def _totals(value, wrong):
  """A rule whose value is a sum over negatives, counting those that are wrong and all of them."""

  def update(kept, scores, negative, positive, index):
    total = jnp.sum(jnp.where(negative, value(scores, positive[:, None]), 0), axis=1)
    counts = _count(negative & wrong(scores, positive[:, None])), _count(negative)
    return Reduced(
      kept.value + total, tuple(a + b for a, b in zip(kept.extra, counts, strict=True))
    )

  return lambda positive: Reduced(jnp.zeros_like(positive), (_no_count(positive),) * 2), update


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


def _hardest_start(positive):
  return Reduced(
    jnp.full_like(positive, -jnp.inf), (jnp.full_like(positive, 2**31 - 1, dtype=jnp.int32),)
  )


def _hardest_update(kept, scores, negative, positive, index):
  scores = jnp.where(negative, scores, -jnp.inf)
  best, place = tiles.largest(scores, axis=1)
  place = index[0, place].astype(jnp.int32)
  # Blocks do not come in order of index: ties go to the lowest.
  better = (best > kept.value) | (
    (best == kept.value) & (best > -jnp.inf) & (place < kept.extra[0])
  )
  return Reduced(jnp.where(better, best, kept.value), (jnp.where(better, place, kept.extra[0]),))


HARDEST = Rule(
  _hardest_start,
  _hardest_update,
  slope=lambda kept, scores, negative, positive, index: (index == kept.extra[0][:, None]).astype(
    scores.dtype
  ),
)


def _log_sum_exp_update(kept, scores, negative, positive, index):
  scores = jnp.where(negative, scores, -jnp.inf)
  value = jnp.logaddexp(kept.value, jax.nn.logsumexp(scores, axis=1))
  return Reduced(value, (jnp.maximum(kept.extra[0], jnp.max(scores, axis=1)),))


def _log_sum_exp_slope(kept, scores, negative, positive, index):
  value = jnp.where(kept.value > -jnp.inf, kept.value, 0)
  return jnp.where(negative, jnp.exp(scores - value[:, None]), 0)


LOG_SUM_EXP = Rule(
  lambda positive: Reduced(jnp.full_like(positive, -jnp.inf), (jnp.full_like(positive, -jnp.inf),)),
  _log_sum_exp_update,
  _log_sum_exp_slope,
)
