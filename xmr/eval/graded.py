"""Graded retrieval in four tasks: nDCG and alpha-nDCG of the top-k lists, their novelty, coverage
and diversity.
"""

import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Integer, Real, Shaped

from xmr.errors import UserError, choice
from xmr.eval import alignment
from xmr.eval.lists import list_metrics
from xmr.eval.positives import checked_image_of_text
from xmr.eval.top_k import top_k_of_both
from xmr.ops.alignment import NAMES, Tokens
from xmr.ops.arrays import Array

TASKS = ("i2t", "t2i", "i2i", "t2t")
FORMS = ("released", "standard")
NOVELTY = ("corrected", "first")
DIVERSITY = ("once", "released")
BLOCK_BYTES = 1 << 22  # of relevance looked at together


def graded(
  image: Real[Array, "N D"] | Tokens,
  text: Real[Array, "T D"] | Tokens,
  image_of_text: Integer[Array, " T"],
  relevance: Shaped[np.ndarray, "T N"],
  *,
  k: int = 25,
  alpha: float = 0.5,
  form: str = "released",
  kind: str = "cosine",
  include_self: bool = True,
  novelty: str = "corrected",
  coverage_of: int | None = None,
  diversity: str = "once",
) -> dict[str, float]:
  """Scores the four retrieval tasks with graded relevance.

  nDCG@k: DCG = sum_r (2^rel_r - 1) / log2(r + 1), divided by the DCG of the k most relevant items.
  Alpha-nDCG: a further relevant item is worth less, g_r = rel_r (1 - alpha)^(rel_1 + .. +
  rel_{r-1}).
    "released": M = sum_r (g_1 + .. + g_r) / log2(r + 1), and the score is mean(M) / mean(M of the
    ideal lists); t2t counts only the last caption of each image; nDCG is averaged over queries
    whose nDCG is not zero. "standard": M = sum_r g_r / log2(r + 1), divided by the query's own
    ideal (greedy: with one graded need per query that is the order of relevance); both scores are
    averaged over queries that have anything relevant.
  Relevant to an image are captions with its column, to a caption images with its row. i2i ranks
  images for an image and scores the list once for each of the image's captions; t2t ranks captions
  for a caption by its image's column.

  Args:
    image_of_text: the image, 0..N-1, of each caption; any number of captions per image.
    relevance: in [0, 1], of caption t for image n.
    k: length of a list; alpha: in [0, 1]; form: "released" or "standard", as above; kind: of
      similarity.
    include_self: i2i and t2t rank the query itself too (released); False takes it out of lists and
      ideals.
    novelty, coverage_of: see `lists.self_information` and `lists.coverage`.
    diversity: "once": i2i/list_cosine takes the list of each image once; "released": once per
      caption of the image, as the notebooks do.

  Returns:
    {"i2t/ndcg", "i2t/alpha_ndcg", "i2t/self_information", "i2t/coverage", "i2t/list_cosine",
    "t2i/ndcg", ...}: floats; all but self_information (bits) lie in [0, 1].

  Raises:
    UserError: k exceeds a gallery; relevance has another shape, NaN or values outside [0, 1]; an
      image without a caption; unknown form, novelty or diversity.

  References:
    Mallea et al., Discovery Science 2023, notebooks as released. Jarvelin and Kekalainen 2002
    (nDCG). Clarke et al., SIGIR 2008 (alpha-nDCG).
  """
  metrics = graded_by(
    image,
    text,
    image_of_text,
    {"": relevance},
    k=k,
    alpha=alpha,
    form=form,
    kind=kind,
    include_self=include_self,
    novelty=novelty,
    coverage_of=coverage_of,
    diversity=diversity,
  )
  return {name.removeprefix("/"): value for name, value in metrics.items()}


def graded_by(
  image: Real[Array, "N D"] | Tokens,
  text: Real[Array, "T D"] | Tokens,
  image_of_text: Integer[Array, " T"],
  relevances: Mapping[str, Shaped[np.ndarray, "T N"]],
  **options,
) -> dict[str, float]:
  """Scores the four tasks by several relevances of the same lists.

  Args:
    image, text, image_of_text, **options: as of `graded`.
    relevances: {name: [T, N] float in [0, 1]}, such as {"rouge_l": ..., "spice": ...}.

  Returns:
    {"NAME/i2t/ndcg", "NAME/i2t/alpha_ndcg", ... for each name, and once "i2t/self_information",
    "i2t/coverage", "i2t/list_cosine", ...}.

  Raises:
    UserError: as `graded`.
  """
  return scored_by(image, text, image_of_text, relevances, **options)[0]


def scored_by(
  image,
  text,
  image_of_text,
  relevances,
  *,
  k=25,
  alpha=0.5,
  form="released",
  kind="cosine",
  include_self=True,
  novelty="corrected",
  coverage_of=None,
  diversity="once",
):
  """Returns (metrics as of `graded_by`, {name of the relevance: what each query scores, as of
  `per_query`}).
  """
  image_of_text = checked_image_of_text(image_of_text, n_texts=len(text), n_images=len(image))
  _check_options(alpha=alpha, form=form, novelty=novelty, diversity=diversity)
  # Before the lists: they are the expensive part.
  relevances = {
    name: checked_relevance(
      relevance, n_texts=len(text), n_images=len(image), name=name or "relevance"
    )
    for name, relevance in relevances.items()
  }
  lists = ranked_lists(image, text, k=k, kind=kind, include_self=include_self)
  metrics, queries = {}, {}
  for name, relevance in relevances.items():
    values = queries[name] = per_query(
      lists, image_of_text, relevance, alpha=alpha, form=form, include_self=include_self
    )
    for task in TASKS:
      metrics[f"{name}/{task}/ndcg"] = _mean_ndcg(values[task], form)
      metrics[f"{name}/{task}/alpha_ndcg"] = _mean_alpha_ndcg(
        values[task], form, task, image_of_text
      )
  for task in TASKS:
    found = list_metrics(
      lists[task],
      n_gallery=len(image) if task.endswith("i") else len(text),
      image_of_text=image_of_text if task == "i2i" else None,
      n_texts=len(text),
      novelty=novelty,
      coverage_of=coverage_of,
      diversity=diversity,
    )
    metrics |= {f"{task}/{name}": value for name, value in found.items()}
  return metrics, queries


def ranked_lists(
  image: Real[Array, "N D"] | Tokens,
  text: Real[Array, "T D"] | Tokens,
  *,
  k: int = 25,
  kind: str = "cosine",
  include_self: bool = True,
) -> dict[str, Integer[np.ndarray, "queries k"]]:
  """Returns the k best items of every query in the four tasks: {"i2t": [N, k], "t2i": [T, k],
  "i2i", "t2t"} int.

  Args:
    image: [N, D] float; text: [T, D] float; kind: of similarity; for those of tokens, Tokens.
    k: length of a list; include_self: i2i and t2t keep the query itself; False takes it out.

  Raises:
    UserError: k is below 1 or exceeds a gallery; the embeddings differ in width.
  """
  image, text, kind = alignment.means(image, text, kind=kind, names=("image", "text"))
  if kind in NAMES:
    check_k(k, n_images=len(image), n_texts=len(text), include_self=include_self)
    return alignment.ranked_lists(image, text, k=k, form=kind, include_self=include_self)
  if (
    isinstance(image, Tokens)
    or isinstance(text, Tokens)
    or len(image.shape) != 2
    or len(text.shape) != 2
    or image.shape[1] != text.shape[1]
  ):
    raise UserError(
      f"image has shape {image.shape} and text {text.shape}; expected [N, D] and [T, D]"
    )
  check_k(k, n_images=len(image), n_texts=len(text), include_self=include_self)
  # One pass over the products of images with texts serves two tasks; those of a side with itself
  # are symmetric.
  i2t, t2i = top_k_of_both(image, text, k, kind=kind)
  lists = {"i2t": i2t[1], "t2i": t2i[1]}
  for task, side in (("i2i", image), ("t2t", text)):
    most = k + (not include_self)
    (_, best), _ = top_k_of_both(side, None, most, kind=kind, text_query=side is text)
    lists[task] = best if include_self else _without_self(best)
  return lists


def per_query(
  lists: Mapping[str, Integer[np.ndarray, "queries k"]],
  image_of_text: Integer[np.ndarray, " T"],
  relevance: Real[np.ndarray, "T N"],
  *,
  alpha: float = 0.5,
  form: str = "released",
  include_self: bool = True,
) -> dict[str, dict[str, Shaped[np.ndarray, " queries"]]]:
  """Returns what each query scores, for means and for significance tests.

  Args:
    lists: of `ranked_lists`; image_of_text: [T] int; relevance: [T, N] float in [0, 1], both
      checked.
    alpha, form, include_self: as in `graded`.

  Returns:
    {task: {"ndcg": [Q], "gain": [Q], "ideal": [Q], "relevant": [Q] bool}} in float64. Q is N for
    i2t and T for the others (i2i: one row per caption of the query image). gain and ideal are the
    alpha-DCG of the list and of the ideal list; relevant is False where nothing is relevant to the
    query.
  """
  n_texts, n_images = relevance.shape
  k = lists["i2t"].shape[1]
  most = k if include_self else k + 1
  of_text = _largest_in_rows(relevance, min(most, n_images))
  of_image = _largest_in_rows(relevance.T, min(most, n_texts))
  text, image = np.arange(n_texts)[:, None], np.arange(n_images)[:, None]
  owner = image_of_text[:, None]

  score = functools.partial(_scores, alpha=alpha, form=form)
  ideal_of_text, ideal_of_image = score(of_text[:, :k]), score(of_image[:, :k])
  if include_self:
    ideal_i2i, ideal_t2t = ideal_of_text, tuple(x[image_of_text] for x in ideal_of_image)
  else:
    own = relevance[text, owner]
    ideal_i2i, ideal_t2t = (
      score(_without_value(of_text, own)),
      score(_without_value(of_image[image_of_text], own)),
    )
  rows = {
    "i2t": (relevance[lists["i2t"], image], ideal_of_image),
    "t2i": (relevance[text, lists["t2i"]], ideal_of_text),
    "i2i": (relevance[text, lists["i2i"][image_of_text]], ideal_i2i),
    "t2t": (relevance[lists["t2t"], owner], ideal_t2t),
  }
  values = {}
  for task, (found, (ideal_dcg, ideal_gain)) in rows.items():
    dcg, gain = score(found)
    relevant = ideal_dcg > 0
    ndcg = np.divide(dcg, ideal_dcg, out=np.zeros_like(dcg), where=relevant)
    values[task] = {"ndcg": ndcg, "gain": gain, "ideal": ideal_gain, "relevant": relevant}
  return values


def checked_relevance(
  relevance: Shaped[np.ndarray, "T N"], *, n_texts: int, n_images: int, name: str = "relevance"
) -> Float[np.ndarray, "T N"]:
  """Returns relevance as a NumPy array if it is [T, N] floats in [0, 1]; raises UserError
  otherwise.
  """
  relevance = np.asarray(relevance)
  if relevance.shape != (n_texts, n_images):
    expected = f"({n_texts}, {n_images}): one row per caption and one column per image"
    raise UserError(f"{name} has shape {relevance.shape}; expected {expected}")
  if relevance.dtype.kind not in "fiub":
    raise UserError(f"{name} has type {relevance.dtype}; expected floats in [0, 1]")
  low, high = relevance.min(initial=0), relevance.max(initial=0)  # both are NaN if any entry is
  if not (low >= 0 and high <= 1):
    bad = ~((relevance >= 0) & (relevance <= 1))
    row, column = np.unravel_index(bad.argmax(), bad.shape)
    raise UserError(
      f"{name}[{row}, {column}] is {relevance[row, column]} ({bad.sum()} such entries); expected "
      "[0, 1]"
    )
  return relevance if relevance.dtype.kind == "f" else relevance.astype(np.float32)


def check_k(k: int, *, n_images: int, n_texts: int, include_self: bool) -> None:
  """Raises UserError where a list of k items is longer than a gallery."""
  for name, size in (("images", n_images), ("captions", n_texts)):
    most = size if include_self else size - 1
    if not 1 <= k <= most:
      without = "" if include_self else " without the query itself"
      raise UserError(f"k is {k} but the gallery has {size} {name}; expected 1 to {most}{without}")


def _check_options(*, alpha, form, novelty, diversity):
  choice("form", form, FORMS)
  choice("novelty", novelty, NOVELTY)
  choice("diversity", diversity, DIVERSITY)
  if not 0 <= alpha <= 1:
    raise UserError(f"alpha is {alpha}; expected a number in [0, 1]")


def _scores(relevance, *, alpha, form):
  """DCG and alpha-DCG of lists: [Q, k] relevance in rank order -> two [Q] float64."""
  relevance = relevance.astype(np.float64)
  discount = 1 / np.log2(np.arange(relevance.shape[1]) + 2)
  seen = np.cumsum(relevance, axis=1) - relevance
  gain = relevance * np.power(1 - alpha, seen)
  if form == "released":
    gain = np.cumsum(gain, axis=1)
  return np.expm1(relevance * np.log(2)) @ discount, gain @ discount


def _mean_ndcg(values, form):
  kept = values["ndcg"] != 0 if form == "released" else values["relevant"]
  return float(values["ndcg"][kept].mean()) if kept.any() else 0.0


def _mean_alpha_ndcg(values, form, task, image_of_text):
  gain, ideal = values["gain"], values["ideal"]
  if form == "standard":
    kept = values["relevant"]
    return float((gain[kept] / ideal[kept]).mean()) if kept.any() else 0.0
  if task == "t2t":
    # The released rankings sit in a dict keyed by image, where each caption overwrites the one
    # before.
    last = len(image_of_text) - 1 - np.unique(image_of_text[::-1], return_index=True)[1]
    gain, ideal = gain[last], ideal[last]
  return float(gain.sum() / ideal.sum()) if ideal.sum() > 0 else 0.0


def _largest_in_rows(matrix, k):
  """The k largest entries of each row, descending: [Q, G] -> [Q, k] float32."""
  largest = np.empty((len(matrix), k), np.float32)
  block = max(1, BLOCK_BYTES // (4 * matrix.shape[1]))
  for start in range(0, len(matrix), block):
    rows = np.negative(matrix[start : start + block], dtype=np.float32, order="C")
    largest[start : start + block] = -np.sort(np.partition(rows, k - 1, axis=1)[:, :k], axis=1)
  return largest


def _without_self(lists):
  """Removes item q from list q: [Q, k + 1] -> [Q, k]; a list that lacks it loses its last item."""
  own = lists == np.arange(len(lists))[:, None]
  index = np.where(own.any(axis=1), own.argmax(axis=1), lists.shape[1] - 1)
  return _without_index(lists, index)


def _without_value(values, value):
  """Removes one entry equal to value [Q, 1] from descending rows: [Q, k + 1] -> [Q, k]; where the
  value is below all entries, removes the last one.
  """
  index = np.minimum((values > value).sum(axis=1), values.shape[1] - 1)
  return _without_index(values, index)


def _without_index(rows, index):
  before = np.arange(rows.shape[1] - 1) < index[:, None]
  return np.where(before, rows[:, :-1], rows[:, 1:])
