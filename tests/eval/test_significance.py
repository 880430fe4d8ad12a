"""Tests of significance against loops, exhaustive enumeration and scipy."""

import itertools
import time

import numpy as np
import pytest
from scipy import stats

from xmr.errors import UserError
from xmr.eval import significance


def hits(seed=0, queries=200, gap=0.1):
  rng = np.random.default_rng(seed)
  b = rng.random(queries) < 0.4
  a = np.where(rng.random(queries) < gap, True, b)
  return a.astype(float), b.astype(float)


def slow_bootstrap(a, b, samples=4000, seed=1):
  rng = np.random.default_rng(seed)
  means = []
  for _ in range(samples):
    drawn = rng.integers(len(a), size=len(a))
    means.append(np.mean(a[drawn] - b[drawn]))
  return np.quantile(means, [0.025, 0.975])


@pytest.mark.parametrize("kind", ["hits", "continuous"])
def test_bootstrap_interval_equals_the_loop(kind):
  a, b = hits()
  if kind == "continuous":
    a = a + np.random.default_rng(3).random(len(a))
  found = significance.paired_bootstrap(a, b, samples=4000)
  low, high = slow_bootstrap(a, b)
  width = high - low
  assert found["difference"] == pytest.approx(np.mean(a - b))
  assert abs(found["low"] - low) < 0.1 * width
  assert abs(found["high"] - high) < 0.1 * width


def test_permutation_equals_every_assignment_of_signs():
  a, b = np.array([3.0, 1, 2.5, 0.3, 4, 2, 0]), np.array([1.0, 1.5, 1, 0, 3.9, 1, 0])
  sums = [abs(np.dot(signs, a - b)) for signs in itertools.product([1, -1], repeat=len(a))]
  exact = np.mean(np.array(sums) >= abs((a - b).sum()) - 1e-9)
  assert significance.paired_permutation(a, b, samples=40000)["p"] == pytest.approx(exact, abs=0.01)


def test_few_and_many_different_values_give_the_same_p(monkeypatch):
  a, b = hits(seed=5, gap=0.03)
  for test in (significance.paired_bootstrap, significance.paired_permutation):
    counted = test(a, b, samples=20000)["p"]
    monkeypatch.setattr(significance, "FEW_VALUES", 0)
    drawn = test(a, b, samples=20000)["p"]
    monkeypatch.undo()
    assert counted == pytest.approx(drawn, abs=0.01)


def test_p_is_uniform_enough_where_nothing_differs():
  rng = np.random.default_rng(0)
  p = []
  for seed in range(200):
    a, b = rng.random((2, 60)) < 0.5
    p.append(significance.paired_permutation(a, b, samples=500, seed=seed)["p"])
  assert 0.01 < np.mean(np.array(p) <= 0.05) < 0.1


def test_equal_runs_do_not_differ_and_far_ones_do():
  a, b = hits()
  for test in (significance.paired_bootstrap, significance.paired_permutation):
    assert test(a, a)["p"] == 1
    assert test(a + 1, b)["p"] < 0.001
    assert test(a, b)["difference"] == -test(b, a)["difference"]


def test_same_seed_gives_the_same_answer():
  a, b = hits()
  a = a + np.random.default_rng(1).normal(size=len(a))
  for test in (significance.paired_bootstrap, significance.paired_permutation):
    assert test(a, b, seed=3) == test(a, b, seed=3)
    assert test(a, b, seed=3) != test(a, b, seed=4)


def test_captions_of_one_image_are_drawn_together():
  """Five copies of each query carry no more information than one."""
  a, b = hits(queries=60)
  a = a + np.random.default_rng(2).random(60)
  group = np.repeat(np.arange(60), 5)
  single = significance.paired_bootstrap(a, b, samples=8000)
  copies = significance.paired_bootstrap(
    np.repeat(a, 5), np.repeat(b, 5), group=group, samples=8000
  )
  alone = significance.paired_bootstrap(np.repeat(a, 5), np.repeat(b, 5), samples=8000)
  width = [found["high"] - found["low"] for found in (single, copies, alone)]
  assert width[1] == pytest.approx(width[0], rel=0.1)
  assert width[2] < 0.6 * width[0]
  single = significance.paired_permutation(a, b)
  copies = significance.paired_permutation(np.repeat(a, 5), np.repeat(b, 5), group=group)
  assert copies["p"] == pytest.approx(single["p"], abs=0.02)


def test_over_seeds_is_students_interval():
  values = [431.2, 433.0, 436.9, 430.1, 434.4]
  found = significance.over_seeds(values, confidence=0.9)
  low, high = stats.t.interval(0.9, 4, np.mean(values), stats.sem(values))
  assert [found["low"], found["high"]] == pytest.approx([low, high])
  assert found["deviation"] == pytest.approx(np.std(values, ddof=1))
  single = significance.over_seeds([3.0])
  assert single["mean"] == 3 and np.isnan(single["low"]) and single["n"] == 1


def test_seed_difference_equals_scipy():
  a, b = [248.1, 251.0, 246.2, 250.4], [258.3, 255.9, 259.1]
  found, theirs = significance.seed_difference(a, b), stats.ttest_ind(a, b, equal_var=False)
  assert found["p"] == pytest.approx(theirs.pvalue)
  interval = theirs.confidence_interval()
  assert [found["low"], found["high"]] == pytest.approx([interval.low, interval.high])
  paired = significance.seed_difference(a[:3], b, paired=True)
  assert paired["p"] == pytest.approx(stats.ttest_rel(a[:3], b).pvalue)
  assert np.isnan(significance.seed_difference([1.0], b)["p"])
  assert significance.seed_difference([1.0, 1.0], [1.0, 1.0])["p"] == 1
  assert significance.seed_difference([1.0, 1.0], [2.0, 2.0])["p"] == 0


def test_holm_by_hand():
  np.testing.assert_allclose(significance.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
  np.testing.assert_allclose(significance.holm([0.5, np.nan, 0.9]), [1, np.nan, 1])
  assert len(significance.holm([])) == 0


@pytest.mark.parametrize(
  "a, b, group, message",
  [
    ([1, 2], [1], None, "same queries"),
    ([], [], None, "at least one"),
    ([1, np.nan], [1, 2], None, "not finite"),
    ([1, 2], [1, 2], [0], "one group per query"),
  ],
)
def test_bad_values_are_one_clear_error(a, b, group, message):
  for test in (significance.paired_bootstrap, significance.paired_permutation):
    with pytest.raises(UserError, match=message):
      test(a, b, group=group)


def test_twenty_five_thousand_hits_take_a_moment():
  a, b = hits(queries=25000, gap=0.01)
  start = time.process_time()
  significance.paired_bootstrap(a, b)
  significance.paired_permutation(a, b)
  assert time.process_time() - start < 2
