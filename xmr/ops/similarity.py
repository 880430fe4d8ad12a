"""Similarity of embeddings, or of rows of tokens, for all pairs or row by row; training and
evaluation share it.
"""

import jax
import jax.numpy as jnp

from xmr.errors import choice
from xmr.ops import cdist
from xmr.ops.alignment import MIRROR, NAMES, WITHIN, aligned, aligned_rows
from xmr.ops.unit import unit

VECTORS = ("cosine", "dot", "order")
# Those of embeddings, and those of tokens (ops.alignment.NAMES).
KINDS = (
  "cosine",
  "dot",
  "order",
  "MrSw",
  "MwSr",
  "symmetric",
  "MrAVGw",
  "MwAVGr",
  "symmetric_mean",
  "pooled",
)
# TPUs and recent GPUs round float32 products to fewer bits by default, which changes ranks and
# thresholds.
PRECISION = jax.lax.Precision.HIGHEST


def similarity(query, gallery, *, kind="cosine", text_query=False):
  """Similarity of every query with every gallery item.

  cosine: q.g / (|q| |g|), 0 where a row is all zeros.   dot: q.g.
  order: -|max(0, text - image)|_2, 0 where the image entails the text; it is not symmetric: the
  query is the image, unless `text_query`.
  MrSw and the others of `ops.alignment.aligned`: between Tokens.

  Args:
    query: [Q, D] float.  gallery: [G, D] float. Tokens for the kinds of tokens.
    kind: of KINDS.
    text_query: True where the queries are texts and the gallery images; "order" and the one-sided
      kinds of tokens need it.
  Returns:
    [Q, G] float32 (or wider, as the inputs), higher is more alike.
  Raises:
    ValueError: not two-dimensional, or different D; names both.  UserError: unknown kind.
  References:
    order: Vendrov et al., Order-embeddings, ICLR 2016, eq. 1-3; VSE++ `order_sim`, as released (the
      root of the sum).
  """
  choice("kind", kind, KINDS)
  if kind in NAMES:
    return aligned(query, gallery, form=MIRROR[kind] if text_query else kind)
  query, gallery = _wide(query), _wide(gallery)
  if query.ndim != 2 or gallery.ndim != 2 or query.shape[1] != gallery.shape[1]:
    raise ValueError(
      f"query has shape {query.shape} and gallery {gallery.shape}; expected [Q, D] and [G, D] of "
      "one D"
    )
  if kind == "order":
    if text_query:
      return similarity(gallery, query, kind=kind).T
    return -safe_sqrt(cdist.sum_over_features("shortfall_squared", query, gallery))
  if kind == "cosine":
    query, gallery = unit(query), unit(gallery)
  return jnp.matmul(query, gallery.T, precision=PRECISION)


def rowwise(image, text, *, kind="cosine"):
  """Similarity of image i with text i, [..., D] and [..., D] -> [...]; the kinds of
  `similarity`.
  """
  choice("kind", kind, KINDS)
  if kind in NAMES:
    return aligned_rows(image, text, form=kind)
  image, text = _wide(image), _wide(text)
  if kind == "order":
    return -safe_sqrt(jnp.sum(jnp.square(jax.nn.relu(text - image)), axis=-1))
  if kind == "cosine":
    image, text = unit(image), unit(text)
  return jnp.sum(image * text, axis=-1)


def rowwise_at(image, text, *, image_index=None, text_index=None, kind="cosine"):
  """`rowwise` of the images and texts at the indices [B]; None is every row.

  The gradient takes the rows again, so that only an index per row is kept, not its D numbers.
  """

  @jax.checkpoint
  def score(image, text):
    image, text = (
      x if index is None else x[index] for x, index in ((image, image_index), (text, text_index))
    )
    return rowwise(image, text, kind=kind)

  return score(image, text)


def within(query, other, *, kind="cosine"):
  """`rowwise` within one modality; one-sided kinds of tokens sum over the query's tokens."""
  return rowwise(query, other, kind=WITHIN.get(kind, kind))


def safe_sqrt(x):
  """Square root whose gradient is 0 (not infinite) where x is 0; x is at least 0."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _wide(x):
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))
