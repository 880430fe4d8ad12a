"""Text towers: the transformers of CLIP and of SigLIP (and SigLIP 2)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmr.models.attention import NORMAL, Block
from xmr.models.borders import Encoded, Lengths, Words
from xmr.models.features import dense
from xmr.models.loop import blocks
from xmr.models.normalize import normalize
from xmr.models.text import words_alone
from xmr.ops.alignment import Tokens

# clip: tokens see those before them; the end-of-text token is pooled. siglip: tokens see all,
# including padding, as in pretraining; the last token is pooled, whatever it is. first: number of
# tokens before the first word.
KINDS = {
  "clip": {"causal": True, "pool": "end", "first": 1},
  "siglip": {"causal": False, "pool": "last", "first": 0},
}


class TextTransformer(nn.Module):
  """Token and position embeddings, blocks, a norm, and one pooled vector.

  Attributes:
    kind: a key of KINDS.  vocabulary_size: number of ids.
    width, layers, heads, mlp_width: sizes in units.  positions: most tokens of a text.
    gelu: a key of attention.GELU.  epsilon: of the norms.
    train_blocks: train only the last so many blocks and what follows them; -1 trains all.
    remat: recompute blocks in the backward pass.  dtype: of the computation.
  Call:
    text: [B, L] int32, with special tokens; L is at most `positions`, and equal to it for siglip.
    text_length: [B] int32, number of tokens up to and including the end-of-text token.
  Returns:
    pooled: [B, width].  tokens: [B, L, width], the norm's output.
  Raises:
    ValueError: another shape.
  References:
    Radford et al., CLIP, 2021; Zhai et al., SigLIP, 2023. Authors' code as in transformers.
  """

  kind: str
  vocabulary_size: int
  width: int = 512
  layers: int = 12
  heads: int = 8
  mlp_width: int = 2048
  positions: int = 77
  gelu: str = "quick"
  epsilon: float = 1e-5
  train_blocks: int = -1
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, text, text_length):
    kind = KINDS[self.kind]
    if text.ndim != 2 or text_length.shape != text.shape[:1]:
      raise ValueError(
        f"text has shape {text.shape}, text_length {text_length.shape}; expected [B, L] and [B]"
      )
    length = text.shape[1]
    if length > self.positions or (kind["pool"] == "last" and length != self.positions):
      most = "exactly" if kind["pool"] == "last" else "at most"
      raise ValueError(f"text has {length} tokens; expected {most} {self.positions}")
    words = nn.Embed(
      self.vocabulary_size, self.width, dtype=self.dtype, embedding_init=NORMAL, name="words"
    )
    positions = self.param("positions", NORMAL, (self.positions, self.width))
    x = words(text) + positions[:length].astype(self.dtype)
    block = functools.partial(
      Block,
      heads=self.heads,
      hidden=self.mlp_width,
      gelu=self.gelu,
      epsilon=self.epsilon,
      dtype=self.dtype,
    )
    mask = jnp.tril(jnp.ones((length, length), bool)) if kind["causal"] else None
    x = blocks(
      self, block, x, mask, layers=self.layers, remat=self.remat, trained=self.train_blocks
    )
    tokens = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(x)
    if kind["pool"] == "last":
      return tokens[:, -1], tokens
    return jnp.take_along_axis(tokens, text_length[:, None, None] - 1, axis=1)[:, 0], tokens


class TextTower(nn.Module):
  """Projects the pooled vector of a text transformer to the joint space.

  The transformer's variables are under "backbone", the projection's under "projection".

  Attributes:
    dim: width D of the joint space.  kind ... epsilon, remat, dtype: see TextTransformer.
    pad: id of padding, with which siglip's texts may begin.
    bias: of the projection.  normalize: "l2", "abs" or "none".
    trainable: False stops the gradient at the transformer's output.
  """

  dim: int
  kind: str
  vocabulary_size: int
  width: int = 512
  layers: int = 12
  heads: int = 8
  mlp_width: int = 2048
  positions: int = 77
  gelu: str = "quick"
  epsilon: float = 1e-5
  pad: int = 1
  bias: bool = False
  normalize: str = "l2"
  trainable: bool = True
  train_blocks: int = -1
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    names = TextTransformer.__dataclass_fields__.keys() - {"parent", "name"}
    self.backbone = TextTransformer(**{name: getattr(self, name) for name in names})
    self.projection = dense(self.dim, bias=self.bias, dtype=self.dtype)

  def __call__(
    self, text: Words, text_length: Lengths, *, train: bool = False, tokens: bool = False
  ) -> Encoded:
    """Encodes texts, see TextTransformer.

    Args:
      text: [B, L] int32.  text_length: [B] int32.  train: True in training.
      tokens: True returns the tokens.
    Returns:
      [B, D] float32, or Tokens [B, L, D] before they are normalised: only those of words, each
      through the projection of the pooled vector.
    """
    del train
    pooled, found = self.backbone(text, text_length)
    if not self.trainable:
      pooled, found = jax.lax.stop_gradient((pooled, found))
    x = self.projection(found if tokens else pooled)
    if not tokens:
      return normalize(x, self.normalize)
    mask = words_alone(text_length, text.shape[1], first=KINDS[self.kind]["first"])
    if KINDS[self.kind]["pool"] == "last":
      mask &= text != self.pad
    return Tokens(x.astype(jnp.float32), mask)
