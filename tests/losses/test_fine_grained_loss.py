"""The pairwise similarity loss and its fine-grained forms, against NumPy's own mean and
variance.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from xmr.losses import fine_grained_similarity, pair_cross_entropy, pairwise_similarity
from xmr.losses.fine_grained import FORMS


def pairs(seed, count=17):
  generator = np.random.default_rng(seed)
  scores = generator.normal(size=count).astype(np.float32)
  return scores, generator.random(count) < 0.4, generator.random(count).astype(np.float32)


def test_base_loss_equals_means_and_variances():
  scores, positive, _ = pairs(0)
  above, below = scores[positive].astype(float), scores[~positive].astype(float)
  expected = above.var() + below.var() + 0.5 * max(0, 1.1 - (above.mean() - below.mean()))
  loss, terms = pairwise_similarity(scores, positive, weight=0.5, margin=1.1)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(terms["mean_negative"], below.mean(), rtol=1e-5)
  assert pairwise_similarity(10.0 * positive, positive)[0] == 0


def test_cross_entropy_weighs_both_classes_alike():
  scores, positive, _ = pairs(7)
  share = 1 / (1 + np.exp(-scores.astype(float)))
  expected = -(np.log(share[positive]).mean() + np.log(1 - share[~positive]).mean()) / 2
  loss, terms = pair_cross_entropy(scores, positive)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  np.testing.assert_allclose(terms["active"], np.mean((share > 0.5) != positive))
  gradient = jax.grad(lambda s: pair_cross_entropy(s, positive)[0])(scores)
  count = np.where(positive, positive.sum(), (~positive).sum())
  np.testing.assert_allclose(gradient, (share - positive) / (2 * count), rtol=1e-5)


def test_cross_entropy_of_large_scores_and_of_one_class_is_finite():
  loss, gradient = jax.value_and_grad(lambda s: pair_cross_entropy(s, np.array([True, True]))[0])(
    np.float32([1e4, -1e4])
  )
  assert loss == 2500 and np.isfinite(gradient).all()


def test_beta_zero_is_the_base_loss_exactly():
  scores, positive, hardness = pairs(1)
  base = jax.value_and_grad(lambda s: pairwise_similarity(s, positive)[0])(scores)
  fine = jax.value_and_grad(lambda s: fine_grained_similarity(s, positive, hardness, beta=0.0)[0])(
    scores
  )
  assert base[0] == fine[0]
  np.testing.assert_array_equal(base[1], fine[1])


@pytest.mark.parametrize("form", FORMS)
def test_forms_equal_numpy(form):
  scores, positive, hardness = (np.asarray(x, float) for x in pairs(2))
  positive = positive.astype(bool)
  weights = {"1+bh": 1 + 0.7 * hardness, "h": hardness, "threshold": (hardness >= 0.4) * 1.0}.get(
    form, np.ones(17)
  )
  mean, variance = {}, {}
  for sign, of in ((1, positive), (0, ~positive)):
    mean[sign] = np.average(scores[of], weights=weights[of])
    variance[sign] = np.average((scores[of] - mean[sign]) ** 2, weights=weights[of])
  hinge = max(0, 0.8 - (mean[1] - mean[0]))
  if form == "pair_margin":
    m = 0.8 * (1 + 0.7 * hardness)
    above = [max(0, m[k] - (scores[k] - mean[0])) for k in np.flatnonzero(positive)]
    below = [max(0, m[k] - (mean[1] - scores[k])) for k in np.flatnonzero(~positive)]
    hinge = (np.mean(above) + np.mean(below)) / 2
  expected = variance[0] + variance[1] + 0.35 * hinge
  if form == "soft_targets":
    label = [
      np.clip(1 - h, 0.5, 1) if p else np.clip(h, 0, 0.5)
      for h, p in zip(hardness, positive, strict=True)
    ]
    expected += 0.7 * np.mean((1 / (1 + np.exp(-scores)) - label) ** 2)
  loss, _ = fine_grained_similarity(scores, positive, hardness, beta=0.7, form=form, threshold=0.4)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_is_the_slope_in_scores_and_nothing_in_hardness(form):
  with jax.enable_x64(True):
    scores, positive, hardness = pairs(3)
    check_grads(
      jax.jit(lambda s: fine_grained_similarity(s, positive, hardness, form=form)[0]),
      (scores.astype(float),),
      order=1,
      modes=["rev"],
      eps=1e-7,
      rtol=1e-5,
    )
  assert not np.any(
    jax.grad(lambda h: fine_grained_similarity(scores, positive, h, form=form)[0])(hardness)
  )


def test_hard_pairs_pull_harder():
  scores, positive = np.array([0.2, 0.2, 0.0, 0.0], np.float32), np.array([1, 1, 0, 0])
  gradient = jax.grad(
    lambda s: fine_grained_similarity(s, positive, np.array([1.0, 0, 0, 1.0]))[0]
  )(scores)
  np.testing.assert_allclose(gradient, np.array([-2, -1, 1, 2]) * 0.35 / 3, rtol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("of", [0, 1])
def test_a_class_without_pairs_costs_nothing(form, of):
  scores, _, hardness = pairs(4)
  positive = np.full(17, of)
  loss, gradient = jax.value_and_grad(
    lambda s: fine_grained_similarity(s, positive, hardness, form=form)[0]
  )(scores)
  assert np.isfinite(loss) and np.isfinite(gradient).all()
  assert fine_grained_similarity(scores, positive, hardness, form=form)[1]["separation"] == 0
  loss, _ = pairwise_similarity(scores[:1], positive[:1])
  assert loss == 0


def test_bfloat16_and_jit():
  scores, positive, hardness = pairs(5)
  half = jnp.asarray(scores, jnp.bfloat16)
  loss, _ = jax.jit(fine_grained_similarity)(half, positive, hardness)
  assert loss.dtype == jnp.float32
  expected, _ = fine_grained_similarity(np.asarray(half, np.float32), positive, hardness)
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_errors_name_what_was_found():
  scores, positive, hardness = pairs(6)
  with pytest.raises(
    ValueError, match=r"positive has shape \(3,\); expected \(17,\) as scores has"
  ):
    pairwise_similarity(scores, positive[:3])
  with pytest.raises(ValueError, match=r"scores has shape \(17, 1\); expected \[P\]"):
    pairwise_similarity(scores[:, None], positive)
  with pytest.raises(
    ValueError, match=r"positive has shape \(3,\); expected \(17,\) as scores has"
  ):
    pair_cross_entropy(scores, positive[:3])
  with pytest.raises(ValueError, match="form is 'soft'; expected one of 1\\+bh, h, soft_targets"):
    fine_grained_similarity(scores, positive, hardness, form="soft")
