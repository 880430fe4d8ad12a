"""The in-batch losses over rows that lie on several devices, as a ring or with all rows gathered.

Every function is called inside `jax.shard_map` (its default `check_vma=True`) with the rows of a
batch sharded over the mesh axis `axis_name`: image, text [b, D] and image_id [b] are this device's
rows, b = B / devices. Loss and terms are equal on all devices and, up to rounding, those of the
plain loss on the global batch. `xmr.ops.ring` tells what either way stores and sends.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Integer, Real

from xmr.errors import choice
from xmr.losses import alignment, shapes
from xmr.losses.intra import INTER, setting
from xmr.losses.shapes import Loss, Scalar
from xmr.ops import band_ring, chosen, ring
from xmr.ops.alignment import Tokens, mean
from xmr.ops.arrays import Array
from xmr.ops.similarity import rowwise, similarity
from xmr.ops.unit import unit

Local = Real[Array, "b D"] | Tokens
Ids = Integer[Array, " b"] | None


class Rows(NamedTuple):
  """This device's rows of a batch of B pairs; `images`, `texts` [B, D] are all of them, None in a
  ring.

  `kind`: of similarity, "dot" in a ring.  `scalars`: temperature and bias of the scores, or none.
  """

  image: Any
  text: Any
  image_id: jax.Array
  images: Any
  texts: Any
  axis_name: str
  kind: str
  scalars: tuple = ()

  @property
  def batch(self):
    """B."""
    return len(self.image) * jax.lax.axis_size(self.axis_name)

  @property
  def positive(self):
    """Scores of the pairs, [b]."""
    return _scaled(rowwise(self.image, self.text, kind=self.kind), self.scalars)

  @property
  def negative(self):
    """Which of this device's rows and all rows are of different images, [b, B] bool."""
    return self.image_id[:, None] != ring.gathered(self.image_id, self.axis_name)[None, :]

  def reduce(self, rule, positive):
    """Reduced scores of the images and of the texts; the rule gets `positive` [b]."""
    if self.texts is None:
      return ring.reduce(rule, self.axis_name, self.image, self.text, positive, self.image_id)

    def score(rows, others, scalars, text_query=False):
      return _scaled(similarity(rows, others, kind=self.kind, text_query=text_query), scalars)

    return ring.reduce_gathered(
      rule,
      self.axis_name,
      score,
      (self.image, self.text),
      (self.images, self.texts),
      self.scalars,
      self.negative,
      positive,
    )

  def search(self, negative):
    """Rows of the hardest text of each image and of the hardest image of each text, [b] each, and
    which of them were found; candidates are `negative` [b, B].
    """
    image = jax.lax.stop_gradient(self.image)
    found = ring.search(self.axis_name, similarity(image, self.texts, kind=self.kind), negative)
    hardest = tuple(jnp.minimum(index, self.batch - 1) for index in found)
    return hardest, tuple(index < ring.NOWHERE for index in found)

  def scored(self, function, sides, index):
    """`chosen.scores` of this device's pairs."""
    own, every = [self.image, self.text], [self.images, self.texts]
    return chosen.scores(function, self.axis_name, sides, own, every, list(index))

  def hardest(self, positive):
    """Score and row of the hardest text of each image and of the hardest image of each text, and
    whether there is one: two (score [b], row [b], found [b]).
    """
    if self.texts is None:
      sides = self.reduce(ring.HARDEST, positive)
      found = [side.extra[0] < ring.NOWHERE for side in sides]
      rows = [jnp.minimum(side.extra[0], self.batch - 1) for side in sides]
      return list(zip((side.value for side in sides), rows, found, strict=True))

    def score(image, text, text_negative, image_negative):
      pairs = (image, text_negative), (image_negative, text)
      return [rowwise(*pair, kind=self.kind) for pair in pairs]

    rows, found = self.search(self.negative)
    return list(zip(self.scored(score, (1, 0), rows), rows, found, strict=True))

  def sums(self, *arrays):
    """Sums of some [b] over all devices."""
    return jax.lax.psum(tuple(jnp.sum(array) for array in arrays), self.axis_name)


def ring_sum_of_hinges(
  image: Local,
  text: Local,
  image_id: Ids = None,
  *,
  axis_name: str,
  margin: float = 0.2,
  reduce: str = "sum",
  kind: str = "dot",
  gather: bool | str = False,
) -> Loss:
  """`sum_of_hinges` over several devices; see the module's docstring.

  Args:
    image, text: this device's rows.  image_id: equal for texts of one image, which are never each
      other's negatives; None: all rows are different images.
    axis_name: the mesh axis of the rows.  margin, reduce, kind: as in `sum_of_hinges`; a ring knows
      "dot" alone.
    gather: False sends texts around the ring; True gathers the rows of both sides, "bfloat16" in
      that type ("float32" is True).
  Returns:
    (loss, terms): as `sum_of_hinges`; the same on all devices.
  """
  return _sum_of_hinges(_rows(image, text, image_id, axis_name, gather, kind), margin, reduce)


def ring_max_of_hinges(
  image: Local,
  text: Local,
  image_id: Ids = None,
  *,
  axis_name: str,
  margin: float = 0.2,
  reduce: str = "sum",
  kind: str = "dot",
  gather: bool | str = False,
) -> Loss:
  """`max_of_hinges` over several devices; arguments and results as `ring_sum_of_hinges`, terms as
  `max_of_hinges`.
  """
  return _max_of_hinges(_rows(image, text, image_id, axis_name, gather, kind), margin, reduce)


def _sum_of_hinges(rows, margin, reduce):
  scale = shapes.reduction(reduce, rows.batch)
  # The margin is part of the positive, as rules take scores and only one number per query.
  floor = rows.positive - margin
  sides = rows.reduce(ring.HINGES, floor)
  active, count = (sides[0].extra[i] + sides[1].extra[i] for i in (0, 1))
  i2t, t2i, active, count = rows.sums(sides[0].value, sides[1].value, active, count)
  terms = {"i2t": scale * i2t, "t2i": scale * t2i, "active": active / jnp.maximum(count, 1)}
  return terms["i2t"] + terms["t2i"], terms


def _max_of_hinges(rows, margin, reduce):
  scale, batch = shapes.reduction(reduce, rows.batch), rows.batch
  positive = rows.positive
  hinges, shares = [], []
  for score, hardest, found in rows.hardest(positive):
    score = jnp.where(found, score, 0)
    hinges.append(jnp.where(found, jax.nn.relu(margin + score - positive), 0))
    # A query without a negative counts for item 0, as the plain argmax does.
    counts = jnp.zeros_like(hardest, shape=batch).at[jnp.where(found, hardest, 0)].add(1)
    shares.append(jnp.max(jax.lax.psum(counts, rows.axis_name)) / batch)
  i2t, t2i, active = rows.sums(*hinges, (hinges[0] > 0) * 0.5 + (hinges[1] > 0) * 0.5)
  terms = {
    "i2t": scale * i2t,
    "t2i": scale * t2i,
    "active": active / batch,
    "same_hardest": jnp.maximum(*shares),
  }
  return terms["i2t"] + terms["t2i"], terms


def ring_info_nce(
  image: Local,
  text: Local,
  image_id: Ids = None,
  *,
  axis_name: str,
  temperature: Scalar = 0.07,
  bias: Scalar = 0.0,
  kind: str = "dot",
  gather: bool | str = False,
) -> Loss:
  """`info_nce` over several devices; arguments and results as `ring_sum_of_hinges`, terms as
  `info_nce`.
  """
  rows = _logits(image, text, image_id, axis_name, gather, kind, temperature, bias)
  positive = rows.positive
  sides = rows.reduce(ring.LOG_SUM_EXP, positive)
  missed = sum((side.extra[0] >= positive) * 0.5 for side in sides)
  costs = [jnp.logaddexp(side.value, positive) - positive for side in sides]
  i2t, t2i, active = (x / rows.batch for x in rows.sums(*costs, missed))
  return (i2t + t2i) / 2, {"i2t": i2t, "t2i": t2i, "active": active}


def ring_sigmoid(
  image: Local,
  text: Local,
  image_id: Ids = None,
  *,
  axis_name: str,
  temperature: Scalar = 0.1,
  bias: Scalar = -10.0,
  kind: str = "dot",
  gather: bool | str = False,
) -> Loss:
  """`sigmoid` over several devices; arguments and results as `ring_sum_of_hinges`, terms as
  `sigmoid`.
  """
  rows = _logits(image, text, image_id, axis_name, gather, kind, temperature, bias)
  positive = rows.positive
  others, _ = rows.reduce(ring.SOFTPLUS, positive)
  wrong, count = others.extra[0] + (positive <= 0), others.extra[1] + 1
  sums = rows.sums(jax.nn.softplus(-positive), others.value, wrong, count)
  parts = {"positive": sums[0] / rows.batch, "negative": sums[1] / rows.batch}
  loss = parts["positive"] + parts["negative"]
  return loss, parts | {"i2t": loss / 2, "t2i": loss / 2, "active": sums[2] / sums[3]}


def ring_imc(
  image: Local,
  text: Local,
  image_id: Ids = None,
  *,
  axis_name: str,
  margin: float = 0.2,
  weight: float = 1.0,
  distance: str = "l1",
  lower: float = 0.05,
  upper: float = 0.5,
  form: str = "released",
  reduce: str = "sum",
  inter: str = "max_of_hinges",
  gather: bool | str = False,
) -> Loss:
  """`imc` over several devices; arguments and results as `ring_sum_of_hinges`, parameters and terms
  as `imc`.
  """
  choice("inter", inter, tuple(INTER))
  band = setting(distance, lower, upper, form)
  rows = _rows(image, text, image_id, axis_name, gather)
  hinges = _max_of_hinges if inter == "max_of_hinges" else _sum_of_hinges
  loss, terms = hinges(rows, margin, reduce)
  parts = {
    "intra_image": _intra(band, axis_name, rows.image, rows.images),
    "intra_text": _intra(band, axis_name, rows.text, rows.texts),
  }
  return loss + weight * sum(parts.values()), terms | {"inter": loss} | parts


def gathered_full_hard_negative(
  image: Tokens,
  text: Tokens,
  image_id: Ids = None,
  *,
  axis_name: str,
  margin: float = 0.2,
  weight: float = 1.0,
  diagonal: str = "masked",
  pair_rule: str = "different",
  padding: str = "zero",
  gather: bool | str = True,
) -> Loss:
  """`aligned_full_hard_negative` over several devices, with the tokens of both sides gathered.

  Args:
    image, text: this device's rows.  image_id, axis_name, gather: as in `ring_sum_of_hinges`.
    margin, weight, diagonal, pair_rule, padding: as in `aligned_full_hard_negative`.
  Returns:
    (loss, terms): as `aligned_full_hard_negative`; the same on all devices.
  """
  image, text = (dataclasses.replace(x, padding=padding) for x in (image, text))
  rows = _rows(image, text, image_id, axis_name, gather, "symmetric")
  hardest, found = rows.search(rows.negative | (diagonal == "released"))
  (text_negative, image_negative), sides = hardest, (0, 1, 0, 1)
  index = text_negative, text_negative, image_negative, image_negative
  scores = rows.scored(alignment.scores_of_rows, sides, index)
  sums = alignment.sums_of_parts(scores, hardest, found, margin=margin, pair_rule=pair_rule)
  return alignment.total(jax.lax.psum(sums, axis_name), rows.batch, weight)


def _intra(band, axis_name, x, whole):
  total = band_ring.constraint(band, axis_name, x, whole)
  return jax.lax.psum(total, axis_name) / (len(x) * jax.lax.axis_size(axis_name))


def _rows(image, text, image_id, axis_name, gather, kind="dot", scalars=()):
  image, text = shapes.matrices(image=image, text=text)
  size = len(image)
  if image_id is None:
    image_id = ring.index_of(jax.lax.axis_index(axis_name), size)[0]
  if jnp.shape(image_id) != (size,):
    raise ValueError(
      f"image_id has shape {jnp.shape(image_id)}; expected {(size,)} for {size} images"
    )
  if kind in ("cosine", "pooled"):  # Products of rows that are fewer numbers to send.
    image, text = (unit(mean(x) if kind == "pooled" else x) for x in (image, text))
    kind = "dot"
  images = texts = None
  if gather:
    images, texts = ring.all_rows((image, text), axis_name, gather)
    image, text = ring.as_sent((image, text), gather)
  return Rows(image, text, image_id, images, texts, axis_name, kind, scalars)


def _logits(image, text, image_id, axis_name, gather, kind, temperature, bias):
  """Rows whose scores are similarity / temperature + bias."""
  if gather:
    # Each device has a part of the scalars' gradient.
    scalars = [
      jax.lax.pcast(jnp.asarray(x, jnp.float32), axis_name, to="varying")
      for x in (temperature, bias)
    ]
    return _rows(image, text, image_id, axis_name, gather, kind, tuple(scalars))
  return _rows(*_with_scalars(image, text, temperature, bias), image_id, axis_name, gather, kind)


def _scaled(scores, scalars):
  """Scores / temperature + bias, where a loss has both."""
  return scores / scalars[0] + scalars[1] if scalars else scores


def _with_scalars(image, text, temperature, bias):
  """Rows whose dot product is image.text / temperature + bias, so that both scalars get
  gradients.
  """
  image, text = shapes.matrices(image=image, text=text)
  ones = jnp.ones_like(image[:, :1])
  return jnp.concatenate([image / temperature, bias * ones], 1), jnp.concatenate([text, ones], 1)
