"""Similarity of an image's regions and a text's words: sums of best matches between tokens."""

import dataclasses

import jax
import jax.numpy as jnp

from xmr.errors import choice
from xmr.ops.arrays import Array
from xmr.ops.unit import unit

# Name -> (share of the words' sum, share of the regions' sum, whether both are means).
FORMS = {
  "MrSw": (1.0, 0.0, False),
  "MwSr": (0.0, 1.0, False),
  "symmetric": (1.0, 1.0, False),
  "MrAVGw": (1.0, 0.0, True),
  "MwAVGr": (0.0, 1.0, True),
  "symmetric_mean": (0.5, 0.5, True),
}
# The forms, and the cosine of the tokens' means.
NAMES = ("MrSw", "MwSr", "symmetric", "MrAVGw", "MwAVGr", "symmetric_mean", "pooled")
# The same score with the roles of both sides exchanged.
MIRROR = {name: name for name in NAMES} | {
  "MrSw": "MwSr",
  "MwSr": "MrSw",
  "MrAVGw": "MwAVGr",
  "MwAVGr": "MrAVGw",
}
# Between two items of one side, the query first: each of its tokens with the other's best token.
WITHIN = {name: name for name in NAMES} | {"MrSw": "MwSr", "MrAVGw": "MwAVGr"}
PADDINGS = ("ignored", "zero")
# Bytes of [images, regions, words, texts] that exist at a time.
BUDGET = 128 << 20


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokens:
  """Rows of tokens: the regions of images or the words of texts.

  Attributes:
    x: [B, N, D] float.  mask: [B, N] bool, True for tokens, False for padding.
    padding: "ignored", or "zero": products with padding are 0 and take part in the maxima, as
      F-TERAN was released.
  """

  x: Array
  mask: Array
  padding: str = dataclasses.field(default="ignored", metadata={"static": True})

  def __post_init__(self):
    choice("padding", self.padding, PADDINGS)

  def __len__(self):
    return len(self.x)

  def __getitem__(self, rows):
    return Tokens(self.x[rows], self.mask[rows], self.padding)

  @property
  def shape(self):
    """(B, N, D)."""
    return self.x.shape


def aligned(image, text, *, form="MrSw", budget=BUDGET):
  """Similarity of every image with every text by the best matches of their tokens.

  With a_rw = (region r of the image) . (word w of the text), P = sum_w max_r a_rw and
  Q = sum_r max_w a_rw, over the tokens that masks keep:
  MrSw: P.   MwSr: Q.   symmetric: P + Q.   MrAVGw: P / words.   MwAVGr: Q / regions.
  symmetric_mean: (P / words + Q / regions) / 2.   pooled: the cosine of the tokens' means.
  0 where a side has no token.

  Args:
    image: Tokens [N, R, D].  text: Tokens [M, W, D].
    form: as above.
    budget: bytes of a_rw that may exist at a time, in the gradient too; images and texts are
      processed in blocks that keep to it.
  Returns:
    [N, M] float32 (or wider, as the inputs).
  Raises:
    ValueError: shapes or paddings do not fit, or budget is below one pair; names both.  UserError:
      unknown form.
  References:
    Messina et al., TERAN, TOMM 2021, eq. 4-6 (MrSw, MrAVGw, symm); FullHN F-TERAN/loss.py
    (symmetric, padding zero).
  """
  choice("form", form, NAMES)
  image, text = checked(image, text)
  if form == "pooled":
    image, text = unit(mean(image)), unit(mean(text))
    return jnp.matmul(image, text.T, precision=jax.lax.Precision.HIGHEST)
  (n, regions, _), (m, words, _) = image.shape, text.shape
  one_pair = image.x.dtype.itemsize * regions * words
  if budget < one_pair:
    raise ValueError(
      f"budget is {budget} bytes; expected at least {one_pair}, one pair of {regions} regions and "
      f"{words} words"
    )
  image, text = filled(image), filled(text)
  texts = min(m, budget // one_pair)
  images = min(n, budget // (one_pair * texts))
  if (images, texts) == (n, m):
    return block(image, text, form=form)

  # The gradient keeps only the tokens and computes their products again.
  @jax.checkpoint
  def one(a, b):
    return block(a, b, form=form)

  image_blocks, text_blocks = in_blocks(image, images), in_blocks(text, texts)
  scores = jax.lax.map(
    lambda a: jax.lax.map(lambda b: one(a, b), text_blocks), image_blocks
  )  # [image blocks, text blocks, images, texts]
  rows, columns = scores.shape[0] * images, scores.shape[1] * texts
  return scores.transpose(0, 2, 1, 3).reshape(rows, columns)[:n, :m]


def aligned_rows(image, text, *, form="MrSw"):
  """Similarity of image i with text i, Tokens [P, R, D] and [P, W, D] -> [P]; as `aligned`."""
  choice("form", form, NAMES)
  image, text = checked(image, text)
  if len(image) != len(text):
    raise ValueError(
      f"image has shape {image.shape} and text {text.shape}; expected one number of rows"
    )
  if form == "pooled":
    return jnp.sum(unit(mean(image)) * unit(mean(text)), axis=1)
  return jax.vmap(lambda a, b: pair(a, b, form=form))(image, text)


def pair(image, text, *, form):
  """The equations of `aligned` in their plain form, for one pair: Tokens [R, D], [W, D] -> []."""
  of_words, of_regions, mean = FORMS[form]
  cells = jnp.matmul(image.x, text.x.T, precision=jax.lax.Precision.HIGHEST)
  valid = image.mask[:, None] & text.mask[None, :]
  cells = jnp.where(valid, cells, 0 if image.padding == "zero" else -jnp.inf)

  def total(axis, count):
    some = jnp.any(valid, axis=axis)
    best = jnp.max(jnp.where(jnp.expand_dims(some, axis), cells, 0), axis=axis)
    whole = jnp.sum(jnp.where(some, best, 0))
    return whole / jnp.maximum(jnp.sum(count), 1) if mean else whole

  return of_words * total(0, text.mask) + of_regions * total(1, image.mask)


def block(image, text, *, form):
  """`aligned` of Tokens that `filled` prepared, all at once: no cell needs a mask."""
  of_words, of_regions, mean = FORMS[form]
  (n, regions, dim), (m, words, _) = image.shape, text.shape
  # One product with texts last, so that both maxima and both sums run over whole vectors of texts.
  text_x = text.x.transpose(1, 0, 2).reshape(words * m, dim)
  cells = jnp.matmul(
    image.x.reshape(n * regions, dim), text_x.T, precision=jax.lax.Precision.HIGHEST
  ).reshape(n, regions, words, m)
  weights = [_weights(side.mask, mean, cells.dtype) for side in (image, text)]
  some = [jnp.any(side.mask, axis=1).astype(cells.dtype) for side in (image, text)]
  scores = jnp.zeros((n, m), cells.dtype)
  if of_words:
    best = jnp.sum(jnp.max(cells, axis=1) * weights[1].T, axis=1)
    scores += of_words * best * some[0][:, None]
  if of_regions:
    best = jnp.sum(jnp.max(cells, axis=2) * weights[0][:, :, None], axis=1)
    scores += of_regions * best * some[1][None, :]
  return scores


def _weights(mask, mean, dtype):
  mask = mask.astype(dtype)
  return mask / jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1) if mean else mask


def mean(tokens):
  """The mean of each row's tokens, Tokens [B, N, D] -> [B, D]; zeros where there is none."""
  count = jnp.maximum(jnp.sum(tokens.mask, axis=1), 1)[:, None]
  return jnp.sum(jnp.where(tokens.mask[..., None], tokens.x, 0), axis=1) / count


def filled(tokens):
  """Tokens whose padding changes no maximum: copies of a row's first token, or zeros as released.

  A copy never scores above the token that it copies, and its gradient goes to that token.
  """
  if tokens.padding == "zero":
    fill = jnp.zeros_like(tokens.x[:, :1])
  else:
    first = jnp.argmax(tokens.mask, axis=1)[:, None, None]
    fill = jnp.take_along_axis(tokens.x, first, axis=1)
    fill = jnp.where(jnp.any(tokens.mask, axis=1)[:, None, None], fill, 0)
  return dataclasses.replace(tokens, x=jnp.where(tokens.mask[:, :, None], tokens.x, fill))


def in_blocks(tokens, size):
  """Tokens [B, N, D] as [blocks, size, N, D]; the last block is filled up with rows of padding."""
  short = -len(tokens) % size
  return jax.tree.map(
    lambda x: jnp.pad(x, ((0, short), *((0, 0),) * (x.ndim - 1))).reshape(-1, size, *x.shape[1:]),
    tokens,
  )


def checked(image, text):
  """Both Tokens as float32 or wider; ValueError where they do not fit each other, naming both."""
  sides = []
  for name, side in (("image", image), ("text", text)):
    if not isinstance(side, Tokens):
      raise ValueError(f"{name} is {type(side).__name__}; expected Tokens, regions or words")
    if side.x.ndim != 3 or min(side.x.shape[1:]) < 1:
      raise ValueError(f"{name} has shape {side.x.shape}; expected [B, tokens, D]")
    if side.mask.shape != side.x.shape[:2]:
      raise ValueError(
        f"{name}_mask has shape {side.mask.shape}; expected {side.x.shape[:2]} as {name} has tokens"
      )
    x = jnp.asarray(side.x)
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    sides.append(Tokens(wide, jnp.asarray(side.mask).astype(bool), side.padding))
  if image.padding != text.padding:
    raise ValueError(f"image has padding {image.padding!r} and text {text.padding!r}; expected one")
  if sides[0].shape[2] != sides[1].shape[2]:
    raise ValueError(f"image has shape {sides[0].shape} and text {sides[1].shape}; expected one D")
  return sides
