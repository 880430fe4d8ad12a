"""One step of an LSTM and of a GRU, forward and backward, without the products."""

import jax
import jax.numpy as jnp


class LSTM:
  """i, f, g, o = s(z_i), s(z_f), tanh(z_g), s(z_o) with z = x W + b + h U + d;  c' = f c + i g;
  h' = o tanh(c').

  Gate order in the kernels' columns: i, f, g, o, as in PyTorch.  Hochreiter & Schmidhuber 1997,
  with a forget gate.
  """

  gates = 4
  has_cell = True

  @staticmethod
  def forward(z_x, z_h, h, c):
    """Returns (saved [.., 4H], h', c') of one step from x W + b, h U + d, h and c."""
    del h
    width = c.shape[-1]
    # s(z) = (1 + tanh(z / 2)) / 2: one tanh over all gates.
    column = jnp.arange(4 * width) // width
    scale = jnp.where(column == 2, 1.0, 0.5).astype(z_x.dtype)
    saved = jnp.tanh((z_x + z_h) * scale) * scale + (1 - scale)
    i, f, g, o = jnp.split(saved, 4, axis=-1)
    c = f * c + i * g
    return saved, o * jnp.tanh(c), c

  @staticmethod
  def backward(saved, h, c, dh, dc):
    """Returns (gradient of z [.., 4H], the part of h's gradient that goes through no product
    (None: 0), gradient of c).
    """
    del h
    i, f, g, o = jnp.split(saved, 4, axis=-1)
    tanh_c = jnp.tanh(f * c + i * g)
    dc = dc + dh * o * (1 - tanh_c * tanh_c)
    dz = (
      dc * g * i * (1 - i),
      dc * c * f * (1 - f),
      dc * i * (1 - g * g),
      dh * tanh_c * o * (1 - o),
    )
    return jnp.concatenate(dz, axis=-1), None, dc * f

  @staticmethod
  def to_input(dz):
    """Returns the gradient of x W + b from the stored gradient."""
    return dz

  @staticmethod
  def to_hidden(dz):
    """Returns the gradient of h U + d from the stored gradient."""
    return dz


class GRU:
  """r, z = s(x_r + h_r), s(x_z + h_z);  n = tanh(x_n + r h_n);  h' = (1 - z) n + z h, with
  x_ = x W + b, h_ = h U + d.

  Gate order in the kernels' columns: r, z, n, as in PyTorch.  Cho et al. 2014, reset after the
  product.
  """

  gates = 3
  has_cell = False

  @staticmethod
  def forward(z_x, z_h, h, c):
    """Returns (saved [.., 4H] = r, z, n, h_n, h', c) of one step from x W + b, h U + d and h; c has
    width 0.
    """
    width = h.shape[-1]
    r, z = jnp.split(jax.nn.sigmoid(z_x[..., : 2 * width] + z_h[..., : 2 * width]), 2, axis=-1)
    h_n = z_h[..., 2 * width :]
    n = jnp.tanh(z_x[..., 2 * width :] + r * h_n)
    return jnp.concatenate((r, z, n, h_n), axis=-1), n + z * (h - n), c

  @staticmethod
  def backward(saved, h, c, dh, dc):
    """Returns (gradients of r, z, x_n, h_n before their functions [.., 4H], the part of h's
    gradient that goes through no product, gradient of c).
    """
    del c
    r, z, n, h_n = jnp.split(saved, 4, axis=-1)
    dx_n = dh * (1 - z) * (1 - n * n)
    dz = (dx_n * h_n * r * (1 - r), dh * (h - n) * z * (1 - z), dx_n, dx_n * r)
    return jnp.concatenate(dz, axis=-1), dh * z, dc

  @staticmethod
  def to_input(dz):
    """Returns the gradient of x W + b from the stored gradient."""
    return dz[..., : dz.shape[-1] // 4 * 3]

  @staticmethod
  def to_hidden(dz):
    """Returns the gradient of h U + d from the stored gradient."""
    width = dz.shape[-1] // 4
    return jnp.concatenate((dz[..., : 2 * width], dz[..., 3 * width :]), axis=-1)


CELLS = {"lstm": LSTM, "gru": GRU}
