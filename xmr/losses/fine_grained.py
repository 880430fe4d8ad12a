"""Losses on scored pairs: the pairwise similarity loss, its weighting by fine-grained labels, and
cross entropy.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Real

from xmr.errors import choice
from xmr.losses.shapes import Loss
from xmr.ops.arrays import Array

Scores = Real[Array, " P"]
Truth = Bool[Array, " P"] | Real[Array, " P"]
FORMS = ("1+bh", "h", "soft_targets", "pair_margin", "threshold")
# Keeps weights "h" positive where every hardness is 0 (the true pairs).
SMALL = 1e-6


def pairwise_similarity(
  scores: Scores, positive: Truth, *, weight: float = 0.35, margin: float = 0.8
) -> Loss:
  """Global loss: small variance within positives and within negatives, their means a margin apart.

  var+ + var- + weight [margin - (mu+ - mu-)]_+ with the mean and the (biased) variance of the
  scores of each class.

  Args:
    scores: unbounded similarity of each pair.  positive: whether it is of one category.
    weight, margin: lambda and m; 0.35 and 0.8 in the group's text-image code.
  Returns:
    loss: [] float.  terms: {"variance_positive", "variance_negative", "mean_positive",
      "mean_negative", "separation": [] the hinge before its weight, "active": [] 1 where the hinge
      is above 0}. A class without pairs has mean and variance 0, and then the hinge is 0.
  Raises:
    ValueError: shapes differ; names both.
  References:
    Kumar et al., CVPR 2016, global loss; Ktena et al., 2017; SCKR (text-image).
  """
  scores, positive = _pairs(scores, positive=positive)
  return _global_loss(scores, positive, jnp.ones_like(scores), weight, margin)


def pair_cross_entropy(scores: Scores, positive: Truth) -> Loss:
  """Binary cross entropy of scores as logits, positives and negatives in equal parts.

  1/2 mean over positives of ln(1 + e^-s) + 1/2 mean over negatives of ln(1 + e^s).

  Args:
    scores: logits that a pair is of one category.  positive: whether it is.
  Returns:
    loss: [] float.  terms: {"positive", "negative": [] the two means, "active": [] share of pairs
      on the wrong side of 0}. A class without pairs counts as 0.
  Raises:
    ValueError: shapes differ; names both.
  References:
    yul_gcn (cross entropy of its siamese network), as released. The equal parts are added here,
    because a grid of pairs has few positives.
  """
  scores, positive = _pairs(scores, positive=positive)
  each = jax.nn.softplus(jnp.where(positive, -scores, scores))
  terms = {"positive": _mean(each, positive), "negative": _mean(each, ~positive)}
  value = (terms["positive"] + terms["negative"]) / 2
  return value, {**terms, "active": jnp.mean((scores > 0) != positive)}


def fine_grained_similarity(
  scores: Scores,
  positive: Truth,
  hardness: Scores,
  *,
  beta: float = 1.0,
  weight: float = 0.35,
  margin: float = 0.8,
  form: str = "1+bh",
  threshold: float = 0.5,
) -> Loss:
  """Pairwise similarity loss in which hard pairs count more (FG-CMIR, reconstructed).

  The loss of `pairwise_similarity` with weighted means and variances, mu = sum w s / sum w within
  each class. The forms, with h the hardness, are:
  1+bh: w = 1 + beta h; beta = 0 is `pairwise_similarity` exactly.
  h: w = h + 1e-6.
  threshold: w = 1 where h >= threshold, else 0.
  soft_targets: w = 1, plus beta mean (sigmoid(s) - l)^2, with l = g = 1 - h in [0.5, 1] for
    positives and l = h in [0, 0.5] for negatives (clipped).
  pair_margin: w = 1, and each pair k has a hinge against the mean of the other class, with its own
    margin m_k = margin (1 + beta h):
    1/2 mean_+ [m_k - (s_k - mu-)]_+ + 1/2 mean_- [m_k - (mu+ - s_k)]_+.
  No gradient flows into the hardness.

  Args:
    scores: unbounded similarity of each pair.  positive: whether it is of one category.
    hardness: in [0, 1]: 1 - g for positives and g for negatives, where g is the similarity of the
      pair's text with the text of its image.
    beta: influence of the hardness.  weight, margin: as in `pairwise_similarity`.
    form: one of the names above.  threshold: of the form of that name.
  Returns:
    loss: [] float.  terms: as `pairwise_similarity`, and "soft_targets": [] in that form.
  Raises:
    ValueError: shapes differ; names both.  UserError: unknown form.
  References:
    Xu et al., FG-CMIR, ICCS 2019 (abstract and introduction). The formula is not public: a
    RECONSTRUCTION from the paper's abstract and the group's base loss.
  """
  choice("form", form, FORMS)
  scores, positive, hardness = _pairs(scores, positive=positive, hardness=hardness)
  hardness = jax.lax.stop_gradient(hardness).astype(scores.dtype)
  weights = {
    "1+bh": 1 + beta * hardness,
    "h": hardness + SMALL,
    "threshold": (hardness >= threshold) * 1.0,
  }
  weights = weights.get(form, jnp.ones_like(scores)).astype(scores.dtype)
  margins = margin * (1 + beta * hardness) if form == "pair_margin" else None
  loss, terms = _global_loss(scores, positive, weights, weight, margin, margins)
  if form == "soft_targets":
    label = jnp.where(positive, jnp.clip(1 - hardness, 0.5, 1), jnp.clip(hardness, 0, 0.5))
    terms["soft_targets"] = jnp.mean(jnp.square(jax.nn.sigmoid(scores) - label))
    loss = loss + beta * terms["soft_targets"]
  return loss, terms


def _pairs(scores, **others):
  scores = jnp.asarray(scores)
  if scores.ndim != 1:
    raise ValueError(f"scores has shape {scores.shape}; expected [P]")
  for name, array in others.items():
    if jnp.shape(array) != scores.shape:
      raise ValueError(
        f"{name} has shape {jnp.shape(array)}; expected {scores.shape} as scores has"
      )
  others = {name: jnp.asarray(array) for name, array in others.items()}
  others["positive"] = others["positive"].astype(bool)
  return scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), *others.values()


def _global_loss(scores, positive, weights, weight, margin, margins=None):
  share = {"positive": weights * positive, "negative": weights * ~positive}
  present = jnp.any(share["positive"] > 0) & jnp.any(share["negative"] > 0)
  mean = {key: _mean(scores, w) for key, w in share.items()}
  variance = {key: _mean(jnp.square(scores - mean[key]), w) for key, w in share.items()}
  if margins is None:
    separation = jax.nn.relu(margin - (mean["positive"] - mean["negative"]))
  else:
    above = _mean(jax.nn.relu(margins - (scores - mean["negative"])), share["positive"])
    separation = (
      above + _mean(jax.nn.relu(margins - (mean["positive"] - scores)), share["negative"])
    ) / 2
  separation = jnp.where(present, separation, 0)
  terms = {f"variance_{key}": value for key, value in variance.items()}
  terms |= {f"mean_{key}": value for key, value in mean.items()}
  terms |= {"separation": separation, "active": (separation > 0).astype(scores.dtype)}
  return variance["positive"] + variance["negative"] + weight * separation, terms


def _mean(values, weights):
  total = jnp.sum(weights)
  return jnp.sum(weights * values) / jnp.where(total > 0, total, 1)
