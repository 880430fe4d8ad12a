"""The last step of every encoder: rows of the joint space."""

import jax.numpy as jnp


def normalize(x, kind, eps=1e-12):
  """Brings rows to the form that the similarity expects.

  l2: x / (||x|| + eps); abs: the absolute values of the same (order embeddings); none: x. A row of
  zeros stays zero, with a zero gradient.

  Args:
    x: [..., D] float, computed in float32.  kind: "l2", "abs" or "none".  eps: added to the norm.
  Returns:
    [..., D] float32.
  Raises:
    ValueError: another kind.
  References:
    Chen et al., IMC, ICIP 2022, `l2norm` as released; abs: Vendrov et al., Order-Embeddings, ICLR
    2016.
  """
  if kind not in ("l2", "abs", "none"):
    raise ValueError(f"normalize kind is {kind!r}; expected l2, abs or none")
  x = x.astype(jnp.float32)
  if kind == "none":
    return x
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  # The gradient of sqrt at 0 is infinite, and infinity times 0 is NaN even where the result is not
  # used.
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  unit = x / (norm + eps)
  return jnp.abs(unit) if kind == "abs" else unit
