"""Losses on alignments of tokens: what they say of vectors where each row has one token, and of
scores by loops where it has more.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.losses import (
  full_hard_negative,
  hard_negative,
  info_nce,
  margin_hard_negative,
  max_of_hinges,
  sigmoid,
  sum_of_hinges,
)
from xmr.ops.alignment import NAMES, Tokens, aligned, aligned_rows
from xmr.ops.similarity import KINDS, VECTORS, similarity

ON_PAIRS = (sum_of_hinges, max_of_hinges, info_nce, sigmoid)
MINED = (
  hard_negative,
  margin_hard_negative,
  functools.partial(full_hard_negative, same_pair=np.array([1, 0, 1, 0, 0])),
)


def unit_tokens(count, length, seed):
  rng = np.random.default_rng(seed)
  x = rng.normal(size=(count, length, 4)).astype(np.float32)
  mask = rng.random((count, length)) < 0.7
  mask[:, 0] = True
  return Tokens(x / np.linalg.norm(x, axis=2, keepdims=True), mask)


def test_kinds_are_those_of_vectors_and_of_tokens():
  assert KINDS == (*VECTORS, *NAMES)


@pytest.mark.parametrize("loss", [*ON_PAIRS, *MINED])
def test_one_token_a_row_is_a_vector(loss):
  count = 2 if loss in ON_PAIRS else 4
  rows = [unit_tokens(5, 1, seed).x[:, 0] for seed in range(count)]
  tokens = [Tokens(x[:, None], np.ones((5, 1), bool)) for x in rows]
  found = jax.jit(functools.partial(loss, kind="MrSw"))(*tokens)
  expected = jax.jit(loss)(*rows)
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
  assert found[1].keys() == expected[1].keys()


@pytest.mark.parametrize("kind", ["MwSr", "symmetric", "pooled"])
def test_hinges_and_cross_entropy_equal_those_of_the_scores(kind):
  image, text = unit_tokens(5, 3, 0), unit_tokens(5, 6, 1)
  s = np.asarray(jax.jit(functools.partial(aligned, form=kind))(image, text), np.float64)
  positive, other = np.diagonal(s), ~np.eye(5, dtype=bool)
  rows = np.maximum(0.2 + s - positive[:, None], 0) * other
  columns = np.maximum(0.2 + s - positive, 0) * other
  run = lambda loss: jax.jit(functools.partial(loss, kind=kind))(image, text)[0]  # noqa: E731
  np.testing.assert_allclose(run(sum_of_hinges), rows.sum() + columns.sum(), rtol=1e-5)
  hardest = rows.max(axis=1).sum() + columns.max(axis=0).sum()
  np.testing.assert_allclose(run(max_of_hinges), hardest, rtol=1e-5)
  z = s / 0.07
  costs = [np.log(np.exp(z).sum(axis=axis)) - np.diagonal(z) for axis in (0, 1)]
  np.testing.assert_allclose(run(info_nce), np.mean(costs), rtol=1e-5)
  z = s / 0.1 - 10
  signs = np.where(other, -1, 1)
  np.testing.assert_allclose(run(sigmoid), np.log1p(np.exp(-signs * z)).sum() / 5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["MrSw", "symmetric_mean"])
def test_full_hn_orders_what_alignments_say_of_mined_tokens(kind):
  image, image_negative = unit_tokens(5, 3, 2), unit_tokens(5, 3, 3)
  text, text_negative = unit_tokens(5, 6, 4), unit_tokens(5, 6, 5)
  same = np.array([1, 0, 1, 0, 0])
  s = lambda a, b, form=kind: np.asarray(  # noqa: E731
    jax.jit(functools.partial(aligned_rows, form=form))(a, b)
  )
  # Between images, and between texts, the sum runs over the tokens of the query.
  inside = {"MrSw": "MwSr"}.get(kind, kind)
  positive = s(image, text)
  hinge = lambda score: np.maximum(0.2 - positive + score, 0)  # noqa: E731
  expected = (
    hinge(s(image, text_negative)).mean()
    + hinge(s(image_negative, text)).mean()
    + hinge(s(image, image_negative, inside)).mean()
    + hinge(s(text, text_negative, inside)).mean()
    + (same * hinge(s(image_negative, text_negative))).mean()
  )
  found, _ = jax.jit(lambda *rows: full_hard_negative(*rows, same_pair=same, kind=kind))(
    image, text, image_negative, text_negative
  )
  np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_hardest_negative_has_a_gradient_and_padding_none():
  image, text = unit_tokens(5, 3, 6), unit_tokens(5, 6, 7)
  loss = lambda x: max_of_hinges(Tokens(x, image.mask), text, kind="MrSw")[0]  # noqa: E731
  gradient = jax.jit(jax.grad(loss))(image.x)
  assert np.isfinite(gradient).all() and np.any(gradient[image.mask])
  assert not np.any(gradient[~image.mask])


def test_text_queries_turn_one_sided_kinds():
  image, text = unit_tokens(5, 3, 8), unit_tokens(4, 6, 9)
  for kind in NAMES:
    turned, plain = jax.jit(
      lambda image, text, kind=kind: (
        similarity(text, image, kind=kind, text_query=True),
        similarity(image, text, kind=kind).T,
      )
    )(image, text)
    np.testing.assert_allclose(turned, plain, rtol=1e-5)


def test_errors_say_what_a_kind_wants():
  image, text = unit_tokens(5, 3, 10), unit_tokens(4, 6, 11)
  with pytest.raises(ValueError, match=r"text has shape \(4, 6, 4\); expected 5 rows as image has"):
    max_of_hinges(image, text, kind="MrSw")
  with pytest.raises(ValueError, match="expected Tokens, regions or words"):
    max_of_hinges(jnp.ones((5, 4)), jnp.ones((5, 4)), kind="MrSw")
