"""Order consistency: does a pair outrank the same-modality neighbours of its two sides?"""

import numpy as np
from jaxtyping import Integer, Real

from xmr.errors import UserError
from xmr.eval import exact
from xmr.eval.positives import checked_image_of_text
from xmr.eval.top_k import top_k
from xmr.ops.arrays import Array
from xmr.ops.unit import unit


def order_consistency(
  image: Real[Array, "N D"],
  text: Real[Array, "T D"],
  image_of_text: Integer[Array, " T"],
  *,
  margin: float = 0.0,
) -> dict[str, float]:
  """Shares of pairs (i, c) whose cosine p = s(i, c) beats those of the mined triplets.

  With i_n the image other than i nearest to c, and c_n the caption of another image nearest to i:
    "order/image": share of pairs with p > s(i_n, i) + margin;
    "order/text": share of pairs with p > s(c_n, c) + margin;
    "order/pair": share of pairs with p > s(i_n, c_n) + margin.
  These are the notebooks' counters of satisfied constraints (e1, e2, e3) over the mined triplets,
  as shares. Without mining, against the nearest neighbour of the query in its own modality:
    "order/image_outranked": share of images whose nearest other image is at least as near as their
    nearest own caption; "order/text_outranked": share of captions whose nearest caption of another
    image is at least as near as their image.

  Args:
    image_of_text: the image, 0..N-1, of each caption.
    margin: cosine units; the released counters use the intra-modal margin of the loss.

  Returns:
    The five shares, in [0, 1].

  Raises:
    UserError: fewer than two images, an image without a caption, or wrong shapes.

  References:
    Mallea et al., Discovery Science 2023, notebooks as released (counters e1, e2, e3 of the loss).
  """
  image_of_text = checked_image_of_text(image_of_text, n_texts=len(text), n_images=len(image))
  captions = np.bincount(image_of_text, minlength=len(image))
  if len(image) < 2:
    raise UserError(f"image has {len(image)} rows; expected at least 2 to have negatives")
  image, text = (unit(exact.embeddings(x, name=n)) for x, n in ((image, "image"), (text, "text")))
  owner, siblings = image_of_text, int(captions.max())

  positive = (image[owner] * text).sum(axis=1)
  own_image, own_text = np.arange(len(image)), np.arange(len(text))
  image_negative, _ = _nearest_other(text, image, 2, owner, own_image)
  text_negative, _ = _nearest_other(image, text, siblings + 1, own_image, owner)
  _, near_image = _nearest_other(image, image, 2, own_image, own_image)
  _, near_text = _nearest_other(text, text, siblings + 1, owner, owner)
  text_negative = text_negative[owner]

  best = np.full(len(image), -np.inf)
  np.maximum.at(best, owner, positive)
  against = {
    "order/image": (image[image_negative] * image[owner]).sum(axis=1),
    "order/text": (text[text_negative] * text[own_text]).sum(axis=1),
    "order/pair": (image[image_negative] * text[text_negative]).sum(axis=1),
  }
  shares = {name: float((positive > value + margin).mean()) for name, value in against.items()}
  shares["order/image_outranked"] = float((near_image >= best).mean())
  shares["order/text_outranked"] = float((near_text >= positive).mean())
  return shares


def _nearest_other(query, gallery, k, query_group, gallery_group):
  """The nearest gallery item of another group. k exceeds the size of every group, so one of the k
  best is of another group.
  """
  score, index = (np.asarray(x) for x in top_k(query, gallery, min(k, len(gallery))))
  first = (gallery_group[index] != query_group[:, None]).argmax(axis=1)
  rows = np.arange(len(query))
  return index[rows, first], score[rows, first]
