"""Sums over rows of a function of all pairs of columns, as kernels for GPUs (Triton) and TPUs
(Mosaic): out[p, q] = sum over r of f(a[r, p], b[r, q], c[p, q]).

XLA's loop over rows passes over all of `out` or `c` in memory for every few rows; a kernel keeps a
tile of them in registers or in a core's memory. `python -m xmr.bench.kernels` counts the bytes.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as mosaic
from jax.experimental.pallas import triton

# Sides of a GPU's tiles, and the results from which there is a tile for each of some 130
# multiprocessors: the larger a tile, the fewer bytes move.
TILES = ((128, 1 << 21), (64, 1 << 19), (32, 0))
# Rows and columns of a tile on a TPU and summed rows per step; rows that registers hold.
TPU_TILE, TPU_ROWS = (512, 1024, 128), 8


def gpu_tile(p, q):
  """Returns the side of a GPU's tiles for [p, q] results."""
  return next(side for side, least in TILES if p * q >= least)


def on_gpu(f, a, b, c=None, *, interpret=False):
  """The sums by a kernel for NVIDIA's GPUs.

  Args:
    f: function of (a[r, p] [P, 1], b[r, q] [1, Q], c[p, q] [P, Q] or None) -> [P, Q].
    a: [R, P] float.  b: [R, Q].  c: [P, Q] or None.
    interpret: True computes on any platform what the kernel says.
  Returns:
    [P, Q].
  """
  (rows, p), q = a.shape, b.shape[1]
  side = gpu_tile(p, q)
  a, b = _padded(a, 1, side), _padded(b, 1, side)
  c = () if c is None else (_padded(c, side, side),)

  def kernel(a, b, *rest):
    *fixed, out = rest
    c = fixed[0][...] if fixed else None

    def add(r, total):
      return total + f(a[r, :][:, None], b[r, :][None, :], c)

    out[...] = lax.fori_loop(0, rows, add, jnp.zeros((side, side), out.dtype))

  tiles = a.shape[1] // side, b.shape[1] // side
  tile = pl.BlockSpec((side, side), lambda i, j: (i, j))
  out = pl.pallas_call(
    kernel,
    # A product's type: inside `jax.shard_map` it says over which devices the result differs.
    out_shape=jax.eval_shape(lambda a, b: a.T @ b, a, b),
    grid=tiles,
    in_specs=[
      pl.BlockSpec((rows, side), lambda i, j: (0, i)),
      pl.BlockSpec((rows, side), lambda i, j: (0, j)),
      *([tile] * len(c)),
    ],
    out_specs=tile,
    interpret=interpret,
    compiler_params=triton.CompilerParams(num_warps=8 if side == 128 else 4, num_stages=2),
    cost_estimate=_cost(rows, a, b, math.prod(tiles) * side * (2 * rows + (1 + len(c)) * side)),
  )(a, b, *c)
  return out[:p, :q]


def on_tpu(f, a, b, c, *, interpret=False):
  """The sums by a kernel for TPUs; arguments and result as `on_gpu`."""
  (rows, p), q = a.shape, b.shape[1]
  high = min(TPU_TILE[0], math.ceil(p / TPU_ROWS) * TPU_ROWS)
  wide, step = min(TPU_TILE[1], math.ceil(q / 128) * 128), TPU_TILE[2]
  # Rows of zeros add f(0, 0, c), which is 0 of slopes.
  a, b, c = _padded(a.T, high, step), _padded(b, step, wide), _padded(c, high, wide)

  def kernel(a, b, c, out):
    @pl.when(pl.program_id(2) == 0)
    def _():
      out[...] = jnp.zeros_like(out)

    def part(i, _):
      here = pl.ds(pl.multiple_of(i * TPU_ROWS, TPU_ROWS), TPU_ROWS)
      left, fixed, total = a[here, :], c[here, :], out[here, :]
      for r in range(step):
        total = total + f(left[:, r : r + 1], b[r : r + 1, :], fixed)
      out[here, :] = total
      return 0

    lax.fori_loop(0, high // TPU_ROWS, part, 0)

  tiles = c.shape[0] // high, c.shape[1] // wide
  tile = pl.BlockSpec((high, wide), lambda i, j, k: (i, j))
  out = pl.pallas_call(
    kernel,
    out_shape=jax.eval_shape(lambda a, b: a @ b, a, b),
    grid=(*tiles, b.shape[0] // step),
    in_specs=[
      pl.BlockSpec((high, step), lambda i, j, k: (i, k)),
      pl.BlockSpec((step, wide), lambda i, j, k: (k, j)),
      tile,
    ],
    out_specs=tile,
    interpret=interpret,
    compiler_params=mosaic.CompilerParams(
      dimension_semantics=("parallel", "parallel", "arbitrary")
    ),
    cost_estimate=_cost(rows, a.T, b, tiles[1] * a.size + tiles[0] * b.size + 2 * c.size),
  )(a, b, c)
  return out[:p, :q]


def _cost(rows, a, b, moved):
  """Three operations for each number that is summed; `moved`: numbers fetched or stored."""
  return pl.CostEstimate(
    flops=3 * rows * a.shape[1] * b.shape[1],
    transcendentals=0,
    bytes_accessed=moved * a.dtype.itemsize,
  )


def _padded(x, *units):
  return jnp.pad(x, [(0, -size % unit) for size, unit in zip(x.shape, units, strict=True)])
