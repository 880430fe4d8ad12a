"""Novelty, coverage and diversity of lists of results, which do not depend on relevance."""

import numpy as np
from jaxtyping import Integer


def list_metrics(
  lists,
  *,
  n_gallery,
  n_texts,
  image_of_text=None,
  novelty="corrected",
  coverage_of=None,
  diversity="once",
):
  """The three measures of the lists of one task.

  Args:
    lists: [Q, k] int, items of each list.  n_gallery: number of items that could be found.
    n_texts: number of captions.
    image_of_text: [T] int where the queries are images that the authors' notebooks count once per
      caption (i2i); else None.
    novelty, coverage_of: see `self_information` and `coverage`.
    diversity: "once" or "released", see `list_cosine`.
  Returns:
    {"self_information", "coverage", "list_cosine"}: floats.
  """
  repeated = lists if image_of_text is None else lists[image_of_text]
  return {
    "self_information": self_information(
      lists if novelty == "corrected" else repeated, n_texts=n_texts, novelty=novelty
    ),
    "coverage": coverage(lists, n_gallery=n_gallery, coverage_of=coverage_of),
    "list_cosine": list_cosine(lists if diversity == "once" else repeated, n_gallery=n_gallery),
  }


def self_information(
  lists: Integer[np.ndarray, "Q k"], *, n_texts: int = 0, novelty: str = "corrected"
) -> float:
  """Novelty: the mean of -log2(n(x) / Q) over the items x of all lists, n(x) being the number of
  lists that hold x.

  Args:
    lists: [Q, k] int.
    novelty: "corrected", as above; "first": the form of the first printed tables, which takes the
      number of captions for Q and 10 for k in every task (i2i: one list per caption).
    n_texts: number of captions, for "first".

  Returns:
    Bits, 0 (all lists equal) to log2(Q).

  References:
    FullHN notebooks: "first" in plots.ipynb, "corrected" in the later ones.
  """
  queries, length = lists.shape if novelty == "corrected" else (n_texts, 10)
  count = np.bincount(lists.ravel())
  count = count[count > 0]
  return float(-(count * np.log2(count / queries)).sum() / (queries * length))


def coverage(
  lists: Integer[np.ndarray, "Q k"], *, n_gallery: int, coverage_of: int | None = None
) -> float:
  """Returns the share of the gallery that is in any list [Q, k]; coverage_of: divide by this many
  items instead.

  As released the divisor is the number of images in training and test together, in every task.
  """
  return len(np.unique(lists)) / (coverage_of or n_gallery)


def list_cosine(lists: Integer[np.ndarray, "Q k"], *, n_gallery: int) -> float:
  """List diversity: the mean cosine of two different lists as binary vectors, that is, the share of
  items that they have in common.

  Through the counts n(x): sum_{a != b} |a and b| = sum_x n(x)^2 - Q k, so no Q x Q matrix appears.
  In i2i the lists come once per image. The authors' notebooks have one per caption, so an image
  meets its own list four more times: 0.3183 instead of 0.3114 with 80 images of five captions. That
  is `diversity="released"` of `graded`.

  Args:
    lists: [Q, k] int of distinct items; n_gallery: number of items.

  Returns:
    0 (no two lists share an item) to 1 (all lists are equal); lower is more diverse. 0 for a single
    list.
  """
  queries, length = lists.shape
  if queries < 2:
    return 0.0
  count = np.bincount(lists.ravel(), minlength=n_gallery).astype(np.float64)
  return float((np.square(count).sum() - queries * length) / (length * queries * (queries - 1)))
