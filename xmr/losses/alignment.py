"""Token-level alignment of images and texts (regions with words), and the Full-HN loss on it
(F-TERAN).
"""

import jax
import jax.numpy as jnp

from xmr.errors import choice
from xmr.losses import shapes
from xmr.ops import tiles
from xmr.ops.similarity import PRECISION

PADDINGS = ("zero", "ignored")
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


def aligned_similarity(image, text, *, image_mask=None, text_mask=None, padding="zero"):
  """Symmetric alignment score of every image with every text (MrSw and its mirror).

  S_nm = sum_w max_r a_rw + sum_r max_w a_rw with a_rw = (region r of image n) . (word w of text m).

  Args:
    image: [N, R, D] float.  text: [M, W, D] float.  image_mask: [N, R] bool, text_mask: [M, W]
      bool, True for tokens; None is all.
    padding: "zero" (as released: a_rw of padding is 0, and takes part in the maxima) or "ignored".
  Returns:
    [N, M] float32 or wider. Memory: one image's [M, R, W] at a time, in the gradient too.
  Raises:
    ValueError: shapes do not fit; names both.  UserError: unknown padding.
  References:
    Messina et al., TERAN, TOMM 2021, eq. 4-6; FullHN F-TERAN/loss.py, both sides added.
  """
  image, image_mask = _sequence("image", image, image_mask)
  text, text_mask = _sequence("text", text, text_mask)
  choice("padding", padding, PADDINGS)
  if image.shape[2] != text.shape[2]:
    raise ValueError(f"image has shape {image.shape} and text {text.shape}; expected one D")

  @jax.checkpoint
  def row(tokens_and_mask):
    tokens, mask = tokens_and_mask
    return sum(_alignment(tokens[None], text, mask[None], text_mask, padding))

  return jax.lax.map(row, (image, image_mask))


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
  sum_n [a + S_{n h_n} - S_nn]_+ + sum_m [a + S_{g_m m} - S_mm]_+ + weight (v_c / 100 + t_c / 10 +
  s_p), a = margin, v_c = sum_n [a + ii(n, h_n) - S_nn]_+,  t_c = sum_n [a + tt(n, g_n) - S_nn]_+,
  s_p = sum_n mask_n [a + S_{g_n h_n} - S_nn]_+,  mask_n = (h_n != g_n) for "different", (h_n ==
  g_n) for "same", ii(n, m) = sum over regions of n of the best region of m;  tt(n, m) = the
  symmetric score of both texts.

  Args:
    image: [B, R, D] float.  text: [B, W, D] float; row i describes image i.  image_mask: [B, R],
      text_mask: [B, W] bool.
    match: [B, B] bool, True where text j describes image i; None is the identity. Unused with
      diagonal "released".
    margin: a.  weight: lambda, 1 as released.
    diagonal: "masked" (a positive is no negative) or "released" (it can be: a query whose positive
      is the best then costs a constant margin without gradient).
    pair_rule: "different" (as released) or "same".  padding: as in `aligned_similarity`.
  Returns:
    loss: [] float, a sum over the batch.  terms: {"i2t", "t2i", "image_constraint",
      "text_constraint",
    "pair_constraint": [] parts before their weights, "active": [] share of the 2 B first hinges
    above 0}. Without any negative (one pair) all are 0 when the diagonal is masked.
  Raises:
    ValueError: shapes do not fit; names both.  UserError: unknown diagonal, pair_rule or padding.
  References:
    FullHN F-TERAN/loss.py (no results are published for it).
  """
  choice("diagonal", diagonal, DIAGONALS)
  choice("pair_rule", pair_rule, PAIR_RULES)
  scores = aligned_similarity(
    image, text, image_mask=image_mask, text_mask=text_mask, padding=padding
  )
  image, image_mask = _sequence("image", image, image_mask)
  text, text_mask = _sequence("text", text, text_mask)
  batch = image.shape[0]
  if text.shape[0] != batch:
    raise ValueError(f"text has shape {text.shape}; expected {batch} texts for {batch} images")
  negative = (
    ~shapes.match_mask(match, batch) if diagonal == "masked" else jnp.ones((batch, batch), bool)
  )
  positive = jnp.diagonal(scores)
  fixed = jax.lax.stop_gradient(scores)
  # The released search ranks S - S_nn, which orders a query's negatives as S does.
  candidates = jnp.where(negative, fixed, -jnp.inf)
  hardest_text, hardest_image = (tiles.largest(candidates, axis=axis)[1] for axis in (1, 0))
  has_text, has_image = jnp.any(negative, axis=1), jnp.any(negative, axis=0)
  rows = jnp.arange(batch)
  image_image = _alignment(
    image, image[hardest_text], image_mask, image_mask[hardest_text], padding
  )[1]
  text_text = sum(
    _alignment(text, text[hardest_image], text_mask, text_mask[hardest_image], padding)
  )
  differs = hardest_text != hardest_image

  def hinge(score, counted):
    return jnp.where(counted, jax.nn.relu(margin + score - positive), 0)

  i2t = hinge(scores[rows, hardest_text], has_text)
  t2i = hinge(scores[hardest_image, rows], has_image)
  pair = hinge(
    scores[hardest_image, hardest_text],
    has_text & has_image & (differs == (pair_rule == "different")),
  )
  terms = {
    "i2t": jnp.sum(i2t),
    "t2i": jnp.sum(t2i),
    "image_constraint": jnp.sum(hinge(image_image, has_text)),
    "text_constraint": jnp.sum(hinge(text_text, has_image)),
    "pair_constraint": jnp.sum(pair),
    "active": (jnp.mean(i2t > 0) + jnp.mean(t2i > 0)) / 2,
  }
  constraints = (
    terms["image_constraint"] / 100 + terms["text_constraint"] / 10 + terms["pair_constraint"]
  )
  return terms["i2t"] + terms["t2i"] + weight * constraints, terms


def _sequence(name, tokens, mask):
  tokens = jnp.asarray(tokens)
  if tokens.ndim != 3:
    raise ValueError(f"{name} has shape {tokens.shape}; expected [B, tokens, D]")
  if mask is None:
    mask = jnp.ones(tokens.shape[:2], bool)
  if jnp.shape(mask) != tokens.shape[:2]:
    raise ValueError(
      f"{name}_mask has shape {jnp.shape(mask)}; expected {tokens.shape[:2]} as {name} has tokens"
    )
  return tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32)), jnp.asarray(mask).astype(bool)


def _alignment(a, b, a_mask, b_mask, padding):
  """Sum over b of the best of a, and sum over a of the best of b; [P or 1, R, D] with [P, W, D] ->
  two [P].
  """
  cells = jnp.einsum(
    "prd,pwd->prw", jnp.broadcast_to(a, b.shape[:1] + a.shape[1:]), b, precision=PRECISION
  )
  valid = a_mask[:, :, None] & b_mask[:, None, :]
  if padding == "zero":
    cells = jnp.where(valid, cells, 0)
    return jnp.sum(jnp.max(cells, axis=1), axis=1), jnp.sum(jnp.max(cells, axis=2), axis=1)
  cells = jnp.where(valid, cells, -jnp.inf)
  totals = []
  for axis in (1, 2):
    some = jnp.any(valid, axis=axis)
    best = jnp.max(jnp.where(jnp.expand_dims(some, axis), cells, 0), axis=axis)
    totals.append(jnp.sum(jnp.where(some, best, 0), axis=1))
  return tuple(totals)
