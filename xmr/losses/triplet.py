"""Hinge losses on triplets of the batch: every negative (SH) or the hardest one (MH)."""

import jax
import jax.numpy as jnp

from xmr.losses import shapes
from xmr.losses.shapes import Embeddings, Loss, Match
from xmr.ops import hinges
from xmr.ops.similarity import rowwise, rowwise_at, similarity


def sum_of_hinges(
  image: Embeddings,
  text: Embeddings,
  *,
  match: Match = None,
  margin: float = 0.2,
  reduce: str = "sum",
  kind: str = "dot",
) -> Loss:
  """Hinge loss on every negative of each query, both directions (SH).

  sum_{n, m not in match} [margin + S_nm - S_nn]_+ + [margin + S_nm - S_mm]_+ with S = image text^T.
  Image n is the query in the first term, text m in the second.

  Args:
    image, text: unit rows; text i describes image i.
    match: True where text j describes image i (never a negative); None is the identity.
    margin: hinge margin in units of the similarity.  reduce: "sum" (paper) or "mean": the sum
      divided by B.
    kind: "dot" (cosine of unit rows), or another of `similarity`; those of tokens take Tokens for
      image and text.
  Returns:
    (loss, terms): {"i2t": [], "t2i": [] the two directions, "active": [] share of hinges
      above 0}. The gradient of a hinge at exactly 0 is 0.
  Raises:
    ValueError: shapes differ; names both.  UserError: unknown reduce or kind.
  References:
    Kiros et al., 2014; Faghri et al., VSE++, BMVC 2018, eq. 5.  Authors' code: the same.
  """
  image, text = shapes.matrices(image=image, text=text)
  batch = len(image)
  scale = shapes.reduction(reduce, batch)
  negative = ~shapes.match_mask(match, batch)
  scores = similarity(image, text, kind=kind)
  # Not the diagonal of `scores`: its gradient would be a scatter into [B, B].
  positive = rowwise(image, text, kind=kind)
  i2t, t2i, active = hinges.sums(margin, scores, positive, negative)
  terms = {
    "i2t": scale * i2t,
    "t2i": scale * t2i,
    "active": active / jnp.maximum(2 * jnp.sum(negative), 1),
  }
  return terms["i2t"] + terms["t2i"], terms


def max_of_hinges(
  image: Embeddings,
  text: Embeddings,
  *,
  match: Match = None,
  margin: float = 0.2,
  reduce: str = "sum",
  kind: str = "dot",
) -> Loss:
  """Hinge loss on the hardest negative of each query, both directions (MH).

  sum_n [margin + max_m S_nm - S_nn]_+ + sum_m [margin + max_n S_nm - S_mm]_+ over (n, m) not in
  match, S = image text^T. A query without a negative has hinge 0.

  Args:
    image, text: unit rows; text i describes image i.
    match: True where text j describes image i (never a negative); None is the identity.
    margin: hinge margin in units of the similarity; 0.2 in the paper.  reduce: "sum" over queries
      (paper), or "mean": the sum divided by B.
    kind: "dot" (cosine of unit rows), or another of `similarity`; those of tokens take Tokens for
      image and text.
  Returns:
    (loss, terms): {"i2t": [], "t2i": [] the two directions, "active": [] share of the 2 B
      queries with a hinge above 0, "same_hardest": [] share of queries that have the most common
      hardest negative, the larger of the two directions; near 1 when the embeddings have
      collapsed}. Of equal negatives, the one of lowest index gets the whole gradient. The gradient
      of a hinge at exactly 0 is 0.
  Raises:
    ValueError: shapes differ; names both.  UserError: unknown reduce or kind.
  References:
    Faghri et al., VSE++, BMVC 2018, eq. 6.  Authors' code: the same, without `match`.
  """
  image, text = shapes.matrices(image=image, text=text)
  batch = len(image)
  scale = shapes.reduction(reduce, batch)
  negative = ~shapes.match_mask(match, batch)
  # The search needs no gradient: two scores per query, computed again below, carry all of it.
  scores = similarity(*jax.lax.stop_gradient((image, text)), kind=kind)
  hardest_text, hardest_image = hinges.hardest(scores, negative)
  positive = rowwise(image, text, kind=kind)
  i2t = margin + rowwise_at(image, text, text_index=hardest_text, kind=kind) - positive
  t2i = margin + rowwise_at(image, text, image_index=hardest_image, kind=kind) - positive
  i2t = jnp.where(jnp.any(negative, axis=1), jax.nn.relu(i2t), 0)
  t2i = jnp.where(jnp.any(negative, axis=0), jax.nn.relu(t2i), 0)
  terms = {
    "i2t": scale * jnp.sum(i2t),
    "t2i": scale * jnp.sum(t2i),
    "active": (jnp.mean(i2t > 0) + jnp.mean(t2i > 0)) / 2,
    "same_hardest": jnp.maximum(_largest_share(hardest_text), _largest_share(hardest_image)),
  }
  return terms["i2t"] + terms["t2i"], terms


def _largest_share(index):
  """Share of the most frequent value among `index`, [B] int in [0, B) -> []."""
  counts = jnp.zeros(index.shape, jnp.int32).at[index].add(1)
  return jnp.max(counts) / index.shape[0]
