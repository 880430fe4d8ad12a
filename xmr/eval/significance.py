"""Is the difference between two runs real? Paired tests over queries, intervals over seeds."""

import numpy as np
from jaxtyping import Bool, Real, Shaped
from scipy import stats

from xmr.errors import UserError

# The scores of the queries: hits are True and False.
Values = Real[np.ndarray, " Q"] | Bool[np.ndarray, " Q"]
CHUNK = 1 << 22  # random numbers held at a time
FEW_VALUES = (
  64  # up to so many different differences, their counts are drawn instead of the queries
)


def paired_bootstrap(
  a: Values,
  b: Values,
  *,
  group: Shaped[np.ndarray, " Q"] | None = None,
  samples: int = 10000,
  confidence: float = 0.95,
  seed: int = 0,
) -> dict[str, float]:
  """Bootstrap over queries of the mean difference between two runs.

  Queries are drawn with replacement; the interval holds the central `confidence` of the resampled
  means of a - b, and p = 2 min(share of means <= 0, share >= 0), counting the observed sample, at
  most 1.

  Args:
    a, b: [Q] float, what each query scores under the two runs: 0/1 hits, reciprocal ranks, nDCG...
    group: [Q] int; queries of a group (the captions of one image) are drawn together. None: each
      query alone.
    samples: resamples; confidence: of the interval; seed: of the draws.

  Returns:
    {"difference": mean(a - b), "low", "high": ends of the interval, "p"}, in the units of a.

  Raises:
    UserError: different or empty shapes, non-finite values.

  References:
    Efron and Tibshirani 1993; for retrieval Sakai, SIGIR 2006.
  """
  total, size = _grouped_differences(a, b, group)
  rng = np.random.default_rng(seed)
  means = np.empty(samples)
  kinds, kind = np.unique(np.stack([total, size], axis=1), axis=0, return_inverse=True)
  if len(kinds) <= FEW_VALUES:
    # The counts of equal groups in a resample are multinomial: the same distribution, without
    # drawing every query.
    drawn = rng.multinomial(len(total), np.bincount(kind.ravel()) / len(total), samples)
    means = (drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1])
  else:
    for rows in _chunks(samples, len(total)):
      drawn = rng.integers(len(total), size=(rows.stop - rows.start, len(total)))
      means[rows] = total[drawn].sum(axis=1) / size[drawn].sum(axis=1)
  low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
  sides = [(1 + (means <= 0).sum()) / (samples + 1), (1 + (means >= 0).sum()) / (samples + 1)]
  return {
    "difference": float(total.sum() / size.sum()),
    "low": float(low),
    "high": float(high),
    "p": float(min(1, 2 * min(sides))),
  }


def paired_permutation(
  a: Values,
  b: Values,
  *,
  group: Shaped[np.ndarray, " Q"] | None = None,
  samples: int = 10000,
  seed: int = 0,
) -> dict[str, float]:
  """Sign-flip test: how often would two runs differ as much if their values were exchangeable
  within each query?

  Each query's a - b changes its sign with probability 1/2; p = (1 + number of samples with |mean|
  >= the observed |mean|) / (1 + samples), two-sided.

  Args:
    a, b: [Q] float, what each query scores under the two runs.
    group: [Q] int; queries of a group change sign together. None: each query alone.
    samples: permutations; seed: of the signs.

  Returns:
    {"difference": mean(a - b), "p"}.

  Raises:
    UserError: different or empty shapes, non-finite values.

  References:
    Fisher's randomisation test; Smucker et al., CIKM 2007.
  """
  total, size = _grouped_differences(a, b, group)
  rng = np.random.default_rng(seed)
  amount, count = np.unique(np.abs(total[total != 0]), return_counts=True)
  if len(amount) <= FEW_VALUES:
    plus = rng.binomial(count, 0.5, size=(samples, len(amount)))
    sums = (2 * plus - count) @ amount
  else:
    sums = np.empty(samples)
    changing = total[total != 0]
    for rows in _chunks(samples, len(changing)):
      sign = rng.integers(2, size=(rows.stop - rows.start, len(changing)), dtype=np.int8)
      sums[rows] = 2 * (sign @ changing) - changing.sum()
  # Equal sums may differ in the last bits, and an equal one counts.
  as_large = np.abs(sums) >= np.abs(total.sum()) - 1e-9 * np.abs(total).sum()
  return {
    "difference": float(total.sum() / size.sum()),
    "p": float((1 + as_large.sum()) / (1 + samples)),
  }


def over_seeds(values, *, confidence=0.95):
  """Mean, standard deviation (n - 1) and Student's interval of the mean over the seeds of one
  configuration.

  Args:
    values: [S] float, one value per seed; confidence: of the interval.

  Returns:
    {"mean", "deviation", "low", "high", "n"}; deviation, low and high are NaN for a single seed.

  Raises:
    UserError: no values, or non-finite ones.
  """
  values = _finite(values, "values")
  n = len(values)
  mean = float(values.mean())
  if n == 1:
    return {"mean": mean, "deviation": np.nan, "low": np.nan, "high": np.nan, "n": 1}
  deviation = float(values.std(ddof=1))
  half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * deviation / np.sqrt(n)
  return {"mean": mean, "deviation": deviation, "low": mean - half, "high": mean + half, "n": n}


def seed_difference(a, b, *, paired=False, confidence=0.95):
  """Student's test of the difference between two configurations over their seeds.

  Args:
    a, b: [S], [S'] float, one value per seed. paired: the seeds correspond, S = S'; otherwise
      Welch's form.
    confidence: of the interval.

  Returns:
    {"difference": mean(a) - mean(b), "low", "high", "p"}; all but difference are NaN where a side
    has one seed. Two sides without any deviation give p = 0, or 1 where they are equal.

  Raises:
    UserError: no or non-finite values, or paired sides of different lengths.
  """
  a, b = _finite(a, "a"), _finite(b, "b")
  if paired and len(a) != len(b):
    raise UserError(f"{len(a)} and {len(b)} seeds cannot be paired; expected as many")
  difference = float(a.mean() - b.mean())
  if min(len(a), len(b)) < 2:
    return {"difference": difference, "low": np.nan, "high": np.nan, "p": np.nan}
  if paired:
    error, freedom = np.std(a - b, ddof=1) / np.sqrt(len(a)), len(a) - 1
  else:
    of_a, of_b = a.var(ddof=1) / len(a), b.var(ddof=1) / len(b)
    error = np.sqrt(of_a + of_b)
    freedom = error**4 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1)) if error > 0 else 1
  if error == 0:
    return {
      "difference": difference,
      "low": difference,
      "high": difference,
      "p": float(difference == 0),
    }
  half = float(stats.t.ppf((1 + confidence) / 2, freedom) * error)
  p = float(2 * stats.t.sf(abs(difference) / error, freedom))
  return {"difference": difference, "low": difference - half, "high": difference + half, "p": p}


def holm(p):
  """Holm's adjustment of a family of p-values: reject where the adjusted value is at most the
  level.

  Args:
    p: [M] float in [0, 1]; NaN (an undefined test) stays NaN and does not count.

  Returns:
    [M] float64, max over smaller p of (number of p not smaller) * p, at most 1.

  References:
    Holm, Scandinavian Journal of Statistics 1979.
  """
  p = np.asarray(p, np.float64)
  adjusted = np.full(p.shape, np.nan)
  tested = np.flatnonzero(~np.isnan(p))
  order = tested[np.argsort(p[tested], kind="stable")]
  adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
  return adjusted


def _grouped_differences(a, b, group):
  """Sum of a - b and number of queries per group: two [G] float64."""
  a, b = _finite(a, "a"), _finite(b, "b")
  if a.shape != b.shape:
    raise UserError(
      f"the runs have {a.shape} and {b.shape} values; expected the same queries in both"
    )
  difference = a - b
  if group is None:
    return difference, np.ones(len(difference))
  if np.shape(group) != a.shape:
    raise UserError(f"group has shape {np.shape(group)}; expected {a.shape}: one group per query")
  _, row = np.unique(group, return_inverse=True)
  return np.bincount(row, weights=difference), np.bincount(row).astype(np.float64)


def _finite(values, name):
  values = np.asarray(values, np.float64)
  if values.ndim != 1 or not len(values):
    raise UserError(
      f"{name} has shape {values.shape}; expected one value per query or seed, at least one"
    )
  if not np.isfinite(values).all():
    raise UserError(f"{name}[{int((~np.isfinite(values)).argmax())}] is not finite")
  return values


def _chunks(samples, width):
  step = max(1, CHUNK // max(1, width))
  return [slice(start, min(start + step, samples)) for start in range(0, samples, step)]
