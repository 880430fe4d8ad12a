"""Ranks, recall, lists by alignments against all scores at once, for every size of block."""

import functools

import numpy as np
import pytest

from xmr import eval as evaluation
from xmr.errors import UserError
from xmr.eval import alignment, metrics
from xmr.eval.graded import ranked_lists
from xmr.eval.ranks import outcomes
from xmr.eval.shortlist import shortlist
from xmr.eval.token_scores import blocks, pair_scores, sides, slack_of
from xmr.ops.alignment import FORMS, Tokens, aligned

OWNER = np.array([0, 0, 1, 2, 2, 2, 3, 4, 5, 6, 6])


def tokens(count, length, *, seed, dim=5, kind="normal", padding="ignored"):
  """Tokens with gaps; kind "whole": small integers, which tie often; "near": one rounding apart."""
  rng = np.random.default_rng(seed)
  mask = rng.random((count, length)) < 0.6
  mask[np.arange(count), rng.integers(0, length, count)] = True
  x = rng.normal(size=(count, length, dim))
  if kind == "whole":
    x = rng.integers(-2, 3, x.shape)
  x = x.astype(np.float32)
  if kind == "near":
    x, mask = np.repeat(x[:1], count, axis=0), np.repeat(mask[:1], count, axis=0)
    x = np.where(rng.random(x.shape) < 0.1, np.nextafter(x, np.float32(9)), x)
  return Tokens(np.where(mask[..., None], x, np.float32(7)), mask, padding)


def by_loops(query, gallery, form):
  """All scores in float64 by the definition: [Q, G]."""
  part = {
    "MrSw": lambda c: c.max(0).sum(),
    "MwSr": lambda c: c.max(1).sum(),
    "MrAVGw": lambda c: c.max(0).mean(),
    "MwAVGr": lambda c: c.max(1).mean(),
    "symmetric": lambda c: c.max(0).sum() + c.max(1).sum(),
    "symmetric_mean": lambda c: (c.max(0).mean() + c.max(1).mean()) / 2,
  }[form]
  return np.array(
    [
      [
        part(q[m].astype(np.float64) @ g[w].astype(np.float64).T)
        for g, w in zip(gallery.x, gallery.mask, strict=True)
      ]
      for q, m in zip(query.x, query.mask, strict=True)
    ]
  )


def loop_ranks(scores, right):
  best = np.where(right, scores, -np.inf).max(axis=1, keepdims=True)
  return np.count_nonzero(~right & (scores >= best), axis=1)


def test_released_padding_is_in_the_maxima_of_ranking_too():
  """As in training: a query whose best match is below 0 takes the 0 of the other's padding."""
  image, text = (tokens(n, 4, seed=n, padding="zero") for n in (7, 11))
  expected = np.asarray(aligned(image, text, form="symmetric"), np.float64)
  scores, indices = alignment.top_k(image, text, 11, form="symmetric", task="i2t", block=4)
  np.testing.assert_allclose(scores, np.take_along_axis(expected, indices, 1), rtol=1e-5, atol=1e-5)
  assert np.abs(expected - by_loops(image, text, "symmetric")).max() > 0.1


@pytest.mark.parametrize("kind", ["normal", "whole", "near"])
@pytest.mark.parametrize("block", [1, 3, 8, None])
def test_recall_equals_brute_force_for_every_block(kind, block):
  image, text = tokens(7, 4, seed=0, kind=kind), tokens(11, 6, seed=1, kind=kind)
  found = alignment.recall(image, text, OWNER, form="symmetric", block=block)
  both = sides(image, text, names=("image", "text"))
  pairs = np.indices((7, 11)).reshape(2, -1)
  scores = pair_scores(*both, *pairs, form="symmetric").reshape(7, 11)
  np.testing.assert_allclose(scores, by_loops(image, text, "symmetric"), rtol=1e-12)
  right = OWNER[None, :] == np.arange(7)[:, None]
  expected = metrics.both_directions(loop_ranks(scores, right), loop_ranks(scores.T, right.T))
  assert {name: found[name] for name in expected} == expected


def test_every_kind_of_input_is_as_hard_as_it_should_be():
  """The near rows would be ranked wrongly by float32 alone, and the whole numbers tie."""
  image, text = tokens(7, 4, seed=0, kind="whole"), tokens(11, 6, seed=1, kind="whole")
  assert alignment.recall(image, text, OWNER, form="MrSw")["t2i/ties"] > 0
  near = sides(*(tokens(9, 4, seed=s, kind="near") for s in (2, 3)), names=("a", "b"))
  scores = pair_scores(*near, *np.indices((9, 9)).reshape(2, -1), form="MrSw")
  slack = slack_of(*near, slice(None), slice(None), form="MrSw")
  assert 0 < np.ptp(scores) < slack.min()


@pytest.mark.parametrize("scale", [1.0, 1e15, 1e-15])
@pytest.mark.parametrize("form", FORMS)
def test_rounding_stays_below_its_bound(form, scale):
  pair = (
    Tokens(x.x * np.float32(scale), x.mask) for x in (tokens(9, 4, seed=4), tokens(13, 6, seed=5))
  )
  first, second = sides(*pair, names=("a", "b"))
  exact = pair_scores(first, second, *np.indices((9, 13)).reshape(2, -1), form=form).reshape(9, 13)
  for r, c, part in blocks(first, second, form=form, block=5):
    rows, columns = slice(r, r + part.shape[0]), slice(c, c + part.shape[1])
    error = np.abs(part.astype(np.float64) - exact[rows, columns])
    assert (error <= slack_of(first, second, rows, columns, form=form)).all()


@pytest.mark.parametrize("task", alignment.TASKS)
@pytest.mark.parametrize("form", ["MrSw", "MwAVGr", "symmetric"])
def test_tasks_rank_and_list_what_their_definition_says(form, task):
  of = {"i": tokens(7, 4, seed=6), "t": tokens(11, 6, seed=7)}
  query, gallery = of[task[0]], of[task[2]]
  # One-sided forms name the token whose best is taken first: words for MrSw.
  side = "both" if form == "symmetric" else "t" if form == "MrSw" else "i"
  mean = "AVG" in form
  if side == "both":
    expected = by_loops(query, gallery, form)
  elif task[0] == task[2] or task[0] == side:
    expected = by_loops(query, gallery, "MwAVGr" if mean else "MwSr")
  else:
    expected = by_loops(query, gallery, "MrAVGw" if mean else "MrSw")
  scores, indices = alignment.top_k(query, gallery, 3, form=form, task=task, block=4)
  np.testing.assert_array_equal(indices, np.argsort(-expected, axis=1, kind="stable")[:, :3])
  np.testing.assert_allclose(scores, -np.sort(-expected, axis=1)[:, :3], rtol=1e-6)
  positives = np.arange(len(query)) % len(gallery)
  right = positives[:, None] == np.arange(len(gallery))
  found = alignment.ranks(query, gallery, positives, form=form, task=task, block=4)
  np.testing.assert_array_equal(found, loop_ranks(expected, right))


@pytest.mark.parametrize("include_self", [True, False])
def test_lists_of_one_token_are_those_of_vectors(include_self):
  rng = np.random.default_rng(8)
  image, text = (rng.normal(size=(n, 5)).astype(np.float32) for n in (7, 11))
  as_tokens = [Tokens(x[:, None], np.ones((len(x), 1), bool)) for x in (image, text)]
  options = {"k": 4, "include_self": include_self}
  found = alignment.ranked_lists(*as_tokens, form="MrSw", **options)
  expected = ranked_lists(image, text, kind="dot", **options)
  for task in alignment.TASKS:
    np.testing.assert_array_equal(found[task], expected[task])


def test_folds_are_scored_on_their_own():
  image, text = tokens(6, 4, seed=9), tokens(12, 6, seed=10)
  owner = np.arange(12) // 2
  found = alignment.recall(image, text, owner, form="MrSw", folds=2)
  parts = [
    alignment.recall(image[3 * f : 3 * f + 3], text[6 * f : 6 * f + 6], owner[:6], form="MrSw")
    for f in range(2)
  ]
  assert found == metrics.mean_of_folds(parts)


def test_a_shortlist_of_everything_loses_nothing_and_a_short_one_what_it_misses():
  image, text = tokens(7, 4, seed=11), tokens(11, 6, seed=12)
  whole = alignment.recall(image, text, OWNER, form="MrSw")
  found = shortlist(image, text, OWNER, k=11, form="MrSw")
  assert found["i2t/missed"] == found["t2i/missed"] == 0
  for name in ("i2t/r1", "i2t/r5", "t2i/r1", "t2i/r5"):
    assert found[name] == whole[name]
  short = shortlist(image, text, OWNER, k=1, form="MrSw")
  pooled = [alignment.pooled(x, name="side").astype(float) for x in (image, text)]
  scores = pooled[0] @ pooled[1].T / np.linalg.norm(pooled[1], axis=1)
  right = OWNER[None, :] == np.arange(7)[:, None]
  missed = 100 * np.mean(~right[np.arange(7), scores.argmax(1)])
  np.testing.assert_allclose(short["i2t/missed"], missed)
  np.testing.assert_allclose(short["i2t/r1"], 100 - missed)
  assert "i2t/r5" not in short


def test_the_public_functions_of_vectors_take_tokens_too():
  image, text, kind = tokens(7, 4, seed=15), tokens(11, 6, seed=16), "MrSw"
  found = evaluation.recall(image, text, OWNER, kind=kind)
  assert found == alignment.recall(image, text, OWNER, form=kind)
  np.testing.assert_array_equal(
    evaluation.ranks(text, image, OWNER, kind=kind, text_query=True),
    alignment.ranks(text, image, OWNER, form=kind, task="t2i"),
  )
  for a, b in zip(
    evaluation.top_k(image, text, 4, kind=kind),
    alignment.top_k(image, text, 4, form=kind, task="i2t"),
    strict=True,
  ):
    np.testing.assert_array_equal(a, b)
  lists = ranked_lists(image, text, k=3, kind=kind)
  for task in alignment.TASKS:
    query, gallery = ({"i": image, "t": text}[letter] for letter in (task[0], task[2]))
    found = alignment.top_k(query, gallery, 3, form=kind, task=task)[1]
    np.testing.assert_array_equal(lists[task], found)
  of_image, of_text = outcomes(image, text, (OWNER, np.arange(11)), kind=kind)
  np.testing.assert_array_equal(
    of_text["rank"], evaluation.ranks(text, image, OWNER, kind=kind, text_query=True)
  )
  assert of_image["rank"].shape == (7,)


def test_pooled_tokens_are_ranked_as_their_means():
  image, text = tokens(7, 4, seed=15), tokens(11, 6, seed=16)
  means = alignment.pooled(image, name="image"), alignment.pooled(text, name="text")
  pairs = OWNER, np.arange(11)
  for function, query, gallery, more in (
    (evaluation.recall, *(0, 1), (OWNER,)),
    (evaluation.ranks, *(1, 0), (OWNER,)),
    (evaluation.top_k, *(0, 1), (4,)),
    (outcomes, *(0, 1), (pairs,)),
    (functools.partial(ranked_lists, k=3), *(0, 1), ()),
  ):
    sides = (image, text)[query], (image, text)[gallery]
    vectors = means[query], means[gallery]
    np.testing.assert_equal(
      function(*sides, *more, kind="pooled"), function(*vectors, *more, kind="cosine")
    )


def test_pooled_is_the_cosine_of_the_means():
  image, text = tokens(7, 4, seed=17), tokens(11, 6, seed=18)
  means = [
    np.stack([x[m].astype(float).mean(0) for x, m in zip(side.x, side.mask, strict=True)])
    for side in (image, text)
  ]
  means = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in means]
  np.testing.assert_allclose(aligned(image, text, form="pooled"), means[0] @ means[1].T, atol=1e-5)
  expected = evaluation.recall(*means, OWNER)
  found = evaluation.recall(image, text, OWNER, kind="pooled")
  assert found["rsum"] == expected["rsum"]


def test_errors_name_the_side_and_the_row():
  image, text = tokens(7, 4, seed=13), tokens(11, 6, seed=14)
  empty = Tokens(image.x, image.mask & (np.arange(7) != 2)[:, None])
  with pytest.raises(UserError, match=r"image 2 has no token, its mask is empty \(1 of 7 rows\)"):
    alignment.recall(empty, text, OWNER, form="MrSw")
  broken = text.x.copy()
  broken[3, np.argmax(text.mask[3]), 0] = np.nan
  with pytest.raises(UserError, match="text has NaN or infinity in row 3"):
    alignment.recall(image, Tokens(broken, text.mask), OWNER, form="MrSw")
  with pytest.raises(UserError, match="form is 'cosine'; expected one of MrSw"):
    alignment.recall(image, text, OWNER, form="cosine")
  with pytest.raises(UserError, match="k is 12; expected 1 to 11"):
    alignment.top_k(image, text, 12, form="MrSw", task="i2t")
  with pytest.raises(UserError, match=r"gallery \(11, 6, 4\); expected one D"):
    alignment.ranks(
      image, Tokens(text.x[..., :4], text.mask), np.zeros(7, int), form="MrSw", task="i2t"
    )
