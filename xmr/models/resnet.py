"""ResNet v1.5, layer by layer as in torchvision, so that its weights fit."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from xmr.models.loop import repeat

# Numbers of blocks of the four stages, and whether they are bottlenecks (1x1, 3x3, 1x1 with four
# times the channels).
RESNETS = {
  "resnet18": ((2, 2, 2, 2), False),
  "resnet34": ((3, 4, 6, 3), False),
  "resnet50": ((3, 4, 6, 3), True),
  "resnet101": ((3, 4, 23, 3), True),
  "resnet152": ((3, 8, 36, 3), True),
}


KERNEL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Pointwise(nn.Module):
  """A 1x1 convolution as a matrix product, which is up to a third faster on CPUs.

  Attributes:
    channels: of the result.  stride: of both sides.
    dtype: of the product; the kernel [1, 1, C, channels] is float32.
  """

  channels: int
  stride: int = 1
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    """x [B, H, W, C] -> [B, ceil(H / stride), ceil(W / stride), channels]."""
    kernel = self.param("kernel", KERNEL, (1, 1, x.shape[-1], self.channels))
    x = x[:, :: self.stride, :: self.stride]
    return jnp.dot(x.astype(self.dtype), kernel[0, 0].astype(self.dtype))


def _conv(channels, kernel, stride=1, *, dtype, name):
  if kernel == 1:
    return Pointwise(channels, stride, dtype, name=name)
  # Explicit padding: with a stride of 2, SAME pads the opposite side from PyTorch.
  return nn.Conv(
    channels,
    (kernel, kernel),
    (stride, stride),
    padding=kernel // 2,
    use_bias=False,
    dtype=dtype,
    kernel_init=KERNEL,
    name=name,
  )


class Block(nn.Module):
  """Residual block: relu(f(x) + shortcut(x)), the shortcut a strided 1x1 convolution where the
  shape changes.

  Attributes:
    width: channels inside; the output has 4 * width in a bottleneck, else width.
    stride: of the first 3x3 convolution (v1.5: in a bottleneck that is the second convolution).
    bottleneck: which of the two kinds.
    norm: function from a name to a BatchNorm layer.  dtype: of the convolutions.
  """

  width: int
  stride: int
  bottleneck: bool
  norm: Any
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    conv = functools.partial(_conv, dtype=self.dtype)
    if self.bottleneck:
      layers = ((self.width, 1, 1), (self.width, 3, self.stride), (4 * self.width, 1, 1))
    else:
      layers = ((self.width, 3, self.stride), (self.width, 3, 1))
    y = x
    for i, (channels, kernel, stride) in enumerate(layers, start=1):
      y = self.norm(name=f"bn{i}")(conv(channels, kernel, stride, name=f"conv{i}")(y))
      if i < len(layers):
        y = nn.relu(y)
    if x.shape != y.shape:
      x = self.norm(name="downsample_1")(conv(y.shape[-1], 1, self.stride, name="downsample_0")(x))
    return nn.relu(x + y)


class ResNet(nn.Module):
  """ResNet v1.5 without its classifier: the last map averaged over the grid, 512 or 2048 values per
  image.

  Parameters and statistics carry torchvision's names with `_` before a number: layer1_0/conv1,
  layer2_0/downsample_0. BatchNorm has eps 1e-5 and keeps 0.9 of its running statistics. PyTorch's
  running variance is n / (n - 1) times the variance used for normalising, with n = B H W; ours is
  that variance itself, which differs by less than 1e-3 from B = 32 on.

  Attributes:
    blocks: number of blocks of the four stages.  bottleneck: the kind of block, see `RESNETS`.
    width: channels of the stem, 64 as published.
    batch_norm: "frozen" always uses the running statistics; "released" uses batch statistics in
      training and updates the running ones, even if the parameters are frozen (VSE++ and IMC).
    dtype: of the computation; parameters and statistics stay float32.
    remat: keep only the inputs of blocks and recompute the rest in the backward pass.
  References:
    He et al., CVPR 2016, table 1; torchvision's resnet{18,34,50,101,152}, stride on the 3x3
    convolution.
  """

  blocks: tuple
  bottleneck: bool
  width: int = 64
  batch_norm: str = "frozen"
  dtype: Any = jnp.float32
  remat: bool = False

  @property
  def features(self):
    return self.width * 2 ** (len(self.blocks) - 1) * (4 if self.bottleneck else 1)

  @nn.compact
  def __call__(self, images, *, train=False, grid=False):
    """Computes image features.

    Args:
      images: [B, H, W, 3] float, standardised with ImageNet's mean and deviation.
      train: use batch statistics if batch_norm is "released" (with mutable=["batch_stats"]).
      grid: return the map before the average.
    Returns:
      [B, features] of `dtype`, or with grid [B, H / 32, W / 32, features] (7 x 7 for 224 pixels).
    Raises:
      ValueError: another shape, or an unknown batch_norm.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
      raise ValueError(f"images have shape {tuple(images.shape)}; expected [B, H, W, 3]")
    if self.batch_norm not in ("frozen", "released"):
      raise ValueError(f"batch_norm is {self.batch_norm!r}; expected frozen or released")
    norm = functools.partial(
      nn.BatchNorm,
      use_running_average=not (train and self.batch_norm == "released"),
      momentum=0.9,
      epsilon=1e-5,
      dtype=self.dtype,
    )
    x = _conv(self.width, 7, 2, dtype=self.dtype, name="conv1")(images.astype(self.dtype))
    x = nn.relu(norm(name="bn1")(x))
    around: Any = ((1, 1), (1, 1))  # Flax's type is that of the default, a str.
    x = nn.max_pool(x, (3, 3), (2, 2), padding=around)
    for stage, count in enumerate(self.blocks):
      block = functools.partial(
        Block, self.width * 2**stage, bottleneck=self.bottleneck, norm=norm, dtype=self.dtype
      )
      names = [f"layer{stage + 1}_{i}" for i in range(count)]
      first = nn.remat(Block) if self.remat else Block
      first = functools.partial(first, *block.args, **block.keywords)
      x = first(stride=2 if stage else 1, name=names[0])(x)
      # Training without remat uses no loop, in which XLA on CPUs computes the gradients of
      # convolutions six times slower.
      if count > 1 and (self.remat or not train) and not self.is_initializing():
        x = repeat(self, block(stride=1, parent=None), names[1:], x, remat=self.remat)
        continue
      for name in names[1:]:
        x = block(stride=1, name=name)(x)
    return x if grid else x.mean((1, 2))


def torchvision_name(path: Sequence[str]) -> str:
  """Name in torchvision's state dict of one of our variables, a path of modules and a leaf."""
  *modules, leaf = path
  theirs = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
  return ".".join([*(module.replace("_", ".") for module in modules), theirs.get(leaf, leaf)])
