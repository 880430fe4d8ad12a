"""What every loss checks and prepares before it computes: shapes, types, masks, reduction."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Real

from xmr.errors import choice
from xmr.ops.alignment import Tokens
from xmr.ops.arrays import Array

# Types of the losses' arguments and results. B rows of D numbers, or of tokens.
Embeddings = Real[Array, "B D"] | Tokens
Match = Bool[Array, "B B"] | Real[Array, "B B"] | None
Mask = Bool[Array, " B"] | Real[Array, " B"]
Scalar = float | Real[Array, ""]
Loss = tuple[Float[jax.Array, ""], dict[str, Float[jax.Array, ""]]]

REDUCTIONS = ("sum", "mean")


def matrices(**arrays):
  """Checks that all arrays are [B, D] with the same B and D, and returns them as float32 or wider.

  Args:
    **arrays: [B, D] arrays by the names of the error message; bfloat16 and float16 are widened to
      float32. Or all are Tokens [B, L, D] with the same B.
  Returns:
    list of [B, D] arrays or of Tokens, in the order given.
  Raises:
    ValueError: an array is not two-dimensional, or the shapes differ; names both.
  """
  if all(isinstance(array, Tokens) for array in arrays.values()):
    return _tokens(arrays)
  wide = []
  first_name, first_shape = None, None
  for name, array in arrays.items():
    shape = jnp.shape(array)
    if len(shape) != 2:
      raise ValueError(f"{name} has shape {shape}; expected [B, D]")
    if first_shape is None:
      first_name, first_shape = name, shape
    if shape != first_shape:
      raise ValueError(f"{name} has shape {shape}; expected {first_shape} as {first_name} has")
    array = jnp.asarray(array)
    wide.append(array.astype(jnp.promote_types(array.dtype, jnp.float32)))
  return wide


def _tokens(arrays):
  (first, of_first), *others = arrays.items()
  for name, tokens in others:
    if len(tokens) != len(of_first):
      raise ValueError(
        f"{name} has shape {tokens.shape}; expected {len(of_first)} rows as {first} has"
      )
  return list(arrays.values())


def match_mask(match: Match, batch: int) -> Bool[jax.Array, "B B"]:
  """Returns the pairs that are never negatives: `match` with its diagonal set, [B, B] bool.

  Args:
    match: [B, B] bool or 0/1, True where text j describes image i; None is the identity.
    batch: B.
  Raises:
    ValueError: match is not [B, B].
  """
  identity = jnp.eye(batch, dtype=bool)
  if match is None:
    return identity
  if jnp.shape(match) != (batch, batch):
    raise ValueError(
      f"match has shape {jnp.shape(match)}; expected {(batch, batch)} for {batch} images and "
      f"{batch} texts"
    )
  return jnp.asarray(match).astype(bool) | identity


def mask(name: str, array: Mask | None, batch: int) -> Bool[jax.Array, " B"]:
  """Returns a mask of the rows as [B] bool; None is all.

  Raises:
    ValueError: the array is not [B].
  """
  if array is None:
    return jnp.ones(batch, bool)
  if jnp.shape(array) != (batch,):
    raise ValueError(f"{name} has shape {jnp.shape(array)}; expected {(batch,)} as text has rows")
  return jnp.asarray(array).astype(bool)


def reduction(reduce: str, batch: int) -> float:
  """Returns the factor that turns a sum over the batch into `reduce`: 1 for "sum", 1 / B for
  "mean".

  Raises:
    UserError: reduce is another word.
  """
  choice("reduce", reduce, REDUCTIONS)
  return 1.0 if reduce == "sum" else 1.0 / batch
