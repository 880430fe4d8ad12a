"""Figures beyond recall that a run's config asks for, and what every single query scores."""

import os

import numpy as np

from xmr.eval import exact
from xmr.eval.graded import TASKS, check_k, graded_by, per_query, ranked_lists
from xmr.eval.ranks import count
from xmr.eval.relevance import load_spice, rouge_l

K = 25  # length of the lists of graded retrieval, as released


def check(config, split):
  """Raises UserError where graded retrieval is asked for that a split or a file cannot give; before
  training, not after.
  """
  evaluate = config.evaluate
  if evaluate.graded or evaluate.spice:
    check_k(
      K,
      n_images=len(split.image_id),
      n_texts=len(split.text_id),
      include_self=evaluate.include_self,
    )
  if evaluate.spice:
    _spice(config, split)


def figures(config, split, image, text):
  """Scores graded retrieval in four tasks by the relevances that config.evaluate names.

  Args:
    config: of the run; reads evaluate.graded, .spice, .include_self, similarity, data.dir,
      data.cache_dir.
    split: Split.  image: [N, D] float.  text: [T, D] float.
  Returns:
    figures: as `graded_by`; {} where nothing is asked for.
    queries: {"i2t/rank": [N] int32, "t2i/rank": [T], from 0; "rouge_l/i2t/ndcg": [N],
      "rouge_l/t2i/ndcg": [T] and so on
    float32, for i2i one row per caption of the query; "image_of_text": [T]}.
  Raises:
    UserError: as `graded`, `load_spice`.
  """
  evaluate, owner = config.evaluate, np.asarray(split.image_of_text)
  pairs = owner, np.arange(len(owner))
  sides = count(*exact.sides(image, text, kind=config.similarity), pairs, kind=config.similarity)
  queries = {"i2t/rank": sides[0]["rank"], "t2i/rank": sides[1]["rank"], "image_of_text": owner}
  relevances = {}
  if evaluate.graded:
    relevances["rouge_l"] = rouge_l(
      split.texts, owner, n_images=len(image), cache_dir=config.data.cache_dir
    )
  if evaluate.spice:
    relevances["spice"] = _spice(config, split)
  if not relevances:
    return {}, queries
  options = {"kind": config.similarity, "include_self": evaluate.include_self}
  found = graded_by(image, text, owner, relevances, k=K, **options)
  lists = ranked_lists(image, text, k=K, **options)
  for name, relevance in relevances.items():
    values = per_query(lists, owner, relevance, include_self=evaluate.include_self)
    queries |= {f"{name}/{task}/ndcg": values[task]["ndcg"].astype(np.float32) for task in TASKS}
  return found, queries


def _spice(config, split):
  path = os.path.join(os.path.expanduser(config.data.dir), config.evaluate.spice)
  return load_spice(path, n_texts=len(split.text_id), n_images=len(split.image_id))
