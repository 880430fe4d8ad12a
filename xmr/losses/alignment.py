"""Token-level alignment of images and texts (regions with words), and the Full-HN loss on it
(F-TERAN).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from xmr.errors import choice
from xmr.losses import shapes
from xmr.ops import tiles
from xmr.ops.alignment import Tokens, aligned, aligned_rows

DIAGONALS = ("masked", "released")
PAIR_RULES = ("different", "same")


def trim_tokens(tokens, length, *, first, last):
  """Drops special tokens from both ends of each sequence.

  Args:
    tokens: [B, L, D] float, padded at the end.  length: [B] int, tokens of each sequence, special
      ones included.
    first, last: how many to drop (TERAN as released: 1 and 0 of an image, 1 and 2 of a text).
  Returns:
    tokens: [B, L - first - last, D].  mask: [B, L - first - last] bool, True where a token is left.
  """
  kept = tokens.shape[1] - first - last
  if kept < 1:
    raise ValueError(
      f"tokens has shape {jnp.shape(tokens)}; expected more than {first + last} tokens to drop"
    )
  return tokens[:, first : first + kept], jnp.arange(kept) < (jnp.asarray(length) - first - last)[
    :, None
  ]


def aligned_full_hard_negative(
  image,
  text,
  *,
  image_mask=None,
  text_mask=None,
  match=None,
  margin=0.2,
  weight=1.0,
  diagonal="masked",
  pair_rule="different",
  padding="zero",
):
  """Full-HN on alignment scores with the hardest negatives of the batch (F-TERAN).

  h_n = argmax_m S_nm - S_nn, g_m = argmax_n S_nm - S_mm;
  loss = sum_n [a + S_{n h_n} - S_nn]_+ + sum_m [a + S_{g_m m} - S_mm]_+
    + weight (v_c / 100 + t_c / 10 + s_p),  a = margin;
  v_c = sum_n [a + ii(n, h_n) - S_nn]_+,  t_c = sum_n [a + tt(n, g_n) - S_nn]_+;
  s_p = sum_n mask_n [a + S_{g_n h_n} - S_nn]_+,  mask_n = (h_n != g_n) for "different",
    (h_n == g_n) for "same";
  ii(n, m) = sum over regions of n of the best region of m;  tt(n, m) = the symmetric score of both
    texts.

  Args:
    image: [B, R, D] float.  text: [B, W, D] float; row i describes image i.  image_mask: [B, R],
      text_mask: [B, W] bool, True for tokens; None is all. Or Tokens, which hold both.
    match: [B, B] bool, True where text j describes image i; None is the identity. Unused with
      diagonal "released".
    margin: a.  weight: lambda, 1 as released.
    diagonal: "masked" (a positive is never a negative) or "released" (it can be one: a query whose
      positive scores best then costs a constant margin, without gradient).
    pair_rule: "different" (as released) or "same".  padding: of `ops.alignment.Tokens`.
  Returns:
    loss: [] float, a sum over the batch.  terms: {"i2t", "t2i", "image_constraint",
      "text_constraint", "pair_constraint": [] parts before their weights, "active": [] share of the
      2 B first hinges above 0}. With one pair and a masked diagonal there is no negative, and all
      are 0.
  Raises:
    ValueError: shapes do not fit; names both.  UserError: unknown diagonal, pair_rule or padding.
  References:
    FullHN F-TERAN/loss.py (no results are published for it).
  """
  choice("diagonal", diagonal, DIAGONALS)
  choice("pair_rule", pair_rule, PAIR_RULES)
  image = _tokens("image", image, image_mask, padding)
  text = _tokens("text", text, text_mask, padding)
  # The search needs no gradient: a few scores per pair, computed again below, carry all of it.
  fixed = aligned(*jax.lax.stop_gradient((image, text)), form="symmetric")
  batch = image.shape[0]
  if text.shape[0] != batch:
    raise ValueError(f"text has shape {text.shape}; expected {batch} texts for {batch} images")
  negative = (
    ~shapes.match_mask(match, batch) if diagonal == "masked" else jnp.ones((batch, batch), bool)
  )
  # The released search ranks S - S_nn, which orders a query's negatives as S does.
  candidates = jnp.where(negative, fixed, -jnp.inf)
  hardest = tuple(tiles.largest(candidates, axis=axis)[1] for axis in (1, 0))
  found = jnp.any(negative, axis=1), jnp.any(negative, axis=0)

  # The gradient takes the negatives' tokens again: only an index per row is kept.
  @jax.checkpoint
  def scored(image, text):
    return scores_of_rows(image, text, *(side[rows] for rows in hardest for side in (image, text)))

  sums = sums_of_parts(scored(image, text), hardest, found, margin=margin, pair_rule=pair_rule)
  return total(sums, batch, weight)


def scores_of_rows(image, text, image_of_text, text_negative, image_negative, text_of_image):
  """Scores of each of n pairs with its negatives, Tokens of n rows -> {name: [n]}.

  Args:
    image, text: the pairs.  text_negative, image_of_text: each image's hardest text, and the image
      of that text.  image_negative, text_of_image: each text's hardest image, and its text.
  """
  symmetric = functools.partial(aligned_rows, form="symmetric")
  return {
    "positive": symmetric(image, text),
    "i2t": symmetric(image, text_negative),
    "t2i": symmetric(image_negative, text),
    "image_constraint": aligned_rows(image, image_of_text, form="MwSr"),
    "text_constraint": symmetric(text, text_of_image),
    "pair_constraint": symmetric(image_negative, text_negative),
  }


def sums_of_parts(scores, hardest, found, *, margin, pair_rule):
  """Sums over some queries of the parts of `aligned_full_hard_negative`.

  Args:
    scores: of `scores_of_rows`, [n] each.
    hardest: (text of each query's image [n], image of each query's text [n]), rows.
    found: (whether either is there [n], [n]).  margin, pair_rule: of the loss.
  Returns:
    {"i2t", "t2i", "image_constraint", "text_constraint", "pair_constraint", "active": [] number of
    the first hinges above 0}.
  """
  has_text, has_image = found
  differs = hardest[0] != hardest[1]

  counted = {
    "i2t": has_text,
    "t2i": has_image,
    "image_constraint": has_text,
    "text_constraint": has_image,
    "pair_constraint": has_text & has_image & (differs == (pair_rule == "different")),
  }
  parts = {
    name: jnp.where(mask, jax.nn.relu(margin + scores[name] - scores["positive"]), 0)
    for name, mask in counted.items()
  }
  parts["active"] = (parts["i2t"] > 0) * 0.5 + (parts["t2i"] > 0) * 0.5
  return {name: jnp.sum(part) for name, part in parts.items()}


def total(sums, batch, weight):
  """The loss and its terms of `sums_of_parts` over all queries; `batch`: their number."""
  terms = sums | {"active": sums["active"] / batch}
  constraints = (
    terms["image_constraint"] / 100 + terms["text_constraint"] / 10 + terms["pair_constraint"]
  )
  return terms["i2t"] + terms["t2i"] + weight * constraints, terms


def _tokens(name, tokens, mask, padding):
  """Returns Tokens of an array and its mask."""
  if isinstance(tokens, Tokens):
    return dataclasses.replace(tokens, padding=padding)
  tokens = jnp.asarray(tokens)
  if tokens.ndim != 3:
    raise ValueError(f"{name} has shape {tokens.shape}; expected [B, tokens, D]")
  mask = jnp.ones(tokens.shape[:2], bool) if mask is None else jnp.asarray(mask)
  return Tokens(tokens, mask, padding)
