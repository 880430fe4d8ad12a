"""The arithmetic from ranks to figures: recall at K, median and mean rank, their sum, averages over
folds.
"""

import numpy as np

from xmr.errors import UserError

AT = (1, 5, 10)
DIRECTIONS = ("i2t", "t2i")


def from_ranks(ranks):
  """Figures of one direction.

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
  figures = {f"r{k}": 100.0 * int(np.count_nonzero(ranks < k)) / len(ranks) for k in AT}
  return {
    **figures,
    "medr": float(np.floor(np.median(ranks)) + 1),
    "meanr": float(np.mean(ranks, dtype=np.float64) + 1),
  }


def both_directions(i2t, t2i):
  """Figures of both directions, {"i2t/r1", ..., "t2i/meanr", "rsum"}, of their 0-based ranks [N]
  and [T].
  """
  figures = {
    f"{direction}/{name}": value
    for direction, ranks in zip(DIRECTIONS, (i2t, t2i), strict=True)
    for name, value in from_ranks(ranks).items()
  }
  return {**figures, "rsum": rsum(figures)}


def rsum(figures):
  """The sum of the six recalls, 0 to 600. (VSE++ and IMC print six times this for averaged
  folds.)
  """
  return sum(figures[f"{direction}/r{k}"] for direction in DIRECTIONS for k in AT)


def mean_of_folds(folds):
  """Averages each figure over a list of dicts; counts of tied queries ("i2t/ties") are summed."""
  figures = {
    name: float(np.mean([fold[name] for fold in folds]))
    for name in folds[0]
    if not name.endswith("/ties")
  }
  ties = {name: sum(fold[name] for fold in folds) for name in folds[0] if name.endswith("/ties")}
  return {**figures, "rsum": rsum(figures), **ties}


def fold_of(index, *, n_images, folds):
  """Which of `folds` equal, consecutive parts of the images each index [.] falls in; UserError
  where they do not divide.
  """
  if folds < 1 or n_images % folds:
    raise UserError(f"folds is {folds}; expected a divisor of the {n_images} images")
  return np.asarray(index) // (n_images // folds)
