"""Softmax and sigmoid contrastive losses over the pairs of the batch."""

import jax
import jax.numpy as jnp

from xmr.losses import shapes
from xmr.losses.shapes import Embeddings, Loss, Match, Scalar
from xmr.ops.similarity import similarity


def info_nce(
  image: Embeddings,
  text: Embeddings,
  *,
  match: Match = None,
  temperature: Scalar = 0.07,
  bias: Scalar = 0.0,
  kind: str = "dot",
) -> Loss:
  """Cross entropy of the positive among the batch, mean of both directions (InfoNCE, CLIP).

  1/2 mean_n(-log softmax_m(S_nm / temperature + bias)_n) + 1/2 mean_m(-log softmax_n(...)_m) with
  S = image text^T. The denominator leaves out pairs of match other than the positive.

  Args:
    image, text: unit rows; text i describes image i.
    match: True where text j describes image i (never a negative); None is the identity.
    temperature: above 0; it may be learned.
    bias: added to every score. It cancels here; with it, the same learned scalars serve `sigmoid`,
      too.
    kind: as in `sum_of_hinges`.
  Returns:
    (loss in nats, terms): {"i2t": [], "t2i": [] nats per query, "active": [] share of the 2 B
      queries with a negative that scores no less than the positive}.
  Raises:
    ValueError: shapes differ; names both.
  References:
    van den Oord et al., 2018, eq. 4; Radford et al., CLIP, ICML 2021, fig. 3.
  """
  image, text = shapes.matrices(image=image, text=text)
  match = shapes.match_mask(match, len(image))
  logits = similarity(image, text, kind=kind) / temperature + bias
  positive = jnp.diagonal(logits)
  others = jnp.where(match, -jnp.inf, jax.lax.stop_gradient(logits))
  kept = jnp.where(match & ~jnp.eye(len(image), dtype=bool), -jnp.inf, logits)
  i2t = jax.nn.logsumexp(kept, axis=1) - positive
  t2i = jax.nn.logsumexp(kept, axis=0) - positive
  missed = jnp.mean(jnp.max(others, axis=1) >= positive) + jnp.mean(
    jnp.max(others, axis=0) >= positive
  )
  terms = {"i2t": jnp.mean(i2t), "t2i": jnp.mean(t2i), "active": missed / 2}
  return (terms["i2t"] + terms["t2i"]) / 2, terms


def sigmoid(
  image: Embeddings,
  text: Embeddings,
  *,
  match: Match = None,
  temperature: Scalar = 0.1,
  bias: Scalar = -10.0,
  kind: str = "dot",
) -> Loss:
  """Binary classification of every pair of the batch (sigmoid loss, SigLIP).

  -1/B sum_n log sigmoid(L_nn) - 1/B sum_{n, m not in match} log sigmoid(-L_nm) with
  L = image text^T / temperature + bias.

  Args:
    image, text: unit rows; text i describes image i.
    match: [B, B] bool, True where text j describes image i (never a negative, and off the diagonal
      no positive either); None is the identity.
    temperature: above 0; it may be learned. The paper starts at 1 / 10.
    bias: it may be learned; the paper starts at -10.
    kind: as in `sum_of_hinges`.
  Returns:
    (loss in nats per positive, terms): {"positive": [], "negative": [] their parts of the loss,
      "i2t": [], "t2i": [] half the loss each (the loss is symmetric), "active": [] share of the
      pairs on the wrong side of 0}.
  Raises:
    ValueError: shapes differ; names both.
  References:
    Zhai et al., SigLIP, ICCV 2023, algorithm 1.
  """
  image, text = shapes.matrices(image=image, text=text)
  batch = len(image)
  negative = ~shapes.match_mask(match, batch)
  logits = similarity(image, text, kind=kind) / temperature + bias
  paired = jnp.diagonal(logits)
  parts = {
    "positive": jnp.sum(jax.nn.softplus(-paired)) / batch,
    "negative": jnp.sum(jnp.where(negative, jax.nn.softplus(logits), 0)) / batch,
  }
  loss = parts["positive"] + parts["negative"]
  wrong = jnp.sum(paired <= 0) + jnp.sum(negative & (logits >= 0))
  terms = parts | {"i2t": loss / 2, "t2i": loss / 2, "active": wrong / (batch + jnp.sum(negative))}
  return loss, terms
