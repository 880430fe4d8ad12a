"""EfficientNetV2-S, -M and -L as in torchvision and in the TensorFlow release (FullHN's image
features).
"""

import dataclasses
import functools

import flax.linen as nn
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Stage:
  """A sequence of equal blocks: the first has the stride, the rest keep size and channels."""

  fused: bool  # one dense convolution instead of 1x1 and depthwise, and no squeeze-and-excite
  expand: int  # hidden channels per input channel
  stride: int
  channels: int
  depth: int


def _stages(*rows):
  return tuple(
    Stage(bool(fused), expand, stride, channels, depth)
    for fused, expand, stride, channels, depth in rows
  )


STAGES = {
  "s": _stages(
    (1, 1, 1, 24, 2),
    (1, 4, 2, 48, 4),
    (1, 4, 2, 64, 4),
    (0, 4, 2, 128, 6),
    (0, 6, 1, 160, 9),
    (0, 6, 2, 256, 15),
  ),
  "m": _stages(
    (1, 1, 1, 24, 3),
    (1, 4, 2, 48, 5),
    (1, 4, 2, 80, 5),
    (0, 4, 2, 160, 7),
    (0, 6, 1, 176, 14),
    (0, 6, 2, 304, 18),
    (0, 6, 1, 512, 5),
  ),
  "l": _stages(
    (1, 1, 1, 32, 4),
    (1, 4, 2, 64, 7),
    (1, 4, 2, 96, 7),
    (0, 4, 2, 192, 10),
    (0, 6, 1, 224, 19),
    (0, 6, 2, 384, 25),
    (0, 6, 1, 640, 7),
  ),
}


class ConvNorm(nn.Module):
  """Convolution without bias, batch normalisation (epsilon 1e-3), SiLU where `activate`."""

  channels: int
  kernel: int = 1
  stride: int = 1
  depthwise: bool = False
  activate: bool = True
  same: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, batch_statistics):
    x = nn.Conv(
      self.channels,
      (self.kernel, self.kernel),
      strides=self.stride,
      use_bias=False,
      dtype=self.dtype,
      # With a stride, TensorFlow pads more at the bottom and right; PyTorch pads all sides equally.
      padding="SAME" if self.same else self.kernel // 2,
      feature_group_count=x.shape[-1] if self.depthwise else 1,
      kernel_init=nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
      name="conv",
    )(x)
    x = nn.BatchNorm(not batch_statistics, momentum=0.9, epsilon=1e-3, dtype=self.dtype, name="bn")(
      x
    )
    return nn.silu(x) if self.activate else x


class Block(nn.Module):
  """(Fused) inverted bottleneck with a residual where shapes agree; `drop` is the probability of
  skipping it in training.
  """

  stage: Stage
  stride: int
  drop: float = 0.0
  same: bool = False
  batch_norm: str = "frozen"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, train=False):
    stage, inputs = self.stage, x.shape[-1]
    hidden = inputs * stage.expand
    conv = functools.partial(ConvNorm, same=self.same, dtype=self.dtype)
    statistics = train and self.batch_norm == "released"
    residual = x
    if stage.fused and stage.expand == 1:
      x = conv(stage.channels, 3, self.stride, name="expand")(x, batch_statistics=statistics)
    elif stage.fused:
      x = conv(hidden, 3, self.stride, name="expand")(x, batch_statistics=statistics)
      x = conv(stage.channels, activate=False, name="project")(x, batch_statistics=statistics)
    else:
      x = conv(hidden, name="expand")(x, batch_statistics=statistics)
      x = conv(hidden, 3, self.stride, depthwise=True, name="depthwise")(
        x, batch_statistics=statistics
      )
      gate = x.mean((1, 2), keepdims=True)
      gate = nn.silu(nn.Conv(max(1, inputs // 4), (1, 1), dtype=self.dtype, name="squeeze")(gate))
      x = x * nn.sigmoid(nn.Conv(hidden, (1, 1), dtype=self.dtype, name="excite")(gate))
      x = conv(stage.channels, activate=False, name="project")(x, batch_statistics=statistics)
    if self.stride == 1 and inputs == stage.channels:
      # One draw per image; the survivors are scaled by 1 / (1 - drop).
      x = residual + nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=not train)(x)
    return x


class EfficientNetV2(nn.Module):
  """EfficientNetV2 without its classifier: the last 1x1 convolution averaged over the grid, 1280
  values per image.

  Args:
    stages: one of STAGES.
    same: TensorFlow's padding (weights of the original release) instead of PyTorch's.
    drop: probability of skipping the last block in training; block i of n has drop * i / n.
    batch_norm: "frozen" (running statistics always) or "released" (batch statistics in training).
    dtype: of the computation; parameters stay float32.
    remat: recompute each block in the backward pass.
  Call:
    images: [B, H, W, 3] float, normalised as the weights expect: ImageNet mean and deviation for
      torchvision's, x / 127.5 - 1 for the TensorFlow release.
    train: skip blocks at random (rng "dropout").  grid: return the [B, H/32, W/32, 1280] map.
  Returns:
    [B, 1280] features.
  References:
    Tan and Le, EfficientNetV2, ICML 2021, table 4; torchvision's efficientnet_v2_{s,m,l} layer by
    layer.
  """

  stages: tuple = STAGES["s"]
  same: bool = False
  drop: float = 0.2
  head: int = 1280
  batch_norm: str = "frozen"
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @property
  def features(self):
    return self.head

  @nn.compact
  def __call__(self, images, *, train=False, grid=False):
    if images.ndim != 4 or images.shape[-1] != 3:
      raise ValueError(f"images have shape {images.shape}; expected [B, H, W, 3]")
    if self.batch_norm not in ("frozen", "released"):
      raise ValueError(f"batch_norm is {self.batch_norm!r}; expected 'frozen' or 'released'")
    statistics = train and self.batch_norm == "released"
    block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
    conv = functools.partial(ConvNorm, same=self.same, dtype=self.dtype)
    # The stem is as wide as the first stage.
    x = conv(self.stages[0].channels, 3, 2, name="stem")(
      images.astype(self.dtype), batch_statistics=statistics
    )
    total, done = sum(stage.depth for stage in self.stages), 0
    for number, stage in enumerate(self.stages):
      for i in range(stage.depth):
        x = block(
          stage,
          stage.stride if i == 0 else 1,
          self.drop * done / total,
          self.same,
          self.batch_norm,
          self.dtype,
          name=f"stage{number}_block{i}",
        )(x, train)
        done += 1
    x = conv(self.head, name="head")(x, batch_statistics=statistics)
    return x if grid else x.mean((1, 2))


_LEAF = {
  "kernel": "weight",
  "bias": "bias",
  "scale": "weight",
  "mean": "running_mean",
  "var": "running_var",
}


def _place(path):
  """(stage or None, block or None, layer, "conv" | "bn", leaf) of one of our parameters."""
  *modules, leaf = path
  if not modules[0].startswith("stage"):
    return None, None, modules[0], modules[1], _LEAF[leaf]
  stage, block = modules[0].removeprefix("stage").split("_block")
  return (
    int(stage),
    int(block),
    modules[1],
    modules[2] if len(modules) == 3 else "conv",
    _LEAF[leaf],
  )


def torchvision_name(path, *, stages):
  """Name in torchvision's efficientnet_v2_* of one of our variables, a path of modules and leaf."""
  stage, block, layer, part, leaf = _place(path)
  part = {"conv": "0", "bn": "1"}[part]
  if stage is None:
    return f"features.{0 if layer == 'stem' else len(stages) + 1}.{part}.{leaf}"
  prefix = f"features.{stage + 1}.{block}.block"
  if layer in ("squeeze", "excite"):
    return f"{prefix}.2.{'fc1' if layer == 'squeeze' else 'fc2'}.{leaf}"
  position = {"expand": 0, "depthwise": 1, "project": 1 if stages[stage].fused else 3}[layer]
  return f"{prefix}.{position}.{part}.{leaf}"


def timm_name(path, *, stages):
  """Name in timm's tf_efficientnetv2_* of one of our variables."""
  stage, block, layer, part, leaf = _place(path)
  if stage is None:
    names = {"stem": ("conv_stem", "bn1"), "head": ("conv_head", "bn2")}
    return f"{names[layer][part == 'bn']}.{leaf}"
  prefix = f"blocks.{stage}.{block}"
  if layer in ("squeeze", "excite"):
    return f"{prefix}.se.{'conv_reduce' if layer == 'squeeze' else 'conv_expand'}.{leaf}"
  if stages[stage].fused:
    names = {
      "expand": ("conv" if stages[stage].expand == 1 else "conv_exp", "bn1"),
      "project": ("conv_pwl", "bn2"),
    }
  else:
    names = {
      "expand": ("conv_pw", "bn1"),
      "depthwise": ("conv_dw", "bn2"),
      "project": ("conv_pwl", "bn3"),
    }
  return f"{prefix}.{names[layer][part == 'bn']}.{leaf}"
