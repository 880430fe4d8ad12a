"""Hinge losses on given (mined) negatives: HN, M-HN and Full-HN. They count the constraints that
hold.
"""

import functools

import jax
import jax.numpy as jnp

from xmr.errors import choice
from xmr.losses import shapes
from xmr.losses.shapes import Embeddings, Loss, Mask
from xmr.ops import chosen
from xmr.ops.chosen import Chosen
from xmr.ops.similarity import rowwise, within

PAIR_RULES = ("same", "different", "released")


def hard_negative(
  image: Embeddings,
  text: Embeddings,
  image_negative: Embeddings | Chosen,
  text_negative: Embeddings | Chosen,
  *,
  margin: float = 0.2,
  kind: str = "dot",
  image_found: Mask | None = None,
  text_found: Mask | None = None,
) -> Loss:
  """Hinge loss on one negative per query, both directions (HN).

  mean_k [margin - p_k + s(i_k, c-_k)]_+ + mean_k [margin - p_k + s(i-_k, c_k)]_+ with
  p_k = s(i_k, c_k), s the dot product.

  Args:
    image, text: [B, D] float, unit rows; row k describes image k.
    image_negative, text_negative: [B, D] float, unit rows: the image mined for text k, the text
      mined for image k. Over several devices both may be Chosen rows of the batch.
    margin: hinge margin in cosine units; 0.4 on Flickr30K and 0.2 on COCO in the notebooks.
    kind: s, as in `sum_of_hinges`; one-sided kinds of tokens sum over those of i or c in s(i-, i),
      s(c-, c).
    image_found, text_found: [B] bool, False where no image or no text could be mined: hinges with
      that negative are 0 without gradient, and its triplet violates nothing. None: all were found.
  Returns:
    loss: [] float.  terms: {"i2t", "t2i": [] the two means, "active": [] share of their hinges
      above 0, "satisfied_image", "satisfied_text", "satisfied_pair": [] shares of triplets with
      p > s(i-, i) + b, p > s(c-, c) + b, p > s(i-, c-) + b where b is the margin (the released
      counters e1, e2, e3 divided by B), "inconsistent_image", "inconsistent_text": [] shares with
      s(i-, i) > p, s(c-, c) > p, "inconsistent": [] share with either}.
  Raises:
    ValueError: shapes differ; names both.
  References:
    Mallea et al., Discovery Science 2023; FullHN `Net.loss` as released.
  """
  s = _similarities(image, text, image_negative, text_negative, kind, image_found, text_found)
  terms = _cross_modal(s, margin, margin) | _order(s, margin)
  return terms["i2t"] + terms["t2i"], terms


def margin_hard_negative(
  image: Embeddings,
  text: Embeddings,
  image_negative: Embeddings | Chosen,
  text_negative: Embeddings | Chosen,
  *,
  kind: str = "dot",
  image_found: Mask | None = None,
  text_found: Mask | None = None,
) -> Loss:
  """HN with the intra-modal similarity of the negative in place of the margin (M-HN).

  mean_k [s(i-_k, i_k) - p_k + s(i_k, c-_k)]_+ + mean_k [s(c-_k, c_k) - p_k + s(i-_k, c_k)]_+;
  gradient flows through both.

  Args, Raises, References: as `hard_negative`, without a margin.
  Returns:
    loss: [] float.  terms: as `hard_negative`, with b = 0 in the satisfied constraints.
  """
  s = _similarities(image, text, image_negative, text_negative, kind, image_found, text_found)
  terms = _cross_modal(s, s["image_image"], s["text_text"]) | _order(s, 0.0)
  return terms["i2t"] + terms["t2i"], terms


def full_hard_negative(
  image: Embeddings,
  text: Embeddings,
  image_negative: Embeddings | Chosen,
  text_negative: Embeddings | Chosen,
  *,
  same_pair: Mask,
  margin: float = 0.2,
  intra_margin: float = 0.2,
  pair_rule: str = "same",
  kind: str = "dot",
  image_found: Mask | None = None,
  text_found: Mask | None = None,
) -> Loss:
  """HN with constraints that order intra-modal and negative pairs below the positive (Full-HN).

  HN + v_c + t_c + s_p with b = intra_margin:  v_c = mean_k [b - p_k + s(i-_k, i_k)]_+,
  t_c = mean_k [b - p_k + s(c-_k, c_k)]_+,  s_p = mean_k mask_k [b - p_k + s(i-_k, c-_k)]_+.

  Args:
    image, text, image_negative, text_negative: [B, D] float, unit rows, as in `hard_negative`.
    same_pair: [B] bool or 0/1, True where text_negative k describes image_negative k.
    margin: alpha of HN.  intra_margin: alpha_2, b above; the notebooks set both to 0.4 (Flickr30K)
      or 0.2 (COCO).
    pair_rule: "same" (mask = same_pair, as the notebooks intend), "different" (mask = not
      same_pair, as F-TERAN and, it seems, the abstract), "released" (s_p = mean(same_pair)
      mean(hinge), because the notebooks' [B] x [B, 1] product is [B, B]).
    kind, image_found, text_found: as in `hard_negative`.
  Returns:
    loss: [] float.  terms: as `hard_negative`, with b = intra_margin in the satisfied constraints,
      and {"image_constraint", "text_constraint", "pair_constraint": [] v_c, t_c, s_p}.
  Raises:
    ValueError: shapes differ; names both.  UserError: unknown pair_rule.
  References:
    Mallea et al., Discovery Science 2023; FullHN `Net.loss`.
  """
  s = _similarities(image, text, image_negative, text_negative, kind, image_found, text_found)
  choice("pair_rule", pair_rule, PAIR_RULES)
  if jnp.shape(same_pair) != s["positive"].shape:
    raise ValueError(
      f"same_pair has shape {jnp.shape(same_pair)}; expected {s['positive'].shape} as text has rows"
    )
  mask = jnp.asarray(same_pair).astype(s["positive"].dtype)
  hinge = {
    key: jax.nn.relu(intra_margin - s["positive"] + s[key])
    for key in ("image_image", "text_text", "negatives")
  }
  if pair_rule == "released":
    pair = jnp.mean(mask) * jnp.mean(hinge["negatives"])
  else:
    pair = jnp.mean((mask if pair_rule == "same" else 1 - mask) * hinge["negatives"])
  constraints = {
    "image_constraint": jnp.mean(hinge["image_image"]),
    "text_constraint": jnp.mean(hinge["text_text"]),
    "pair_constraint": pair,
  }
  terms = _cross_modal(s, margin, margin) | constraints | _order(s, intra_margin)
  return terms["i2t"] + terms["t2i"] + sum(constraints.values()), terms


def _similarities(image, text, image_negative, text_negative, kind, image_found, text_found):
  """Scores [B] by name; -inf where a negative was not found, so that its hinges are 0."""
  scores = chosen.row_by_row(
    functools.partial(scores_of_rows, kind=kind), image, text, image_negative, text_negative
  )
  image_found, text_found = (
    shapes.mask(name, found, len(scores["positive"]))
    for name, found in (("image_found", image_found), ("text_found", text_found))
  )
  found = {
    "positive": True,
    "image_text_negative": text_found,
    "image_negative_text": image_found,
    "image_image": image_found,
    "text_text": text_found,
    "negatives": image_found & text_found,
  }
  return {name: jnp.where(found[name], score, -jnp.inf) for name, score in scores.items()}


def scores_of_rows(image, text, image_negative, text_negative, *, kind):
  """Scores of each of n pairs and its negatives, four sets of n rows -> {name: [n]}."""
  image, text, image_negative, text_negative = shapes.matrices(
    image=image, text=text, image_negative=image_negative, text_negative=text_negative
  )
  return {
    "positive": rowwise(image, text, kind=kind),
    "image_text_negative": rowwise(image, text_negative, kind=kind),
    "image_negative_text": rowwise(image_negative, text, kind=kind),
    "image_image": within(image, image_negative, kind=kind),
    "text_text": within(text, text_negative, kind=kind),
    "negatives": rowwise(image_negative, text_negative, kind=kind),
  }


def _cross_modal(s, image_margin, text_margin):
  i2t = jax.nn.relu(image_margin - s["positive"] + s["image_text_negative"])
  t2i = jax.nn.relu(text_margin - s["positive"] + s["image_negative_text"])
  return {
    "i2t": jnp.mean(i2t),
    "t2i": jnp.mean(t2i),
    "active": (jnp.mean(i2t > 0) + jnp.mean(t2i > 0)) / 2,
  }


def _order(s, margin):
  """Shares of the triplets whose positive scores above the intra-modal pairs and above the pair of
  negatives.
  """
  above_image, above_text = s["image_image"] > s["positive"], s["text_text"] > s["positive"]
  return {
    "satisfied_image": jnp.mean(s["positive"] > s["image_image"] + margin),
    "satisfied_text": jnp.mean(s["positive"] > s["text_text"] + margin),
    "satisfied_pair": jnp.mean(s["positive"] > s["negatives"] + margin),
    "inconsistent_image": jnp.mean(above_image),
    "inconsistent_text": jnp.mean(above_text),
    "inconsistent": jnp.mean(above_image | above_text),
  }
