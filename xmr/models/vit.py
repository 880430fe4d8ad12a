"""Image towers: the vision transformers of CLIP, SigLIP (and SigLIP 2 of a fixed size) and DINOv2.

They differ in the fields of their release's config.json and in the choices in `KINDS`.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmr.models.attention import NORMAL, Attention, Block, FeedForward
from xmr.models.borders import Encoded, Pixels
from xmr.models.features import dense
from xmr.models.loop import blocks
from xmr.models.normalize import normalize
from xmr.models.positions import resized
from xmr.ops.alignment import Tokens

# Choices besides sizes: a class token (without it, attention pools), a norm before the first
# block, a bias of the patch embedding, and learned factors of the branches.
KINDS = {
  "clip": {"class_token": True, "pre_norm": True, "patch_bias": False, "scale": False},
  "siglip": {"class_token": False, "pre_norm": False, "patch_bias": True, "scale": False},
  "dinov2": {"class_token": True, "pre_norm": False, "patch_bias": True, "scale": True},
}


class AttentionPool(nn.Module):
  """SigLIP's pooling: a learned query attends to the tokens; y = a + mlp(norm(a)), a = its answer.

  Call: tokens [B, T, W] -> [B, W].
  """

  heads: int
  hidden: int
  gelu: str
  epsilon: float
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, tokens):
    width = tokens.shape[-1]
    probe = self.param("probe", NORMAL, (1, 1, width)).astype(self.dtype)
    probe = jnp.broadcast_to(probe, (tokens.shape[0], 1, width))
    y = Attention(self.heads, self.dtype, name="attention")(probe, tokens)
    z = nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name="norm")(y)
    return (y + FeedForward(self.hidden, self.gelu, self.dtype, name="mlp")(z))[:, 0]


class ViT(nn.Module):
  """A vision transformer: patches, position embeddings, blocks, a norm, and one pooled vector.

  Attributes:
    kind: a key of KINDS.  width, layers, heads, mlp_width: sizes in units.
    patch: pixels of a patch's side.
    grid: patches of a side in pretraining, each with a position embedding; other image sizes
      interpolate them.
    rest: pixels of a side in pretraining beyond the last patch, which are cut off.
    registers: tokens besides the class token (DINOv2 with registers).
    gelu: a key of attention.GELU.  epsilon: of the norms.
    antialias: of interpolated position embeddings, see positions.cubic_matrix.
    train_blocks: train only the last so many blocks and what follows them; -1 trains all.
    remat: recompute blocks in the backward pass.  dtype: of the computation.
  Call:
    image: [B, H, W, 3] float, standardised; the patch divides H and W.
  Returns:
    pooled: [B, width].
    tokens: [B, T, width], the norm's output: class token and registers, where there are any, and
      patches row by row.
  Raises:
    ValueError: an image size that the patch does not divide.
  References:
    Radford et al., CLIP, 2021; Zhai et al., SigLIP, 2023; Oquab et al., DINOv2, 2023; Darcet et
    al., Vision Transformers Need Registers, 2023. Authors' code as in transformers.
  """

  kind: str
  width: int = 768
  layers: int = 12
  heads: int = 12
  mlp_width: int = 3072
  patch: int = 16
  grid: int = 14
  rest: int = 0
  registers: int = 0
  gelu: str = "quick"
  epsilon: float = 1e-5
  antialias: bool = False
  train_blocks: int = -1
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image):
    kind, batch = KINDS[self.kind], image.shape[0]
    height, width = image.shape[1] // self.patch, image.shape[2] // self.patch
    trained = self.grid * self.patch + self.rest
    whole = (height * self.patch, width * self.patch)
    if image.shape[1:3] not in (whole, (trained, trained)):
      raise ValueError(
        f"image has {image.shape[1]} x {image.shape[2]} pixels; expected multiples of the patch, "
        f"{self.patch}"
      )
    fields = {
      "heads": self.heads,
      "hidden": self.mlp_width,
      "gelu": self.gelu,
      "epsilon": self.epsilon,
      "dtype": self.dtype,
    }

    def norm(name):
      return nn.LayerNorm(epsilon=self.epsilon, dtype=self.dtype, name=name)

    x = nn.Conv(
      self.width,
      (self.patch, self.patch),
      (self.patch, self.patch),
      padding="VALID",
      use_bias=kind["patch_bias"],
      dtype=self.dtype,
      kernel_init=NORMAL,
      name="patches",
    )(image[:, : whole[0], : whole[1]].astype(self.dtype)).reshape(
      batch, height * width, self.width
    )
    front = int(kind["class_token"])
    table = self.param("positions", NORMAL, (front + self.grid**2, self.width))
    places = resized(table[front:], height, width, antialias=self.antialias)
    x = x + places.astype(self.dtype)
    if front:
      special = [self.param("class_token", NORMAL, (1, self.width)) + table[:1]]
      if self.registers:
        special.append(self.param("registers", NORMAL, (self.registers, self.width)))
      special = jnp.concatenate(special).astype(self.dtype)
      x = jnp.concatenate([jnp.broadcast_to(special, (batch, *special.shape)), x], axis=1)
    if kind["pre_norm"]:
      x = norm("pre_norm")(x)
    block = functools.partial(Block, scale=kind["scale"], **fields)
    x = blocks(self, block, x, layers=self.layers, remat=self.remat, trained=self.train_blocks)
    tokens = norm("norm")(x)
    if front:
      return tokens[:, 0], tokens
    return AttentionPool(**fields, name="pool")(tokens), tokens


class ImageTower(nn.Module):
  """Projects the pooled vector of a vision transformer to the joint space.

  The transformer's variables are under "backbone", the projection's under "projection".

  Attributes:
    dim: width D of the joint space.  kind ... epsilon, remat, dtype: see ViT.
    project: False if the pooled vector is the embedding (SigLIP); D is then its width.
    bias: of the projection.  normalize: "l2", "abs" or "none".
    trainable: False stops the gradient at the transformer's output (LiT).
    mean, std: of pixels in [0, 1], one number per channel.
  """

  dim: int
  kind: str
  width: int = 768
  layers: int = 12
  heads: int = 12
  mlp_width: int = 3072
  patch: int = 16
  grid: int = 14
  rest: int = 0
  registers: int = 0
  gelu: str = "quick"
  epsilon: float = 1e-5
  antialias: bool = False
  mean: tuple = (0.48145466, 0.4578275, 0.40821073)
  std: tuple = (0.26862954, 0.26130258, 0.27577711)
  project: bool = True
  bias: bool = False
  normalize: str = "l2"
  trainable: bool = True
  train_blocks: int = -1
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    names = ViT.__dataclass_fields__.keys() - {"parent", "name"}
    self.backbone = ViT(**{name: getattr(self, name) for name in names})
    self.projection = dense(self.dim, bias=self.bias, dtype=self.dtype) if self.project else None
    if not self.project and self.dim != self.width:
      raise ValueError(
        f"config.model.dim is {self.dim}; expected {self.width}, the width of a tower without "
        "projection"
      )

  def __call__(self, image: Pixels, *, train: bool = False, tokens: bool = False) -> Encoded:
    """Encodes images.

    Args:
      image: [B, H, W, 3] uint8.  train: True in training.  tokens: True returns the tokens.
    Returns:
      [B, D] float32, or Tokens [B, T, D] before they are normalised: the patches row by row,
      without class token and registers, each through the projection of the pooled vector.
    Raises:
      ValueError: another shape or type.
    """
    del train
    pooled, found = self.backbone(self._standardised(image))
    if not self.trainable:
      pooled, found = jax.lax.stop_gradient((pooled, found))
    x = found[:, self.registers + KINDS[self.kind]["class_token"] :] if tokens else pooled
    if self.projection is not None:
      x = self.projection(x)
    if tokens:
      return Tokens(x.astype(jnp.float32), jnp.ones(x.shape[:2], bool))
    return normalize(x, self.normalize)

  def _standardised(self, image):
    if image.ndim != 4 or image.shape[-1] != 3 or image.dtype != jnp.uint8:
      raise ValueError(
        f"image has shape {tuple(image.shape)} and type {image.dtype}; expected [B, H, W, 3] uint8 "
        "pixels"
      )
    mean, std = jnp.asarray(self.mean), jnp.asarray(self.std)
    return (image.astype(jnp.float32) / 255 - mean) / std
