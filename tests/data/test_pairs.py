"""The sampler of pairs: labels true, a pure function of seed and step, the released scheme's
counts.
"""

import numpy as np
import pytest

from xmr.data.pairs import Pairs
from xmr.errors import UserError

LABEL = np.repeat(np.arange(10), 13)


def pairs_of(batch):
  return batch["text"][batch["text_of_pair"]], batch["item"][batch["item_of_pair"]]


@pytest.mark.parametrize("scheme, size", [("grid", 256), ("balanced", 64), ("released", 128)])
@pytest.mark.parametrize("own", [True, False])
def test_positive_means_same_category(scheme, size, own):
  for step in (0, 7):
    batch = Pairs(LABEL, batch_size=size, scheme=scheme, seed=3, own=own).batch(step)
    text, item = pairs_of(batch)
    np.testing.assert_array_equal(batch["positive"], LABEL[text] == LABEL[item])
    assert 0 < batch["positive"].mean() < 1
    if not own:
      assert np.all(text != item)


@pytest.mark.parametrize("scheme, size", [("grid", 256), ("balanced", 64), ("released", 128)])
def test_a_batch_follows_from_seed_and_step_alone(scheme, size):
  one, other = (Pairs(LABEL, batch_size=size, scheme=scheme, seed=3) for _ in range(2))
  for step in range(5):
    one.batch(step)
  resumed, straight = other.batch(5), one.batch(5)
  assert all(np.array_equal(resumed[key], straight[key]) for key in straight)
  assert not np.array_equal(straight["text"], one.batch(6)["text"])
  assert not np.array_equal(
    straight["text"], Pairs(LABEL, batch_size=size, scheme=scheme, seed=4).batch(5)["text"]
  )


@pytest.mark.parametrize("scheme, size", [("grid", 100), ("balanced", 40)])
def test_an_epoch_takes_every_text_once(scheme, size):
  pairs = Pairs(LABEL, batch_size=size, scheme=scheme)
  texts = np.concatenate([pairs.batch(step)["text"] for step in range(pairs.steps_per_epoch)])
  assert pairs.steps_per_epoch == 13 and sorted(texts) == list(range(130))


def test_balanced_is_half_positive_with_the_own_item_of_every_text():
  text, item = pairs_of(batch := Pairs(LABEL, batch_size=64, scheme="balanced").batch(2))
  assert batch["positive"].mean() == 0.5
  assert set(text) == set(text[text == item])


def test_balanced_partners_cover_every_other_item_evenly():
  pairs = Pairs(np.repeat([0, 1, 2], 4), batch_size=48, scheme="balanced")
  chosen = [
    tuple(pair) for step in range(900) for pair in zip(*pairs_of(pairs.batch(step)), strict=True)
  ]
  same = np.bincount(
    [item for text, item in chosen if text == 1 and item != 1 and item < 4], minlength=4
  )
  others = np.bincount([item for text, item in chosen if text == 1 and item >= 4], minlength=12)
  assert same[1] == 0 and same[[0, 2, 3]].min() > 250 and others[4:].min() > 180


def test_released_scheme_has_the_counts_of_keras_gcn():
  label = np.repeat(np.arange(10), 218)[:2173]
  pairs = Pairs(label, batch_size=128, scheme="released")
  text, item = pairs.list
  positive = label[text] == label[item]
  assert positive.sum() == 2173 + 10 * 3800 == 40173 and (~positive).sum() == 90 * 440 == 39600
  assert pairs.steps_per_epoch == 79773 // 128


@pytest.mark.parametrize(
  "label, arguments, message",
  [
    (
      LABEL,
      {"batch_size": 64, "scheme": "all"},
      "config.pairs.scheme is 'all'; expected one of grid",
    ),
    (
      LABEL,
      {"batch_size": 30, "scheme": "balanced"},
      "config.batch_size is 30; expected a multiple of 4",
    ),
    (LABEL, {"batch_size": 10**6}, "takes 1000 of 130 rows a step"),
    (np.zeros(9, int), {"batch_size": 4}, "at least 2 categories"),
    (np.array([0, 0, 1]), {"batch_size": 4}, "at least 2 items each"),
  ],
)
def test_what_cannot_be_sampled_is_said(label, arguments, message):
  with pytest.raises(UserError, match=message):
    Pairs(label, **arguments)
