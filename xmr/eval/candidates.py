"""The best few items of each query, merged block by block: with top_k on an accelerator, with a
rising bound on a CPU.

XLA's top_k walks over the entries on one core of a CPU, which takes longer than the products.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

GROUPS = 8  # entries per group; the first bound of a row sees the largest of each group


def empty(rows, keep):
  """The best of no items: scores [rows, keep] float32, all -inf, and indices [rows, keep] int32."""
  return np.full((rows, keep), -np.inf, np.float32), np.zeros((rows, keep), np.int32)


def merge_of(mesh):
  """Returns the function (best, scores, starts, ends, by_column=False) -> best for this kind of
  device.

  mesh: whose devices hold the scores; None: one device.
  best: scores [Q, keep] float32 and indices [Q, keep] int32, in any order.
  scores: [Q, C] float32 on the device, or [C, Q] with `by_column`.
  starts: the numbers of the first query and of the first item of this block.  ends: how many of
  each there are; scores beyond are padding.
  Ties at the cut-off are broken arbitrarily.
  """
  return merge_on_device if mesh is not None else _merge


def _merge(best, scores, starts, ends, *, by_column=False):
  on_host = isinstance(scores, np.ndarray) or {x.platform for x in scores.devices()} == {"cpu"}
  merge = merge_on_host if on_host else merge_on_device
  return merge(best, scores, starts, ends, by_column=by_column)


def in_order(best):
  """Sorts candidates from the best to the worst; of equal scores the lowest index comes first."""
  score, index = best
  order = np.lexsort((index, -score), axis=1)
  return np.take_along_axis(score, order, axis=1), np.take_along_axis(index, order, axis=1)


@functools.partial(jax.jit, static_argnames="by_column")
def merge_on_device(best, scores, starts, ends, *, by_column=False):
  scores = scores.T if by_column else scores
  index = starts[1] + jnp.arange(scores.shape[1], dtype=jnp.int32)
  scores = jnp.where(index[None, :] < ends[1], scores, -jnp.inf)
  keep = best[0].shape[1]
  block_scores, block_index = jax.lax.top_k(scores, min(keep, scores.shape[1]))
  scores = jnp.concatenate([best[0], block_scores], axis=1)
  index = jnp.concatenate([best[1], block_index + starts[1]], axis=1)
  scores, at = jax.lax.top_k(scores, keep)
  return scores, jnp.take_along_axis(index, at, axis=1)


def merge_on_host(best, scores, starts, ends, *, by_column=False):
  rows, columns = (end - start for start, end in zip(starts, ends, strict=True))
  scores = (np.asarray(scores).T if by_column else np.asarray(scores))[:rows, :columns]
  score, index = (np.asarray(x) for x in best)
  keep = score.shape[1]
  bound = np.nextafter(score[: len(scores)].min(axis=1), np.float32(np.inf))
  if np.isinf(score).any():
    bound = np.maximum(bound, reached(scores, keep))
  row, column = np.divmod(np.flatnonzero(scores >= bound[:, None]), scores.shape[1])
  if not len(row):
    return best
  counts = np.bincount(row, minlength=len(score))
  column_of = keep + np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
  score = np.pad(score, ((0, 0), (0, counts.max())), constant_values=-np.inf)
  index = np.pad(index, ((0, 0), (0, counts.max())))
  score[row, column_of] = scores[row, column]
  index[row, column_of] = starts[1] + column
  kept = np.argpartition(score, -keep, axis=1)[:, -keep:]
  return np.take_along_axis(score, kept, axis=1), np.take_along_axis(index, kept, axis=1)


def reached(scores, keep):
  """A number for each row that at least `keep` of its entries reach, and few more; [Q, C] -> [Q].

  The keep-th largest of the largest entries of C // GROUPS groups; -inf where there are fewer than
  `keep` groups.
  """
  width = scores.shape[1] // GROUPS
  if width < keep:
    return np.full(len(scores), -np.inf, np.float32)
  top = scores[:, :width]
  for group in range(1, GROUPS):
    top = np.maximum(top, scores[:, group * width : (group + 1) * width])
  return np.partition(top, width - keep, axis=1)[:, width - keep]
