"""How well scores order pairs and retrieve categories."""

import numpy as np

from xmr.eval.average_precision import mean_average_precision


def both_directions(image, text, label, *, gallery=None, at=None):
  """MAP of image queries, of text queries, and their mean, in [0, 1].

  Args:
    image, text: [Q, D] float queries.  label: [Q] int.
    gallery: (image [G, D], text [G, D], label [G]); None is the queries' own split.
    at: R of AP@R, or None for the whole gallery.
  Returns:
    {"i2t/map", "t2i/map", "map"}.
  """
  other_image, other_text, other_label = gallery or (image, text, label)
  i2t = mean_average_precision(image, other_text, label, other_label, at=at, kind="dot")
  t2i = mean_average_precision(text, other_image, label, other_label, at=at, kind="dot")
  return {"i2t/map": i2t, "t2i/map": t2i, "map": (i2t + t2i) / 2}


def area_under_roc(scores, positive):
  """Share of (positive, negative) pairs that the scores order correctly; ties count half.

  Args:
    scores: [P] float.  positive: [P] bool.
  """
  from scipy import stats

  positive = np.asarray(positive, bool)
  wins = stats.rankdata(scores)[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
  return float(wins / (positive.sum() * (~positive).sum()))
