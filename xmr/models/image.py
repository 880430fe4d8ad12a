"""Encoders of pixels: a small network to train from scratch, and pretrained backbones with a
projection.
"""

import functools
import inspect
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from xmr.models import efficientnet, resnet, vgg
from xmr.models.borders import Embeddings, Pixels
from xmr.models.features import dense
from xmr.models.normalize import normalize

# Statistics of ImageNet per channel, for pixels in [0, 1], with which torchvision's weights were
# trained.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

BACKBONES = {
  **{
    name: functools.partial(resnet.ResNet, blocks=blocks, bottleneck=bottleneck)
    for name, (blocks, bottleneck) in resnet.RESNETS.items()
  },
  "vgg19": vgg.VGG,
  **{
    f"efficientnet_v2_{size}": functools.partial(efficientnet.EfficientNetV2, stages=stages)
    for size, stages in efficientnet.STAGES.items()
  },
}


def backbone(name, *, batch_norm="frozen", remat=False, dtype=jnp.float32):
  """Builds a network of `BACKBONES`: (images [B, H, W, 3] float, *, train, grid) -> [B, features],
  or its grid.

  Args:
    name: a key of BACKBONES.
    batch_norm: "frozen" or "released", see `ResNet`; networks without BatchNorm ignore it.
    remat: recompute blocks in the backward pass.  dtype: of the computation.
  Returns:
    linen module; its property `features` is the width.
  """
  fields = {"batch_norm": batch_norm, "remat": remat, "dtype": dtype}
  known = inspect.signature(BACKBONES[name]).parameters
  return BACKBONES[name](**{key: value for key, value in fields.items() if key in known})


def standardize(image, *, dtype=jnp.float32):
  """Standardises bytes for a backbone: (image / 255 - mean) / std per channel.

  Args:
    image: [B, H, W, 3] uint8, RGB.  dtype: of the result; the arithmetic is float32.
  Returns:
    [B, H, W, 3] dtype.
  Raises:
    ValueError: another shape or type.
  """
  if image.ndim != 4 or image.shape[-1] != 3 or image.dtype != jnp.uint8:
    raise ValueError(
      f"image has shape {tuple(image.shape)} and type {image.dtype}; expected [B, H, W, 3] uint8 "
      "pixels"
    )
  mean, std = jnp.asarray(MEAN), jnp.asarray(STD)
  return ((image.astype(jnp.float32) / 255 - mean) / std).astype(dtype)


class ConvNet(nn.Module):
  """A small network for rendered scenes of 64 to 96 pixels, trained from scratch in minutes on a
  CPU.

  Patches of 4 x 4 pixels -> 32 -> 3 x 3 stride 2 -> 64 -> 3 x 3 stride 2 -> 128, each with
  GroupNorm and ReLU; the readout is a linear map of the whole grid and its mean, so that it sees
  where an object is as well as what it is.

  Attributes:
    dim: width D of the joint space.  bias: of the projection.  normalize: "l2", "abs" or "none".
    dtype: of the products; parameters are float32.
  """

  dim: int
  bias: bool = True
  normalize: str = "l2"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, image: Pixels, *, train: bool = False) -> Embeddings:
    """Encodes image: [B, H, W, 3] uint8, H and W multiples of 4, into [B, D] float32; `train`
    changes nothing.

    Raises:
      ValueError: another shape or type; the projection's parameters fit only one image size.
    """
    del train
    x = standardize(image, dtype=self.dtype)
    batch, height, width, _ = x.shape
    if height % 4 or width % 4:
      raise ValueError(f"image has {height} x {width} pixels; convnet expects multiples of 4")
    # On a CPU a matrix product over reshaped patches is several times as fast as a convolution.
    x = x.reshape(batch, height // 4, 4, width // 4, 4, 3).transpose(0, 1, 3, 2, 4, 5)
    x = nn.Dense(32, dtype=self.dtype, name="patch")(x.reshape(batch, height // 4, width // 4, 48))
    x = nn.relu(nn.GroupNorm(8, dtype=self.dtype, name="norm_0")(x))
    for i, channels in enumerate((64, 128), start=1):
      x = nn.Conv(channels, (3, 3), (2, 2), padding=1, dtype=self.dtype, name=f"conv_{i}")(x)
      x = nn.relu(nn.GroupNorm(8, dtype=self.dtype, name=f"norm_{i}")(x))
    x = jnp.concatenate([x.reshape(batch, -1), x.mean((1, 2))], axis=-1)
    return normalize(
      dense(self.dim, bias=self.bias, dtype=self.dtype, name="projection")(x), self.normalize
    )


class PretrainedEncoder(nn.Module):
  """Projects the feature of a pretrained backbone to the joint space.

  f(x) = n(u(backbone(x)) W + b), where u(x) = x / (||x|| + 1e-12) with `input_norm`, else x, and n
  is `normalize`. The backbone's variables are under "backbone", W and b under "projection".

  Attributes:
    arch: a key of `BACKBONES`.  dim: width D of the joint space.  bias: of the projection.
    input_norm: scale features to unit rows first.  normalize: "l2", "abs" or "none".
    trainable: False stops the gradient at the backbone's output, which saves its backward pass.
    batch_norm, remat: see `ResNet`.
    dtype: of the computation; parameters, statistics and norms are float32.
  References:
    Faghri et al., VSE++, BMVC 2018, and Chen et al., IMC, ICIP 2022, as released
    (`EncoderImageFull`).
  """

  arch: str
  dim: int
  bias: bool = True
  input_norm: bool = True
  normalize: str = "l2"
  trainable: bool = True
  batch_norm: str = "frozen"
  remat: bool = False
  dtype: Any = jnp.float32

  def setup(self):
    self.backbone = backbone(
      self.arch, batch_norm=self.batch_norm, remat=self.remat, dtype=self.dtype
    )
    self.projection = dense(self.dim, bias=self.bias, dtype=self.dtype)

  def features(self, image, *, train=False, grid=False):
    """Returns the backbone's features of image [B, H, W, 3] uint8: [B, F] float, or its grid
    [B, H', W', F].
    """
    # A frozen network gives the same features in training, unless BatchNorm is "released".
    train = train and (self.trainable or self.batch_norm == "released")
    return self.backbone(standardize(image, dtype=self.dtype), train=train, grid=grid)

  def __call__(self, image: Pixels, *, train: bool = False) -> Embeddings:
    """Encodes image: [B, H, W, 3] uint8 into [B, D] float32; ValueError: another shape or type."""
    x = self.features(image, train=train)
    if not self.trainable:
      x = jax.lax.stop_gradient(x)
    if self.input_norm:
      x = normalize(x, "l2")
    return normalize(self.projection(x), self.normalize)
