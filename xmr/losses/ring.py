"""The in-batch losses without [B, B]: blocks of texts go around the devices, each leaves statistics
of the rows it met.

Every function is called inside `jax.shard_map` (its default `check_vma=True`) with the rows of a
batch sharded over the mesh axis `axis_name`: image, text [b, D] and image_id [b] are this device's
rows, b = B / devices. Loss and terms come back equal on all devices, and are those of the plain
loss on the global batch to rounding. Gradients are written by hand: a second turn of the ring
recomputes each [b, b] block, so that neither pass holds more than one block.
"""

import functools

import jax
import jax.numpy as jnp

from xmr.errors import choice
from xmr.losses import band, shapes
from xmr.losses.intra import setting as intra_setting
from xmr.ops import ring
from xmr.ops.similarity import rowwise


def ring_sum_of_hinges(image, text, image_id=None, *, axis_name, margin=0.2, reduce="sum"):
  """`sum_of_hinges` in ring form; see the module's docstring.

  Args:
    image, text: [b, D] float, this device's rows.  image_id: [b] int, equal for texts of one image
      (never each other's negatives); None: all rows are different images.
    axis_name: the mesh axis of the rows.  margin, reduce: as in `sum_of_hinges`.
  Returns:
    loss: [] float.  terms: as `sum_of_hinges`; the same on all devices.
  """
  image, text, image_id, batch = _local(image, text, image_id, axis_name)
  scale = shapes.reduction(reduce, batch)
  positive = rowwise(image, text, kind="dot")
  # The margin rides on the positive: rules know scores and one number per query.
  rows, columns = ring.reduce(ring.HINGES, axis_name, image, text, positive - margin, image_id)
  i2t, t2i, active, count = _sums(
    axis_name,
    rows.value,
    columns.value,
    rows.extra[0] + columns.extra[0],
    rows.extra[1] + columns.extra[1],
  )
  terms = {"i2t": scale * i2t, "t2i": scale * t2i, "active": active / jnp.maximum(count, 1)}
  return terms["i2t"] + terms["t2i"], terms


def ring_max_of_hinges(image, text, image_id=None, *, axis_name, margin=0.2, reduce="sum"):
  """`max_of_hinges` in ring form; arguments and results as `ring_sum_of_hinges`, terms as
  `max_of_hinges`.
  """
  image, text, image_id, batch = _local(image, text, image_id, axis_name)
  scale = shapes.reduction(reduce, batch)
  positive = rowwise(image, text, kind="dot")
  rows, columns = ring.reduce(ring.HARDEST, axis_name, image, text, positive, image_id)
  hinges, shares = [], []
  for side in (rows, columns):
    found = side.extra[0] < batch
    hinges.append(
      jnp.where(found, jax.nn.relu(margin + jnp.where(found, side.value, 0) - positive), 0)
    )
    # A query without a negative counts for item 0, as the plain argmax does.
    counts = (
      jnp.zeros_like(side.extra[0], shape=(batch,)).at[jnp.where(found, side.extra[0], 0)].add(1)
    )
    shares.append(jnp.max(jax.lax.psum(counts, axis_name)) / batch)
  i2t, t2i, active = _sums(axis_name, *hinges, (hinges[0] > 0) * 0.5 + (hinges[1] > 0) * 0.5)
  terms = {
    "i2t": scale * i2t,
    "t2i": scale * t2i,
    "active": active / batch,
    "same_hardest": jnp.maximum(*shares),
  }
  return terms["i2t"] + terms["t2i"], terms


def ring_info_nce(image, text, image_id=None, *, axis_name, temperature=0.07, bias=0.0):
  """`info_nce` in ring form; arguments and results as `ring_sum_of_hinges`, terms as `info_nce`."""
  image, text, image_id, batch = _local(image, text, image_id, axis_name)
  image, text = _with_scalars(image, text, temperature, bias)
  positive = rowwise(image, text, kind="dot")
  rows, columns = ring.reduce(ring.LOG_SUM_EXP, axis_name, image, text, positive, image_id)
  missed = (rows.extra[0] >= positive) * 0.5 + (columns.extra[0] >= positive) * 0.5
  costs = [jnp.logaddexp(side.value, positive) - positive for side in (rows, columns)]
  i2t, t2i, active = _sums(axis_name, *costs, missed)
  terms = {"i2t": i2t / batch, "t2i": t2i / batch, "active": active / batch}
  return (terms["i2t"] + terms["t2i"]) / 2, terms


def ring_sigmoid(image, text, image_id=None, *, axis_name, temperature=0.1, bias=-10.0):
  """`sigmoid` in ring form; arguments and results as `ring_sum_of_hinges`, terms as `sigmoid`."""
  image, text, image_id, batch = _local(image, text, image_id, axis_name)
  image, text = _with_scalars(image, text, temperature, bias)
  positive = rowwise(image, text, kind="dot")
  rows, _ = ring.reduce(ring.SOFTPLUS, axis_name, image, text, positive, image_id)
  paired, others, wrong, count = _sums(
    axis_name,
    jax.nn.softplus(-positive),
    rows.value,
    rows.extra[0] + (positive <= 0),
    rows.extra[1] + 1,
  )
  parts = {"positive": paired / batch, "negative": others / batch}
  loss = parts["positive"] + parts["negative"]
  return loss, parts | {"i2t": loss / 2, "t2i": loss / 2, "active": wrong / count}


def ring_imc(
  image,
  text,
  image_id=None,
  *,
  axis_name,
  margin=0.2,
  weight=1.0,
  distance="l1",
  lower=0.05,
  upper=0.5,
  form="released",
  reduce="sum",
  inter="max_of_hinges",
):
  """`imc` in ring form; arguments and results as `ring_sum_of_hinges`, parameters and terms as
  `imc`.
  """
  choice("inter", inter, ("max_of_hinges", "sum_of_hinges"))
  form_of_ring = ring_max_of_hinges if inter == "max_of_hinges" else ring_sum_of_hinges
  loss, terms = form_of_ring(
    image, text, image_id, axis_name=axis_name, margin=margin, reduce=reduce
  )
  options = {
    "axis_name": axis_name,
    "distance": distance,
    "lower": lower,
    "upper": upper,
    "form": form,
  }
  parts = {
    "intra_image": ring_intra_modal_constraint(image, **options),
    "intra_text": ring_intra_modal_constraint(text, **options),
  }
  return loss + weight * sum(parts.values()), terms | {"inter": loss} | parts


def ring_intra_modal_constraint(
  x, *, axis_name, distance="l1", lower=0.05, upper=0.5, form="released"
):
  """`intra_modal_constraint` in ring form; x [b, D] are this device's rows. Thresholds come from
  global row 0.
  """
  (x,) = shapes.matrices(x=x)
  total = _constraint(intra_setting(distance, lower, upper, form), axis_name, x)
  return jax.lax.psum(total, axis_name) / (x.shape[0] * jax.lax.axis_size(axis_name))


def _local(image, text, image_id, axis_name):
  image, text = shapes.matrices(image=image, text=text)
  size = image.shape[0]
  if image_id is None:
    image_id = ring.index_of(jax.lax.axis_index(axis_name), size)[0]
  if jnp.shape(image_id) != (size,):
    raise ValueError(
      f"image_id has shape {jnp.shape(image_id)}; expected {(size,)} for {size} images"
    )
  return image, text, image_id, size * jax.lax.axis_size(axis_name)


def _with_scalars(image, text, temperature, bias):
  """Rows whose dot product is image.text / temperature + bias, so that the scalars get their
  gradients too.
  """
  ones = jnp.ones_like(image[:, :1])
  return jnp.concatenate([image / temperature, bias * ones], 1), jnp.concatenate([text, ones], 1)


def _sums(axis_name, *arrays):
  return jax.lax.psum(tuple(jnp.sum(array) for array in arrays), axis_name)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _constraint(setting, axis_name, x):
  """This device's part of B times the constraint."""
  return _constraint_forward(setting, axis_name, x)[0]


def _constraint_forward(setting, axis_name, x):
  x, squares = band.prepared(setting.measure, x, jax.lax.pmean(jnp.mean(x, axis=0), axis_name))
  if not setting.quantile:

    def add_fixed(total, moving, source):
      values = band.fixed_values(
        setting, _distances(setting, axis_name, x, squares, *moving, source)
      )
      return total + jnp.sum(values), moving

    total, _ = ring.around(add_fixed, jnp.zeros_like(x, shape=()), (x, squares), axis_name)
    return total, (x, squares, None)

  def add_squares(total, moving, source):
    block = _distances(setting, axis_name, x, squares, *moving, source)
    return total + jnp.sum(jnp.square(block), axis=1), moving

  row_squares, _ = ring.around(add_squares, jnp.zeros_like(squares), (x, squares), axis_name)
  scale = band.row_scale(row_squares)
  here = jax.lax.axis_index(axis_name)
  row0, square0, scale0 = (
    jax.lax.psum(jnp.where(here == 0, a[:1], 0), axis_name) for a in (x, squares, scale)
  )
  is_first = (here == 0) & (jnp.arange(x.shape[0]) == 0)
  to_row0 = band.distances(setting.measure, x, row0, squares, square0, is_first[:, None])[:, 0]
  bounds = band.quantile_bounds(
    setting, jax.lax.all_gather(to_row0, axis_name, tiled=True) / scale0
  )

  def add_values(total, moving, source):
    block = _distances(setting, axis_name, x, squares, *moving, source)
    rows = band.Rows(
      scale[:, None], 0.0, is_first[:, None], _part(bounds.first, source, x)[None, :]
    )
    return total + jnp.sum(band.quantile_values(bounds, block, rows), axis=1), moving

  total, _ = ring.around(add_values, jnp.zeros_like(scale), (x, squares), axis_name)
  return jnp.sum(total), (x, squares, (scale, total, is_first, bounds))


def _constraint_backward(setting, axis_name, residuals, cotangent):
  x, squares, statistics = residuals
  if statistics is None:

    def add_fixed(gradient, moving, source):
      block = _distances(setting, axis_name, x, squares, *moving, source)
      slopes = band.fixed_slopes(setting, block)
      return gradient + band.pull_back(setting.measure, slopes.T, block.T, x, moving[0]), moving

    gradient, _ = ring.around(add_fixed, jnp.zeros_like(x), (x, squares), axis_name)
    return (cotangent * gradient,)
  scale, total, is_first, bounds = statistics
  here_first = _part(bounds.first, jax.lax.axis_index(axis_name), x)

  def add(gradient, moving, source):
    y, y_squares, y_scale, y_total, y_is_first = moving
    block = _distances(setting, axis_name, x, squares, y, y_squares, source)
    there_first = _part(bounds.first, source, x)
    rows = band.Rows(scale[:, None], total[:, None], is_first[:, None], there_first[None, :])
    columns = band.Rows(
      y_scale[None, :], y_total[None, :], y_is_first[None, :], here_first[:, None]
    )
    slopes = band.quantile_slopes(bounds, block, rows) + band.quantile_slopes(
      bounds, block, columns
    )
    return gradient + band.pull_back(setting.measure, slopes.T, block.T, x, y), moving

  gradient, _ = ring.around(add, jnp.zeros_like(x), (x, squares, scale, total, is_first), axis_name)
  return (cotangent * gradient,)


_constraint.defvjp(_constraint_forward, _constraint_backward)


def _distances(setting, axis_name, x, squares, y, y_squares, source):
  diagonal = jnp.eye(x.shape[0], dtype=bool) & (source == jax.lax.axis_index(axis_name))
  return band.distances(setting.measure, x, y, squares, y_squares, diagonal)


def _part(array, block, x):
  return jax.lax.dynamic_slice_in_dim(array, block * x.shape[0], x.shape[0])
