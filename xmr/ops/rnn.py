"""LSTM and GRU over sequences of different lengths, with a backward pass of their own.

The cost depends on the number of words, not on the padding:

- Rows are sorted by length, and the time loop runs in phases, each on the prefix of rows that is
  still active, for as many steps as the batch needs. One compilation serves every batch.
- The backward loop computes the gates' gradients, with one product per step. After the loop,
  products over all steps give the gradients of weights, biases and inputs. (Automatic
  differentiation of a scan adds to the weights' gradient in every step.)

Steps are stored one after another in "slots": slot = first slot of the step + row. Rows are sorted
within each of D shards of the batch, and all shards run the same phases, so that a batch sharded
over D devices stays in place.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Integer, Real

from xmr.ops.arrays import Array, custom_gradient
from xmr.ops.memory import zeros_after
from xmr.ops.rnn_cells import CELLS
from xmr.ops.rnn_slots import levels_of, pack, plan_of, sizes_of, unpack
from xmr.ops.tiles import devices_of


class Weights(NamedTuple):
  """Parameters of one direction, G = 4 (LSTM) or 3 (GRU) gates of H units; two biases, as in
  PyTorch.

  input_kernel: W [F, G H].  hidden_kernel: U [H, G H].  input_bias: b [G H].  hidden_bias: d [G H].
  """

  input_kernel: jax.Array
  hidden_kernel: jax.Array
  input_bias: jax.Array
  hidden_bias: jax.Array


def plain(x, length, weights, *, cell="lstm", reverse=False):
  """Plain form of `recurrent`: a masked float32 scan over all L steps, differentiated by JAX."""
  w = weights
  batch, steps, _ = x.shape
  t = jnp.arange(steps)
  inside = t < length[:, None]
  index = jnp.where(inside, length[:, None] - 1 - t if reverse else t, 0)[..., None]

  def step(carry, now):
    (h, c), (x_t, t) = carry, now
    a, b = x_t @ w.input_kernel + w.input_bias, h @ w.hidden_kernel + w.hidden_bias
    s = jax.nn.sigmoid
    if cell == "lstm":
      i, f, g, o = jnp.split(a + b, 4, axis=-1)
      c_next = s(f) * c + s(i) * jnp.tanh(g)
      h_next = s(o) * jnp.tanh(c_next)
    else:
      (a_r, a_z, a_n), (b_r, b_z, b_n) = jnp.split(a, 3, axis=-1), jnp.split(b, 3, axis=-1)
      z, n = s(a_z + b_z), jnp.tanh(a_n + s(a_r + b_r) * b_n)
      h_next, c_next = (1 - z) * n + z * h, c
    active = (t < length)[:, None]
    h, c = jnp.where(active, h_next, h), jnp.where(active, c_next, c)
    return (h, c), h

  zero = jnp.zeros((batch, len(w.hidden_kernel)))
  (final, _), outputs = lax.scan(
    step, (zero, zero), (jnp.take_along_axis(x, index, axis=1).swapaxes(0, 1), t)
  )
  outputs = (
    jnp.take_along_axis(outputs.swapaxes(0, 1), index, axis=1)
    if reverse
    else outputs.swapaxes(0, 1)
  )
  return jnp.where(inside[..., None], outputs, 0), final


def recurrent(
  x: Real[Array, "B L F"],
  length: Integer[Array, " B"],
  weights: Weights,
  *,
  cell: str = "lstm",
  reverse: bool = False,
  dtype=jnp.float32,
  shards: int | None = None,
) -> tuple[Float[jax.Array, "B L H"], Float[jax.Array, "B H"]]:
  """Runs a recurrent layer over each row's first `length` steps, from a zero state.

  A row's result depends only on its own steps, not on padding or other rows; length 0 gives
  zeros.

  Args:
    length: 0 to L.
    weights: float32.
    cell: "lstm" or "gru".
    reverse: True reads from step length - 1 down to 0.
    dtype: of products and stored gates; sums, cell state and gradients of weights are float32.
    shards: number of equal parts of the batch that are sorted separately; None is the number of
      devices of the mesh of x or of the weights, as far as it divides B. It changes results only by
      rounding.
  Returns:
    steps: [B, L, H] of dtype, step t at t in both directions, zero from `length` on.
    final: [B, H] of dtype, the state after the last step read: step length - 1, or step 0 if
      `reverse`.
  Raises:
    ValueError: shapes that do not fit, an unknown cell.
  """
  return _run(
    x, length, weights, cell=cell, reverse=reverse, dtype=dtype, shards=shards, sequence=True
  )


def final_state(
  x: Real[Array, "B L F"],
  length: Integer[Array, " B"],
  weights: Weights,
  *,
  cell: str = "lstm",
  reverse: bool = False,
  dtype=jnp.float32,
  shards: int | None = None,
) -> Float[jax.Array, "B H"]:
  """Returns only `final` of `recurrent`, [B, H], and stores no steps."""
  return _run(
    x, length, weights, cell=cell, reverse=reverse, dtype=dtype, shards=shards, sequence=False
  )[1]


def single_step(
  x: Real[Array, "B F"], weights: Weights, *, cell: str = "lstm", dtype=jnp.float32
) -> Float[jax.Array, "B H"]:
  """Runs one step from a zero state: x [B, F] into [B, H] of dtype; `weights`, `cell`, `dtype` as
  in `recurrent`.
  """
  kind = _check(x[:, None], jnp.ones(len(x), jnp.int32), weights, cell)
  width = len(weights.hidden_kernel)
  z_x = _dot(x.astype(dtype), weights.input_kernel.astype(dtype)) + weights.input_bias
  h = jnp.zeros((len(x), width), jnp.float32)
  _, h, _ = kind.forward(
    z_x, weights.hidden_bias + jnp.zeros_like(z_x), h, h if kind.has_cell else h[:, :0]
  )
  return h.astype(dtype)


def _check(x, length, weights, cell):
  """Returns the cell's class; ValueError for arguments that do not fit each other."""
  if cell not in CELLS:
    raise ValueError(f"cell is {cell!r}; expected one of {', '.join(CELLS)}")
  if x.ndim != 3 or length.shape != x.shape[:1]:
    raise ValueError(f"x has shape {x.shape} and length {length.shape}; expected [B, L, F] and [B]")
  width = len(weights.hidden_kernel)
  columns = CELLS[cell].gates * width
  expected = ((x.shape[-1], columns), (width, columns), (columns,), (columns,))
  found = tuple(w.shape for w in weights)
  if found != expected:
    raise ValueError(f"weights of {cell} have shapes {found}; expected {expected}")
  return CELLS[cell]


def _run(x, length, weights, *, cell, reverse, dtype, shards, sequence) -> Any:
  _check(x, length, weights, cell)
  batch, steps, _ = x.shape
  if shards is None:
    shards = math.gcd(batch, devices_of(x, weights))
  if batch % shards:
    raise ValueError(f"shards is {shards}; expected a divisor of the batch, {batch}")
  if batch * steps == 0:
    width = len(weights.hidden_kernel)
    return jnp.zeros((batch, steps, width), dtype), jnp.zeros((batch, width), dtype)
  static = (cell, bool(reverse), jnp.dtype(dtype), shards, bool(sequence))
  length = jnp.clip(length, 0, steps).astype(jnp.int32)
  return _core(static, x.astype(dtype), length, weights)


def _dot(a, b):
  """a [.., K] times b [K, N] in float32 sums."""
  return lax.dot_general(
    a, b, (((a.ndim - 1,), (0,)), ((), ())), preferred_element_type=jnp.float32
  )


def _dot_transposed(a, b):
  """a [.., N] times the transpose of b [K, N], in float32 sums."""
  return lax.dot_general(
    a, b, (((a.ndim - 1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )


def _read(buffer, slot, rows):
  return lax.dynamic_slice_in_dim(buffer, slot, rows, axis=1)


def _write(buffer, value, slot):
  return lax.dynamic_update_slice_in_dim(buffer, value.astype(buffer.dtype), slot, axis=1)


def _read_before_write(buffer, slot, rows, there):
  """Returns `_read` of a buffer that the same step of a loop writes afterwards.

  On CPUs, XLA copies the whole buffer in every step unless the read is a computation of its own.
  `there` is True, which XLA does not know.
  """
  return lax.cond(
    there, lambda b: _read(b, slot, rows), lambda b: jnp.zeros_like(b[:, :rows]), buffer
  )


def _forward(static, x, length, weights, save):
  """Returns (steps or None, final) and, if `save`, what the backward pass needs."""
  cell, reverse, dtype, shards, sequence = static
  kind = CELLS[cell]
  batch, steps, features = x.shape
  rows, width = batch // shards, len(weights.hidden_kernel)
  cell_width = width if kind.has_cell else 0
  sizes = sizes_of(rows)
  slots = math.prod(levels_of(rows, steps))
  plan = plan_of(length.reshape(shards, rows), sizes)
  packed = pack(x.reshape(shards, rows, steps, features), plan, sizes, slots, reverse)
  kernel, hidden = weights.input_kernel.astype(dtype), weights.hidden_kernel.astype(dtype)

  def buffer(features, wanted, dtype=dtype):
    return zeros_after(weights.input_bias[0], (shards, slots if wanted else 0, features), dtype)

  buffers = (
    buffer(4 * width, save),
    buffer(width, save or sequence),
    buffer(cell_width, save, jnp.float32),
  )
  h, c = (
    jnp.zeros((shards, rows, width), jnp.float32),
    jnp.zeros((shards, rows, cell_width), jnp.float32),
  )
  finished, begin = [], 0
  for phase, size in enumerate(sizes):

    def step(t, carry, *, size=size, phase=phase, begin=begin):
      h, c, (gates, states, cells) = carry
      slot = plan.base[phase] + (t - begin) * size
      z_x = _dot(_read(packed, slot, size), kernel) + weights.input_bias
      z_h = _dot(h.astype(dtype), hidden) + weights.hidden_bias
      saved, h_next, c_next = kind.forward(z_x, z_h, h, c)
      if save:
        gates, cells = _write(gates, saved, slot), _write(cells, c, slot)
      if save or sequence:
        states = _write(states, h, slot)
      h = jnp.where((t < plan.length[:, :size])[..., None], h_next, h)
      return h, c_next, (gates, states, cells)

    h, c, buffers = lax.fori_loop(begin, plan.end[phase], step, (h[:, :size], c[:, :size], buffers))
    begin = plan.end[phase]
    rest = sizes[phase + 1] if phase + 1 < len(sizes) else 0
    finished.append(h[:, rest:])
  h = jnp.concatenate(finished[::-1], axis=1)
  final = jnp.take_along_axis(h, plan.rank[..., None], axis=1).astype(dtype)
  gates, states, cells = buffers
  result = None
  if sequence:
    # The state after a step is the one before the next.
    result = unpack(states, plan, sizes, steps, reverse, after=final).reshape(batch, steps, width)
  return (result, final.reshape(batch, width)), (
    plan,
    packed,
    gates,
    states,
    cells,
    weights,
  ) if save else None


@custom_gradient(0)
def _core(static, x, length, weights):
  return _forward(static, x, length, weights, save=False)[0]


def _core_forward(static, x, length, weights):
  result, residuals = _forward(static, x, length, weights, save=True)
  # An empty array carries the number of steps.
  return result, (residuals, jnp.zeros((x.shape[1], 0)))


def _core_backward(static, residuals, gradients):
  cell, reverse, dtype, shards, sequence = static
  (plan, packed, gates, states, cells, weights), steps = residuals
  kind, steps = CELLS[cell], len(steps)
  d_steps, d_final = gradients
  rows, width = plan.order.shape[1], states.shape[-1]
  sizes, slots = sizes_of(rows), gates.shape[1]
  # Transposed once: a product that contracts the columns takes a quarter longer in every step.
  hidden = weights.hidden_kernel.astype(dtype).T
  d_final = jnp.take_along_axis(
    d_final.reshape(shards, rows, width), plan.order[..., None], axis=1
  ).astype(jnp.float32)
  if sequence:
    d_steps = pack(d_steps.reshape(shards, rows, steps, width), plan, sizes, slots, reverse)

  done = 0
  # On CPUs this overwrites the gates, as a new buffer costs a page fault for every 4 KB.
  d_gates = lax.platform_dependent(gates, cpu=lambda gates: gates, default=jnp.zeros_like)
  dh, dc = (
    jnp.zeros((shards, 0, width), jnp.float32),
    jnp.zeros((shards, 0, cells.shape[-1]), jnp.float32),
  )
  for phase in reversed(range(len(sizes))):
    size = sizes[phase]
    begin, end = plan.end[phase - 1] if phase else 0, plan.end[phase]
    dh = jnp.concatenate([dh, d_final[:, done:size]], axis=1)
    dc = jnp.pad(dc, ((0, 0), (0, size - done), (0, 0)))
    done = size

    def step(i, carry, *, size=size, phase=phase, begin=begin, end=end):
      dh, dc, d_gates = carry
      t = end - 1 - i
      slot = plan.base[phase] + (t - begin) * size
      if sequence:
        dh = dh + _read(d_steps, slot, size).astype(jnp.float32)
      saved = lax.platform_dependent(
        cpu=lambda: _read_before_write(d_gates, slot, size, t >= begin),
        default=lambda: _read(gates, slot, size),
      )
      h, c = _read(states, slot, size).astype(jnp.float32), _read(cells, slot, size)
      dz, passed, dc_next = kind.backward(saved.astype(jnp.float32), h, c, dh, dc)
      active = (t < plan.length[:, :size])[..., None]
      dz = jnp.where(active, dz, 0).astype(dtype)
      dh_next = _dot(kind.to_hidden(dz), hidden)
      if passed is not None:
        dh_next = dh_next + passed
      return (
        jnp.where(active, dh_next, dh),
        jnp.where(active, dc_next, dc),
        _write(d_gates, dz, slot),
      )

    dh, dc, d_gates = lax.fori_loop(0, end - begin, step, (dh, dc, d_gates))

  dx, d_weights = _products(
    kind, packed, states, d_gates, weights, plan.base[-1], *levels_of(rows, steps)
  )
  dx = unpack(dx, plan, sizes, steps, reverse).reshape(shards * rows, steps, -1)
  return dx, None, d_weights


def _products(kind, packed, states, dz, weights, used, levels, each):
  """Returns the gradients of inputs [D, S, F] and weights from those of the gates, whose slots from
  `used` on are all 0.
  """
  slots, kernel = dz.shape[1], weights.input_kernel.astype(dz.dtype)

  def level(slots_read):
    def products(packed, states, dz):
      dz = dz[:, :slots_read]
      d_input, d_hidden = kind.to_input(dz), kind.to_hidden(dz)
      within = (((1,), (1,)), ((0,), (0,)))
      return (
        jnp.pad(
          _dot_transposed(d_input, kernel).astype(dz.dtype),
          ((0, 0), (0, slots - slots_read), (0, 0)),
        ),
        Weights(
          lax.dot_general(
            packed[:, :slots_read], d_input, within, preferred_element_type=jnp.float32
          ),
          lax.dot_general(
            states[:, :slots_read], d_hidden, within, preferred_element_type=jnp.float32
          ),
          jnp.sum(d_input, axis=1, dtype=jnp.float32),
          jnp.sum(d_hidden, axis=1, dtype=jnp.float32),
        ),
      )

    return products

  branches = [level(each * (i + 1)) for i in range(levels)]
  dx, parts = lax.switch((used - 1) // each, branches, packed, states, dz)
  # Shards are summed out here: the compiler takes a sum over devices out of the loop over a batch's
  # parts, but not out of a branch, into which a TPU's would move it.
  return dx, jax.tree.map(lambda part: jnp.sum(part, axis=0), lax.optimization_barrier(parts))


_core.defvjp(_core_forward, _core_backward)
