"""Recall of ranking in two stages: a list by the tokens' means, ordered by alignment."""

import numpy as np

from xmr.errors import UserError
from xmr.eval import metrics
from xmr.eval.alignment import form_of, pooled
from xmr.eval.positives import checked_image_of_text
from xmr.eval.token_scores import pair_scores, sides
from xmr.eval.top_k import top_k


def shortlist(image, text, image_of_text, *, k, form):
  """Recall of ranking in two stages: the k best by the tokens' means, ordered by alignment.

  Args:
    image: Tokens [N, R, D].  text: Tokens [T, W, D].  image_of_text: [T] int.
    k: items of a list.  form: as `ranks`.
  Returns:
    {"i2t/r1", ... of the recalls at 1, 5, 10 that k allows, "i2t/missed", "t2i/...": percent};
    missed: queries none of whose positives is in the list, which no alignment can bring back.
  Raises:
    UserError: as `recall`; k below 1.
  """
  if k < 1:
    raise UserError(f"k is {k}; expected 1 or more")
  means = pooled(image, name="image"), pooled(text, name="text")
  image, text = sides(image, text, names=("image", "text"))
  owner = checked_image_of_text(image_of_text, n_texts=len(text), n_images=len(image))
  found = {}
  for task, first, second, other in (
    ("i2t", image, text, means),
    ("t2i", text, image, means[::-1]),
  ):
    items = np.asarray(top_k(other[0], other[1], min(k, len(second)))[1])
    queries = np.arange(len(items))[:, None]
    right = owner[items] == queries if task == "i2t" else items == owner[:, None]
    i = np.broadcast_to(queries, items.shape).reshape(-1)
    score = pair_scores(first, second, i, items.reshape(-1), form=form_of(form, task))
    score = score.reshape(items.shape)
    best = np.max(score, axis=1, where=right, initial=-np.inf)
    rank = np.count_nonzero(~right & (score >= best[:, None]), axis=1)
    hit = right.any(axis=1)
    for at in metrics.AT:
      if at <= k:
        found[f"{task}/r{at}"] = 100.0 * int(np.count_nonzero(hit & (rank < at))) / len(hit)
    found[f"{task}/missed"] = 100.0 * int(np.count_nonzero(~hit)) / len(hit)
  return found
