"""Arrays of a slice as their shapes: what `xmr.parallel` places, without a device or a byte."""

import jax
import numpy as np

from xmr import parallel


def on(sharding, shape, dtype):
  """Returns the shape, type and placement of an array."""
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def replicate(mesh, tree):
  """As parallel.replicate."""
  sharding = parallel.replicated(mesh)
  return jax.tree.map(lambda x: on(sharding, np.shape(x), x.dtype), tree)


def split_over(mesh, tree):
  """As parallel.split_over."""
  return jax.tree.map(lambda x: on(parallel.split(mesh, np.shape(x)), np.shape(x), x.dtype), tree)


def shard(mesh, batch):
  """As parallel.shard, of a batch of all processes."""
  sharding = parallel.sharded(mesh)
  return {key: on(sharding, x.shape, x.dtype) for key, x in batch.items()}


def shard_rows(mesh, array, *, fill=0):
  """As parallel.shard_rows."""
  del fill
  unit = int(np.lcm(parallel.ROW_UNIT, mesh.size))
  rows = -(-len(array) // unit) * unit
  return on(parallel.sharded(mesh), (rows, *np.shape(array)[1:]), array.dtype)


def zeros(mesh, shape, dtype):
  """As parallel.zeros."""
  return on(parallel.sharded(mesh), shape, dtype)
