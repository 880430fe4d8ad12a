"""The arithmetic from ranks to metrics: recall at K, median and mean rank, their sum, averages over
folds, and what chance gives.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Integer

from xmr.errors import UserError

AT = (1, 5, 10)
DIRECTIONS = ("i2t", "t2i")


def from_ranks(ranks: Integer[np.ndarray, " Q"] | Sequence[int]) -> dict[str, float]:
  """Metrics of one direction.

  r@K = 100 mean(rank < K); medr = floor(median(rank)) + 1; meanr = mean(rank) + 1.

  Args:
    ranks: [Q] int, 0-based.
  Returns:
    {"r1", "r5", "r10"} in percent and {"medr", "meanr"}, 1-based.
  References:
    VSE++ `evaluation.i2t`, as released.
  """
  ranks = np.asarray(ranks)
  if ranks.ndim != 1 or not ranks.size:
    raise ValueError(f"ranks has shape {ranks.shape}; expected [Q], Q at least 1")
  recalls = {f"r{k}": 100.0 * int(np.count_nonzero(ranks < k)) / len(ranks) for k in AT}
  return {
    **recalls,
    "medr": float(np.floor(np.median(ranks)) + 1),
    "meanr": float(np.mean(ranks, dtype=np.float64) + 1),
  }


def both_directions(
  i2t: Integer[np.ndarray, " N"] | Sequence[int], t2i: Integer[np.ndarray, " T"] | Sequence[int]
) -> dict[str, float]:
  """Metrics of both directions, {"i2t/r1", ..., "t2i/meanr", "rsum"}, of their 0-based ranks [N]
  and [T].
  """
  found = {
    f"{direction}/{name}": value
    for direction, ranks in zip(DIRECTIONS, (i2t, t2i), strict=True)
    for name, value in from_ranks(ranks).items()
  }
  return {**found, "rsum": rsum(found)}


def rsum(recalls: Mapping[str, float]) -> float:
  """The sum of the six recalls, 0 to 600. (VSE++ and IMC print six times this for averaged
  folds.)
  """
  return sum(recalls[f"{direction}/r{k}"] for direction in DIRECTIONS for k in AT)


def mean_of_folds(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Averages each metric over a list of dicts; counts of tied queries ("i2t/ties") are summed."""
  means = {
    name: float(np.mean([fold[name] for fold in folds]))
    for name in folds[0]
    if not name.endswith("/ties")
  }
  ties = {name: sum(fold[name] for fold in folds) for name in folds[0] if name.endswith("/ties")}
  return {**means, "rsum": rsum(means), **ties}


def fold_of(
  index: Integer[np.ndarray, " rows"] | Sequence[int], *, n_images: int, folds: int
) -> Integer[np.ndarray, " rows"]:
  """Which of `folds` equal, consecutive parts of the images each index [.] falls in; UserError
  where they do not divide.
  """
  if folds < 1 or n_images % folds:
    raise UserError(f"folds is {folds}; expected a divisor of the {n_images} images")
  return np.asarray(index) // (n_images // folds)


def chance(
  image_of_text: Integer[np.ndarray, " T"], *, n_images: int, folds: int = 1
) -> dict[str, float]:
  """Recalls of a random order of the gallery, and how far rsum strays from its mean.

  Text to image, N images: R@K = min(K, N) / N. Image to text, T texts of which c describe the
  image: R@K = 1 - C(T - c, K) / C(T, K), averaged over images. With folds, N and T are those of a
  fold, and the recalls are averaged.

  Args:
    image_of_text: [T] int, the image (0..N-1) of each text.  n_images: N.
    folds: parts, a divisor of N.
  Returns:
    {"i2t/r1", ..., "t2i/r10", "rsum"} in percent, and "rsum_deviation": the standard deviation of
    rsum where the hits of different images are independent, those of one image and of the two
    directions equal: an upper bound.
  """
  fold = fold_of(image_of_text, n_images=n_images, folds=folds)
  size = n_images // folds
  captions = np.bincount(image_of_text, minlength=n_images).reshape(folds, size)
  texts = np.bincount(fold, minlength=folds)[:, None]
  hit = {"i2t": [_found(captions, texts, k) for k in AT]}
  hit["t2i"] = [np.full(captions.shape, min(k, size) / size) for k in AT]
  found = {
    f"{direction}/r{k}": 100 * float(p.mean())
    for direction in DIRECTIONS
    for k, p in zip(AT, hit[direction], strict=True)
  }
  # The number of hits of a query at 1, 5 and 10: one at 1 is also one at 5 and 10.
  variance = [5 * p1 + 3 * p5 + p10 - (p1 + p5 + p10) ** 2 for p1, p5, p10 in hit.values()]
  deviation = 100 * sum(np.sqrt(v.mean() / n_images) for v in variance)
  return {**found, "rsum": rsum(found), "rsum_deviation": float(deviation)}


def _found(positives, total, k):
  """Probability that one of `positives` is among the first k of `total` in random order."""
  left = total[..., None] - np.arange(k)  # before each draw
  missed = np.clip((left - positives[..., None]) / np.maximum(left, 1), 0, 1)
  return 1 - missed.prod(axis=-1)
