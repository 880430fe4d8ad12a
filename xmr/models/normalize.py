"""The last step of every encoder: rows of the joint space."""

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from xmr.ops.arrays import Array
from xmr.ops.unit import unit

KINDS = ("l2", "abs", "none")


def normalize(x: Float[Array, "*rows D"], kind: str) -> Float32[jax.Array, "*rows D"]:
  """Brings rows to the form that the similarity expects.

  l2: x / ||x||; abs: |x| / ||x|| (order embeddings); none: x. A row of zeros stays zero, with a
  zero gradient.

  Args:
    x: [..., D] float, computed in float32.  kind: "l2", "abs" or "none".
  Returns:
    [..., D] float32.
  Raises:
    ValueError: another kind.
  References:
    Chen et al., IMC, ICIP 2022, `l2norm` as released, except for the 1e-8 added to the norm.
    Vendrov et al., Order-Embeddings, ICLR 2016 (abs).
  """
  if kind not in KINDS:
    raise ValueError(f"normalize kind is {kind!r}; expected l2, abs or none")
  x = jnp.asarray(x, jnp.float32)
  if kind == "none":
    return x
  x = unit(x)
  return jnp.abs(x) if kind == "abs" else x
