"""Agreement of text-text similarity with human judgements (Crisscrossed Captions, STS)."""

import csv
import gzip
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int32, Integer, Real

from xmr.errors import UserError
from xmr.ops.unit import unit

BLOCK = 8192  # pairs whose embeddings are gathered at a time


def load_sts(
  path: str | os.PathLike, *, text_id: Sequence[int] | Integer[np.ndarray, " T"]
) -> tuple[Int32[np.ndarray, "M 2"], Float64[np.ndarray, " M"]]:
  """Reads rated caption pairs, e.g. sts_test.csv or sts_test.csv.gz of Crisscrossed Captions.

  Args:
    path: CSV with the columns caption1, caption2 ("COCO_val2014:sentid:N") and agg_score (0 to 5).
    text_id: [T] int, the sentid of each caption of the split, all different.

  Returns:
    pairs: rows of the split.  score: of each pair.  Both in the file's order.

  Raises:
    UserError: no such file, a missing column, a score outside [0, 5], an id that the split lacks.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"no ratings file {path}")
  opened = gzip.open if path.suffix == ".gz" else open
  row_of = {int(identity): row for row, identity in enumerate(text_id)}
  pairs, score = [], []
  try:
    with opened(path, "rt", encoding="utf-8", newline="") as file:
      reader = csv.DictReader(file)
      missing = {"caption1", "caption2", "agg_score"} - set(reader.fieldnames or ())
      if missing:
        raise UserError(
          f"{path} lacks the columns {', '.join(sorted(missing))}; found {reader.fieldnames}"
        )
      for line, entry in enumerate(reader, start=2):
        where = f"{path}, line {line}"
        pairs.append([_row(entry[name], row_of, where) for name in ("caption1", "caption2")])
        score.append(_score(entry["agg_score"], where))
  except (csv.Error, UnicodeDecodeError, EOFError, OSError) as error:
    raise UserError(f"{path} is no CSV of ratings: {error}") from None
  if not pairs:
    raise UserError(f"{path} holds no pairs")
  return np.array(pairs, np.int32), np.array(score)


def sts_correlation(
  text: Real[np.ndarray, "T D"],
  pairs: Integer[np.ndarray, "M 2"],
  score: Real[np.ndarray, " M"],
  *,
  form: str = "sampled",
  samples: int = 1000,
  seed: int = 0,
) -> dict[str, float]:
  """Spearman correlation between the cosine of two captions and their human score.

  "sampled", as in the CxC paper: the pairs of one caption are correlated among themselves, so each
  of `samples` estimates takes half of the queries (the captions in the first column) without
  replacement and one random pair of each; mean and standard deviation of the estimates are
  returned. "plain": one correlation over all pairs.

  Args:
    pairs: rows of text.  score: of people.
    form: "sampled" or "plain"; samples, seed: of the sampled form.

  Returns:
    {"sts/spearman": float in [-1, 1], and for "sampled" "sts/spearman_deviation"}.

  Raises:
    UserError: unknown form, fewer than two pairs (two queries for "sampled"), or pairs outside
      text.

  References:
    Parekh et al., Crisscrossed Captions, EACL 2021, section 5 ("sampled Spearman's bootstrap
    correlation").
  """
  if form not in ("sampled", "plain"):
    raise UserError(f"form is {form!r}; expected sampled or plain")
  pairs, score = np.asarray(pairs), np.asarray(score, np.float64)
  if pairs.shape != (len(score), 2) or len(score) < 2:
    raise UserError(
      f"pairs have shape {pairs.shape} and scores {score.shape}; expected [M, 2] and [M] with M "
      "of 2 or more"
    )
  if not (pairs.min() >= 0 and pairs.max() < len(text)):
    raise UserError(
      f"pairs name captions {pairs.min()} to {pairs.max()}; expected 0 to {len(text) - 1}"
    )
  cosine = pair_cosines(text, pairs)
  if form == "plain":
    return {"sts/spearman": spearman(cosine, score)}
  order = np.argsort(pairs[:, 0], kind="stable")
  _, first, count = np.unique(pairs[order, 0], return_index=True, return_counts=True)
  half = len(first) // 2
  if half < 2:
    raise UserError(
      f"the pairs have {len(first)} different first captions; expected 4 or more for the sampled "
      "form"
    )
  rng = np.random.default_rng(seed)
  estimates = np.empty(samples)
  for number in range(samples):
    query = rng.permutation(len(first))[:half]
    chosen = order[first[query] + rng.integers(count[query])]
    estimates[number] = spearman(cosine[chosen], score[chosen])
  return {"sts/spearman": float(estimates.mean()), "sts/spearman_deviation": float(estimates.std())}


def pair_cosines(
  text: Real[np.ndarray, "T D"], pairs: Integer[np.ndarray, "M 2"]
) -> Float64[np.ndarray, " M"]:
  """Cosine of each pair of rows of text."""
  text = np.asarray(text, np.float32)
  text = unit(text)
  cosine = np.empty(len(pairs))
  for start in range(0, len(pairs), BLOCK):
    a, b = pairs[start : start + BLOCK].T
    cosine[start : start + BLOCK] = np.einsum("md,md->m", text[a], text[b])
  return cosine


def spearman(x: Real[np.ndarray, " M"], y: Real[np.ndarray, " M"]) -> float:
  """Spearman's rank correlation, ties at their mean rank; 0 where one side is constant."""
  x, y = _mean_ranks(x), _mean_ranks(y)
  x, y = x - x.mean(), y - y.mean()
  scale = np.sqrt((x @ x) * (y @ y))
  return float(x @ y / scale) if scale > 0 else 0.0


def _mean_ranks(x):
  _, group, count = np.unique(x, return_inverse=True, return_counts=True)
  last = np.cumsum(count)
  return (last - (count - 1) / 2)[group]


def _row(caption, row_of, where):
  found = re.fullmatch(r"(?:.*:)?(\d+)", caption or "")
  if not found:
    raise UserError(f"{where}: caption {caption!r}; expected COCO_val2014:sentid:N")
  identity = int(found[1])
  if identity not in row_of:
    raise UserError(
      f"{where}: caption id {identity} is not among the {len(row_of)} captions of the split"
    )
  return row_of[identity]


def _score(text, where):
  try:
    score = float(text)
  except (TypeError, ValueError):
    score = np.nan
  if not 0 <= score <= 5:
    raise UserError(f"{where}: agg_score is {text!r}; expected a number from 0 to 5")
  return score
