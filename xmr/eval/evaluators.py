"""The functions of the rows of `table`, which pass ground truth and options to the metrics.

All are f(image [N, D], text [T, D], truth, *, kind, **options) -> {name: value}, as
`table.Evaluator` says.
"""

import numpy as np

from xmr.eval import average_precision, exact, metrics, protocol
from xmr.eval import consistency as order
from xmr.eval import eccv_caption as extra
from xmr.eval import shortlist as two_stages
from xmr.eval import sts as judgements
from xmr.eval.graded import TASKS, check_k, checked_relevance, scored_by
from xmr.eval.readers import load_array
from xmr.eval.relevance import load_spice, rouge_l


def recall(image, text, truth, *, kind, folds):
  """Recall, median and mean rank (`protocol.recall`), with folds beside the whole;
  "queries/i2t/rank" [N] and "queries/t2i/rank" [T] from 0.
  """
  found, ranks = protocol.counted(image, text, truth.image_of_text, kind=kind)
  parts = protocol.of_folds(image, text, truth.image_of_text, folds=folds, kind=kind)
  return {**found, **parts, **{f"queries/{name}": x for name, x in ranks.items()}}


def check_recall(truth, *, kind, folds):
  """Raises UserError for folds that do not divide the images."""
  del kind
  metrics.fold_of(truth.image_of_text, n_images=truth.n_images, folds=folds)


def shortlist(image, text, truth, *, kind, shortlist):
  """Recall in two stages (`shortlist.shortlist`), and "shortlist/i2t/r1_lost" and so on: by how
  many points it is below the recall of the whole.
  """
  whole = protocol.recall(image, text, truth.image_of_text, kind=kind)
  found = two_stages.shortlist(image, text, truth.image_of_text, k=shortlist, form=kind)
  lost = {f"{name}_lost": whole[name] - value for name, value in found.items() if name in whole}
  return {f"shortlist/{name}": value for name, value in {**found, **lost}.items()}


def graded(image, text, truth, *, kind, graded, spice, relevance, **options):
  """Graded retrieval by ROUGE-L, SPICE or any relevance (`graded.graded_by`);
  "queries/rouge_l/i2t/ndcg" [N] and so on, for i2i one row per caption of the query.
  """
  sources = _relevances(truth, spice=spice, relevance=relevance)
  if graded:
    sources["rouge_l"] = rouge_l(
      truth.texts, truth.image_of_text, n_images=truth.n_images, cache_dir=truth.cache_dir
    )
  found, queries = scored_by(image, text, truth.image_of_text, sources, kind=kind, **options)
  of_query = {
    f"queries/{name}/{task}/ndcg": values[task]["ndcg"].astype(np.float32)
    for name, values in queries.items()
    for task in TASKS
  }
  return {**found, **of_query}


def check_graded(truth, *, kind, graded, spice, relevance, k, include_self, **options):
  """Raises UserError where a list is longer than a gallery, or a file does not fit."""
  del kind, graded, options
  check_k(k, n_images=truth.n_images, n_texts=truth.n_texts, include_self=include_self)
  _relevances(truth, spice=spice, relevance=relevance)


def _relevances(truth, *, spice, relevance):
  sizes = {"n_texts": truth.n_texts, "n_images": truth.n_images}
  found = {}
  if relevance:
    found["relevance"] = checked_relevance(load_array(relevance, ndim=2), **sizes, name=relevance)
  if spice:
    found["spice"] = load_spice(spice, **sizes)
  return found


def consistency(image, text, truth, *, kind, consistency):
  """Order consistency (`consistency.order_consistency`)."""
  del kind, consistency
  return order.order_consistency(image, text, truth.image_of_text)


def eccv_caption(image, text, truth, *, kind, positives):
  """Retrieval against the positives of ECCV Caption ("eccv/...") and CxC ("cxc/...")."""
  image, text = (exact.embeddings(x, name=n) for x, n in ((image, "image"), (text, "text")))
  found = {}
  for name, answers in check_eccv_caption(truth, kind=kind, positives=positives).items():
    scores = extra.retrieval(image, text, answers, kind=kind)
    # mAP@R and R-Precision belong to ECCV Caption, whose positives are complete.
    found |= {
      f"{name}/{key}": value
      for key, value in scores.items()
      if name == "eccv" or key.split("/")[1][1:].isdigit()
    }
  return found


def check_eccv_caption(truth, *, kind, positives):
  """Returns the positives of both sets; UserError where a file is missing or of another split."""
  del kind
  return {
    name: extra.load_positives(positives, name, image_id=truth.image_id, text_id=truth.text_id)
    for name in ("eccv", "cxc")
  }


def sts(image, text, truth, *, kind, sts):
  """Agreement with human judgements of caption pairs (`sts.sts_correlation`), sampled and plain."""
  del image
  pairs = check_sts(truth, kind=kind, sts=sts)
  text = exact.embeddings(text, name="text")
  plain = judgements.sts_correlation(text, *pairs, form="plain")
  return {
    **judgements.sts_correlation(text, *pairs),
    "sts/spearman_plain": plain["sts/spearman"],
  }


def check_sts(truth, *, kind, sts):
  """Returns the rated pairs; UserError where the file is missing or of another split."""
  del kind
  return judgements.load_sts(sts, text_id=truth.text_id)


def category(image, text, truth, *, kind, category, category_at):
  """Mean average precision where all items of the query's category are relevant, in [0, 1]."""
  del category
  of_text, at = np.asarray(truth.label)[truth.image_of_text], category_at or None
  sides = {"i2t": (image, text, truth.label, of_text), "t2i": (text, image, of_text, truth.label)}
  found = {
    f"{name}/map": average_precision.mean_average_precision(*side, at=at, kind=kind)
    for name, side in sides.items()
  }
  return {**found, "map": (found["i2t/map"] + found["t2i/map"]) / 2}
