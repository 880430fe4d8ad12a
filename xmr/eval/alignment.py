"""Ranks, recall and lists by alignments of regions with words, exact for every size of block.

The functions of `ranks`, `top_k`, `protocol` and `graded` call this module for Tokens.
"""

import numpy as np

from xmr.errors import UserError, choice
from xmr.eval import metrics
from xmr.eval.positives import checked_image_of_text, pairs_of
from xmr.eval.token_scores import blocks, pair_scores, sides, slack_of
from xmr.ops.alignment import FORMS, MIRROR, WITHIN

TASKS = ("i2t", "t2i", "i2i", "t2t")


def form_of(form, task):
  """The form of a task whose query comes first; one-sided forms sum over the query's tokens in i2i
  and t2t.
  """
  choice("form", form, tuple(FORMS))
  choice("task", task, TASKS)
  return {"i2t": form, "t2i": MIRROR[form]}.get(task, WITHIN[form])


def pooled(tokens, *, name):
  """The embeddings whose cosine is the similarity "pooled": the means of Tokens, [N, D] float32."""
  mask = np.asarray(tokens.mask, bool)
  empty = np.flatnonzero(~mask.any(axis=1))
  if len(empty):
    raise UserError(
      f"{name} {empty[0]} has no token, its mask is empty ({len(empty)} of {len(mask)} rows); "
      "expected at least one"
    )
  count = mask.sum(axis=1, keepdims=True).astype(np.float32)
  return np.einsum("nrd,nr->nd", np.asarray(tokens.x, np.float32), mask / count)


def means(first, second, *, kind, names):
  """Returns (first, second, kind): for "pooled" the means of the Tokens and "cosine", otherwise the
  arguments unchanged.
  """
  if kind != "pooled":
    return first, second, kind
  first, second = (pooled(x, name=name) for x, name in zip((first, second), names, strict=True))
  return first, second, "cosine"


def ranks(query, gallery, positives, *, form, task, block=None):
  """Rank of the best positive of each query by alignment; the tie rule of `eval.ranks`.

  Args:
    query: Tokens [Q, R, D].  gallery: Tokens [G, W, D].
    positives: [Q] int, or [Q, P] padded with -1.
    form: as `ops.alignment.aligned`.  task: "i2t", "t2i", "i2i" or "t2t".
    block: queries and gallery rows at a time; None: what keeps products to 32 MB.
  Returns:
    [Q] int32, 0-based.
  Raises:
    UserError: shapes, NaN, a row of no token (names the side and the row), an unknown form or task,
      a query without a positive.
  """
  form = form_of(form, task)
  first, second = sides(query, gallery, names=("query", "gallery"))
  pairs = pairs_of(positives, n_queries=len(first), n_gallery=len(second))
  return count(first, second, pairs, form=form, block=block, both=False)[0]["rank"]


def recall(image, text, image_of_text, **options):
  """`protocol.recall` by alignments; arguments as of `counted`."""
  return counted(image, text, image_of_text, **options)[0]


def counted(image, text, image_of_text, *, form, folds=1, block=None):
  """`protocol.counted` by alignments: both directions from one pass.

  Args:
    image: Tokens [N, R, D].  text: Tokens [T, W, D].  image_of_text, folds: as `protocol.recall`.
    form, block: as `ranks`.
  """
  choice("form", form, tuple(FORMS))
  image, text = sides(image, text, names=("image", "text"))
  owner = checked_image_of_text(image_of_text, n_texts=len(text), n_images=len(image))
  fold = metrics.fold_of(owner, n_images=len(image), folds=folds)
  size, scores = len(image) // folds, []
  ranks = [np.empty(len(side), np.int32) for side in (image, text)]
  for f in range(folds):
    images, texts = slice(f * size, (f + 1) * size), np.flatnonzero(fold == f)
    # A slice where it can be: a view, not a copy.
    if texts[-1] - texts[0] + 1 == len(texts):
      texts = slice(texts[0], texts[-1] + 1)
    part = image.take(images), text.take(texts)
    pairs = owner[texts] - f * size, np.arange(len(part[1]))
    found = count(*part, pairs, form=form, block=block)
    ranks[0][images], ranks[1][texts] = (side["rank"] for side in found)
    ties = {
      f"{name}/ties": int(np.count_nonzero(side["ties"]))
      for name, side in zip(metrics.DIRECTIONS, found, strict=True)
    }
    scores.append({**metrics.both_directions(*(side["rank"] for side in found)), **ties})
  of_query = {f"{name}/rank": of for name, of in zip(metrics.DIRECTIONS, ranks, strict=True)}
  return metrics.mean_of_folds(scores), of_query


def top_k(query, gallery, k, *, form, task, block=None):
  """The k best gallery items of each query by alignment; of equal scores the lowest index.

  Args:
    query, gallery, form, task, block: as `ranks`.
    k: items, at most the size of the gallery.
  Returns:
    (scores [Q, k] float32, indices [Q, k] int32), best first.
  Raises:
    UserError: as `ranks`; k out of range.
  """
  form = form_of(form, task)
  first, second = sides(query, gallery, names=("query", "gallery"))
  if not 1 <= k <= len(second):
    raise UserError(f"k is {k}; expected 1 to {len(second)}, the size of the gallery")
  scores = np.empty((len(first), k), np.float32)
  indices = np.empty((len(first), k), np.int32)
  rows = np.empty((0, len(second)), np.float32)
  for r, c, part in blocks(first, second, form=form, block=block, by_row=True):
    if c == 0:
      rows = np.empty((len(part), len(second)), np.float32)
    rows[:, c : c + part.shape[1]] = part
    if c + part.shape[1] < len(second):
      continue
    # Items that float32 rounding may have put below the k-th best are scored exactly.
    span = slice(r, r + len(part))
    slack = slack_of(first, second, span, slice(None), form=form).max(axis=1, keepdims=True)
    kth = np.partition(rows, len(second) - k, axis=1)[:, len(second) - k, None]
    i, j = np.nonzero(rows >= kth - 2 * slack)
    exact = pair_scores(first, second, i + r, j, form=form)
    order = np.lexsort((j, -exact, i))
    nth = np.arange(len(i)) - np.searchsorted(i[order], i[order])
    best = order[nth < k]
    indices[span] = j[best].reshape(-1, k)
    scores[span] = exact[best].reshape(-1, k)
  return scores, indices


def ranked_lists(image, text, *, k=25, form, include_self=True):
  """Lists of the four tasks as `graded.ranked_lists` returns them, by alignments.

  Args:
    image: Tokens [N, R, D].  text: Tokens [T, W, D].  k, include_self: as there.
    form: as `ranks`.
  """
  lists, of = {}, {"i": image, "t": text}
  for task in TASKS:
    within = task[0] == task[2] and not include_self
    _, found = top_k(of[task[0]], of[task[2]], k + within, form=form, task=task)
    if within:
      own = found == np.arange(len(found))[:, None]
      own[~own.any(axis=1), -1] = True
      found = found[~own].reshape(len(found), k)
    lists[task] = found
  return lists


def count(first, second, pairs, *, form, block=None, both=True):
  """Ranks of the best positive in both directions, from one pass.

  Args:
    first, second: Side.  pairs: ([M], [M]) int, rows of every positive pair.
    form: first's tokens are the regions.  both: False scores first's rows alone.
  Returns:
    [rows, columns], or [rows] unless `both`: {"rank", "ties": [.] int32}.
  """
  i, j = pairs
  positive = np.unique(i.astype(np.int64) * len(second) + j)
  score = pair_scores(first, second, i, j, form=form)
  best = [np.full(len(side), -np.inf) for side in (first, second)]
  counts = [np.zeros((2, len(side)), np.int64) for side in (first, second)]
  for top, own in zip(best, (i, j), strict=True):
    np.maximum.at(top, own, score)
  for r, c, part in blocks(first, second, form=form, block=block):
    spans = slice(r, r + part.shape[0]), slice(c, c + part.shape[1])
    slack = slack_of(first, second, *spans, form=form)
    near = np.zeros(part.shape, np.uint8)
    for side in range(1 + both):
      gap = part - np.expand_dims(best[side][spans[side]], 1 - side)
      near |= (np.abs(gap) <= slack).astype(np.uint8) << side
      counts[side][0, spans[side]] += np.count_nonzero(gap > slack, axis=1 - side)
    # The exact score decides between scores that float32 cannot tell apart.
    i, j = np.nonzero(near)
    near, i, j = near[i, j], i + r, j + c
    code = i.astype(np.int64) * len(second) + j
    at = np.minimum(np.searchsorted(positive, code), len(positive) - 1)
    other = positive[at] != code
    near, i, j = near[other], i[other], j[other]
    score = pair_scores(first, second, i, j, form=form)
    for side in range(1 + both):
      mine = (near >> side & 1) > 0
      own = (i, j)[side][mine]
      np.add.at(counts[side][0], own[score[mine] > best[side][own]], 1)
      np.add.at(counts[side][1], own[score[mine] == best[side][own]], 1)
  found = [
    {"rank": (above + ties).astype(np.int32), "ties": ties.astype(np.int32)}
    for above, ties in counts
  ]
  return found[: 1 + both]
