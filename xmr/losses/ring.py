"""The in-batch losses over rows that lie on several devices, as a ring or with all texts gathered.

Every function is called inside `jax.shard_map` (its default `check_vma=True`) with the rows of a
batch sharded over the mesh axis `axis_name`: image, text [b, D] and image_id [b] are this device's
rows, b = B / devices. Loss and terms are equal on all devices and, up to rounding, those of the
plain loss on the global batch. `xmr.ops.ring` tells what either way stores and sends.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Integer, Real

from xmr.errors import choice
from xmr.losses import alignment, shapes
from xmr.losses.intra import INTER, setting
from xmr.losses.shapes import Loss, Scalar
from xmr.ops import band_ring, ring
from xmr.ops.alignment import Tokens, mean
from xmr.ops.arrays import Array
from xmr.ops.similarity import rowwise, similarity
from xmr.ops.unit import unit

Local = Real[Array, "b D"] | Tokens
Ids = Integer[Array, " b"] | None


class Rows(NamedTuple):
  """This device's rows of a batch of B pairs; `texts` [B, D] are all texts, None in a ring.

  `kind`: of similarity, "dot" in a ring.  `scaled`: what a loss makes of a score.
  """

  image: Any
  text: Any
  image_id: jax.Array
  texts: Any
  axis_name: str
  kind: str
  scaled: Callable = lambda scores: scores

  @property
  def batch(self):
    """B."""
    return len(self.image) * jax.lax.axis_size(self.axis_name)

  @property
  def positive(self):
    """Scores of the pairs, [b]."""
    return self.scaled(rowwise(self.image, self.text, kind=self.kind))

  @property
  def negative(self):
    """Which of this device's images and all texts are of different images, [b, B] bool."""
    return self.image_id[:, None] != ring.gathered(self.image_id, self.axis_name)[None, :]

  def reduce(self, rule, positive):
    """Reduced scores of the images and of the texts; the rule gets `positive` [b]."""
    if self.texts is None:
      return ring.reduce(rule, self.axis_name, self.image, self.text, positive, self.image_id)
    scores = self.scaled(similarity(self.image, self.texts, kind=self.kind))
    return ring.reduce_scores(rule, self.axis_name, scores, self.negative, positive)

  def search(self, negative):
    """The hardest negatives of the images and of the texts, without a gradient."""
    image, texts = jax.lax.stop_gradient((self.image, self.texts))
    scores = similarity(image, texts, kind=self.kind)
    unused = jnp.zeros_like(scores[:, 0])
    return ring.reduce_scores(ring.HARDEST, self.axis_name, scores, negative, unused)

  def hardest(self, positive):
    """`reduce` to the hardest negatives."""
    if self.kind == "dot":
      return self.reduce(ring.HARDEST, positive)
    # A product's gradient of all pairs is cheap, another similarity's is not.
    sides = self.search(self.negative)
    values = ring.scored_again(self.axis_name, self.image, self.texts, sides, self.kind)
    return [side._replace(value=value) for side, value in zip(sides, values, strict=True)]

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
    gather: False sends texts around the ring; True gathers them all, "bfloat16" in that type
      ("float32" is True).
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
  for side in rows.hardest(positive):
    found, hardest = side.extra[0] < ring.NOWHERE, jnp.minimum(side.extra[0], batch - 1)
    score = jnp.where(found, side.value, 0)
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
    "intra_image": _intra(band, axis_name, rows.image, gather),
    "intra_text": _intra(band, axis_name, rows.text, gather, rows.texts),
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
  sides = rows.search(rows.negative | (diagonal == "released"))
  hardest = tuple(jnp.minimum(side.extra[0], rows.batch - 1) for side in sides)
  found = tuple(side.extra[0] < ring.NOWHERE for side in sides)
  own = ring.index_of(jax.lax.axis_index(axis_name), len(image))[0]
  sums = alignment.sums_of_parts(
    ring.all_rows(image, axis_name, gather),
    rows.texts,
    own,
    hardest,
    found,
    margin=margin,
    pair_rule=pair_rule,
  )
  return alignment.total(jax.lax.psum(sums, axis_name), rows.batch, weight)


def _intra(band, axis_name, x, gather, whole=None):
  if gather and whole is None:
    # Its gradient comes from this device's own rows alone.
    whole = ring.all_rows(jax.lax.stop_gradient(x), axis_name, gather)
  total = band_ring.constraint(band, axis_name, x, whole=whole)
  return jax.lax.psum(total, axis_name) / (len(x) * jax.lax.axis_size(axis_name))


def _rows(image, text, image_id, axis_name, gather, kind="dot"):
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
  texts = ring.all_rows(text, axis_name, gather) if gather else None
  return Rows(image, text, image_id, texts, axis_name, kind)


def _logits(image, text, image_id, axis_name, gather, kind, temperature, bias):
  """Rows whose scores are similarity / temperature + bias."""
  if kind == "dot":
    return _rows(*_with_scalars(image, text, temperature, bias), image_id, axis_name, gather)
  rows = _rows(image, text, image_id, axis_name, gather, kind)
  return rows._replace(scaled=lambda scores: scores / temperature + bias)


def _with_scalars(image, text, temperature, bias):
  """Rows whose dot product is image.text / temperature + bias, so that both scalars get
  gradients.
  """
  image, text = shapes.matrices(image=image, text=text)
  ones = jnp.ones_like(image[:, :1])
  return jnp.concatenate([image / temperature, bias * ones], 1), jnp.concatenate([text, ones], 1)
