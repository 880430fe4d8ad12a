"""Both sides of a similarity in blocks of one shape, scaled for float32, on one device or on the
devices that hold the queries.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from xmr import parallel
from xmr.errors import UserError
from xmr.ops.similarity import similarity

BLOCK = 1024  # queries at a time
GALLERY_BLOCKS = 2  # gallery rows at a time, in blocks
WEIGHTS = (1e-37, 1e37)  # numbers that float32 holds to full precision, here and on any device
ROW_UNIT, COLUMN_UNIT = 128, 64  # blocks are multiples of these; below 256, for sums in bytes


def factors_of(query, gallery, *, kind):
  """Powers of two that bring the largest norm of each side near 1, so that no product leaves the
  range of float32.
  """
  tops = [max(x.top, 1e-37) for x in (query, gallery)]
  if kind == "order":
    tops = [max(tops)] * 2
  return [float(2.0 ** -np.ceil(np.log2(top))) if kind != "cosine" else 1.0 for top in tops]


def score_factor(factors, *, kind):
  """Returns the ratio of the scores of scaled rows to the exact scores."""
  return factors[0] if kind == "order" else factors[0] * factors[1]


def block_of(side, begin, size, factor, kind):
  """Rows begin .. begin + size, scaled for the device; a view where they need no scaling."""
  part = padded(side.x, begin, size)
  if kind == "cosine":
    weight = padded(side.weight[begin : begin + size], begin=0, size=size)[:, None]
    if ((weight > WEIGHTS[1]) | ((weight < WEIGHTS[0]) & (weight > 0))).any():
      # The weight itself leaves the range of float32, its product with the row does not.
      part = (part * weight).astype(np.float32)
    elif (weight != 1).any():
      part = part * weight.astype(np.float32)
  elif factor != 1:
    part = part * np.float32(factor)
  return part


def mesh_of(*sides):
  """Returns a mesh over the devices that hold the first side that is on devices of its own; None
  where both are on the host or on one CPU.
  """
  for side in sides:
    sharding = getattr(side, "sharding", None)
    if sharding is None or not sharding.is_fully_addressable:
      continue
    mesh = getattr(sharding, "mesh", None)
    devices = list(sharding.device_set if mesh is None else mesh.devices.flat)
    if len(devices) > 1 or not parallel.on_host(devices):
      return parallel.mesh(devices)
  return None


def placement_of(mesh):
  """Returns the shardings of query and gallery blocks over a mesh; None, None without one."""
  return (None, None) if mesh is None else (parallel.sharded(mesh), parallel.replicated(mesh))


def steps_of(n_queries, n_gallery, block, mesh):
  """Rows and columns of a block: no more than asked, equally full, rounded up to whole units on
  every device.
  """
  if block < 1:
    raise UserError(f"block is {block}; expected at least 1")
  row_unit = ROW_UNIT * (mesh.size if mesh else 1)
  rows, columns = (
    -(-n // -(-n // size)) for n, size in ((n_queries, block), (n_gallery, block * GALLERY_BLOCKS))
  )
  return rows + -rows % row_unit, columns + -columns % COLUMN_UNIT


def padded(x, begin, size):
  """Rows begin .. begin + size of x, with zeros after its end: every block has the same shape."""
  part = x[begin : begin + size]
  if len(part) == size:
    return part
  return np.concatenate([part, np.zeros((size - len(part), *x.shape[1:]), x.dtype)])


@functools.partial(jax.jit, static_argnames=("order", "both"))
def tile_counts(query, gallery, query_limits, gallery_limits, left, *, order, both):
  """Counts of one block of scaled rows, [q, D] and [g, D].

  Args:
    query_limits, gallery_limits: (low, high), [q] and [g] each; a score above high is certainly
      above the best positive, one within them is too close for float32.
    left: how many of the rows and columns are real; the rest fill the block up.
  Returns:
    Counts above per query [q] and per item [g], and a code [q, g] uint8, of which the bits 1 and 2
    say "too close" for the query's and for the item's best positive.
  """
  scores = products(query, gallery, order=order)
  # Padded rows score 0, which may be above.
  row_is_real, column_is_real = (
    jnp.arange(n) < real for n, real in zip(scores.shape, left, strict=True)
  )
  real = (row_is_real[:, None] & column_is_real[None, :]).astype(jnp.uint8)
  low, high = (x[:, None] for x in query_limits)
  code = _code(scores, low, high, near=1, above=4)
  if both:
    low, high = (x[None, :] for x in gallery_limits)
    code |= _code(scores, low, high, near=2, above=8)
  code *= real
  # Summed in bytes first: XLA's CPU backend would otherwise write the whole block out as int32.
  q, g = scores.shape
  above_query = jnp.sum(
    (code >> 2 & 1).reshape(q, g // COLUMN_UNIT, COLUMN_UNIT), axis=2, dtype=jnp.uint8
  )
  above_item = jnp.sum((code >> 3).reshape(q // ROW_UNIT, ROW_UNIT, g), axis=1, dtype=jnp.uint8)
  return (
    jnp.sum(above_query, axis=1, dtype=jnp.int32),
    jnp.sum(above_item, axis=0, dtype=jnp.int32),
    code,
  )


def _code(scores, low, high, *, near, above):
  reaches, exceeds = ((scores >= low).astype(jnp.uint8), (scores > high).astype(jnp.uint8))
  return near * (reaches - exceeds) + above * exceeds


@functools.partial(jax.jit, static_argnames="order")
def products(query, gallery, *, order):
  """Scores [q, g] of scaled rows, [q, D] and [g, D]."""
  return similarity(query, gallery, kind="order" if order else "dot")
