"""Arithmetic from ranks to figures."""

import pytest

from xmr.errors import UserError
from xmr.eval import metrics


def test_figures_of_known_ranks():
  figures = metrics.from_ranks([0, 3, 4, 9, 10, 100])
  assert figures == {"r1": 100 / 6, "r5": 50.0, "r10": 400 / 6, "medr": 7.0, "meanr": 22.0}


def test_median_between_two_ranks_is_floored():
  assert metrics.from_ranks([0, 3])["medr"] == 2.0
  assert metrics.from_ranks([2, 3, 9])["medr"] == 4.0


def test_rsum_is_the_plain_sum_of_six_recalls():
  figures = metrics.both_directions([0, 0, 7], [0, 4, 5, 50])
  assert figures["rsum"] == pytest.approx(200 / 3 + 200 / 3 + 100 + 25 + 50 + 75)
  assert figures["t2i/medr"] == 5.0


def test_folds_average_figures_and_sum_ties():
  a = {**metrics.both_directions([0], [0, 0]), "i2t/ties": 1}
  b = {**metrics.both_directions([20], [20, 0]), "i2t/ties": 2}
  mean = metrics.mean_of_folds([a, b])
  assert (
    mean["i2t/r1"] == 50
    and mean["t2i/r10"] == 75
    and mean["i2t/meanr"] == 11
    and mean["i2t/ties"] == 3
  )
  assert mean["rsum"] == 3 * 50 + 3 * 75


def test_folds_are_consecutive_and_equal():
  assert list(metrics.fold_of([0, 1, 2, 3, 4, 5, 5, 0], n_images=6, folds=3)) == [
    0,
    0,
    1,
    1,
    2,
    2,
    2,
    0,
  ]
  for folds in (4, 0, 7):
    with pytest.raises(UserError, match=f"folds is {folds}; expected a divisor of the 6 images"):
      metrics.fold_of([0], n_images=6, folds=folds)


def test_no_ranks_is_an_error():
  with pytest.raises(ValueError, match=r"ranks has shape \(0,\)"):
    metrics.from_ranks([])
