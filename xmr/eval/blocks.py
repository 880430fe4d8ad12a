"""Both sides of a similarity in blocks of one shape, scaled for float32, on one device or on the
devices that hold the queries.
"""

import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from xmr.errors import UserError

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


def placement_of(query):
  """Returns the shardings of query and gallery blocks over the devices that hold the queries; None
  where the queries are on one device.
  """
  sharding = getattr(query, "sharding", None)
  if (
    not isinstance(sharding, NamedSharding)
    or sharding.mesh.size == 1
    or not query.is_fully_addressable
  ):
    return None
  mesh = sharding.mesh
  return NamedSharding(mesh, PartitionSpec(mesh.axis_names)), NamedSharding(mesh, PartitionSpec())


def steps_of(n_queries, n_gallery, block, placement):
  """Rows and columns of a block: no more than asked, equally full, rounded up to whole units on
  every device.
  """
  if block < 1:
    raise UserError(f"block is {block}; expected at least 1")
  row_unit = ROW_UNIT * (placement[0].mesh.size if placement else 1)
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
