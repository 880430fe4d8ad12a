"""Recall of both directions, whole or in folds, with ties counted against the query."""

import numpy as np
from jaxtyping import Int32, Integer, Real

from xmr.eval import alignment, exact, metrics
from xmr.eval.blocks import BLOCK, mesh_of
from xmr.eval.positives import checked_image_of_text
from xmr.eval.ranks import count
from xmr.ops.alignment import NAMES, Tokens
from xmr.ops.arrays import Array


def recall(
  image: Real[Array, "N D"] | Tokens,
  text: Real[Array, "T D"] | Tokens,
  image_of_text: Integer[Array, " T"],
  *,
  folds: int = 1,
  kind: str = "cosine",
  block: int = BLOCK,
) -> dict[str, float]:
  """Recall at 1, 5 and 10, median and mean rank, image to text and text to image.

  An image finds its best text, a text its one image; ties count against the query (see `ranks`).
  Both directions come from one pass over the products. With folds, images are split into equal
  consecutive parts with their texts, each is scored on its own, and the metrics are averaged; rsum
  is the plain sum of the averages.

  Args:
    text: in any order, any number (at least 1) per image.
    image_of_text: row of the image that each text describes.
    folds: parts, a divisor of N; 5 is COCO's 1K protocol.
    kind: of `similarity`; those of tokens take Tokens for image and text.
    block: images at a time.
  Returns:
    {"i2t/r1", "i2t/r5", "i2t/r10", "i2t/medr", "i2t/meanr", "t2i/...", "rsum"}: recalls in percent,
    ranks from 1; {"i2t/ties", "t2i/ties"}: queries whose best positive is not alone at its score,
    summed over folds.
  Raises:
    UserError: shapes, NaN (names the array and the row), an image without a text, folds that do not
      divide the images.
  References:
    VSE++ `evaluation.i2t`, `evaluation.t2i`, as released, but for the sum over folds, which is
    printed six times too big.
  """
  return counted(image, text, image_of_text, folds=folds, kind=kind, block=block)[0]


def counted(
  image: Real[Array, "N D"] | Tokens,
  text: Real[Array, "T D"] | Tokens,
  image_of_text: Integer[Array, " T"],
  *,
  folds: int = 1,
  kind: str = "cosine",
  block: int = BLOCK,
) -> tuple[dict[str, float], dict[str, Int32[np.ndarray, " queries"]]]:
  """Returns (metrics as of `recall`, {"i2t/rank": [N], "t2i/rank": [T] int32, from 0, within the
  fold}).
  """
  image, text, kind = alignment.means(image, text, kind=kind, names=("image", "text"))
  if kind in NAMES:
    return alignment.counted(image, text, image_of_text, form=kind, folds=folds)
  mesh = mesh_of(image, text)
  images, texts = exact.sides(image, text, kind=kind, names=("image", "text"))
  owner = checked_image_of_text(image_of_text, n_texts=len(texts), n_images=len(images))
  fold = metrics.fold_of(owner, n_images=len(images), folds=folds)
  size = len(images) // folds
  ranks = [np.empty(len(side), np.int32) for side in (images, texts)]
  scores = []
  for f in range(folds):
    part = slice(f * size, (f + 1) * size)
    rows = np.flatnonzero(fold == f)
    # A slice where it can be: a view, not a copy.
    own = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] + 1 == len(rows) else rows
    pairs = owner[rows] - f * size, np.arange(len(rows))
    sides = count(images.take(part), texts.take(own), pairs, kind=kind, block=block, mesh=mesh)
    ranks[0][part], ranks[1][rows] = (side["rank"] for side in sides)
    ties = {
      f"{name}/ties": int(np.count_nonzero(side["ties"]))
      for name, side in zip(metrics.DIRECTIONS, sides, strict=True)
    }
    scores.append({**metrics.both_directions(*(side["rank"] for side in sides)), **ties})
  of_query = {f"{name}/rank": of for name, of in zip(metrics.DIRECTIONS, ranks, strict=True)}
  return metrics.mean_of_folds(scores), of_query


def score(
  image: Real[Array, "N D"] | Tokens,
  text: Real[Array, "T D"] | Tokens,
  image_of_text: Integer[Array, " T"],
  *,
  folds: int = 1,
  kind: str = "cosine",
) -> dict[str, float]:
  """All metrics of a protocol: `recall` of the whole set, and with folds their averages beside it
  as "folds/i2t/r1".
  """
  found = recall(image, text, image_of_text, kind=kind)
  return found | of_folds(image, text, image_of_text, folds=folds, kind=kind)


def of_folds(image, text, image_of_text, *, folds, kind):
  """Returns {"folds/i2t/r1": ...}, averages over folds; {} where there is one."""
  if folds == 1:
    return {}
  parts = recall(image, text, image_of_text, folds=folds, kind=kind)
  return {f"folds/{name}": value for name, value in parts.items()}
