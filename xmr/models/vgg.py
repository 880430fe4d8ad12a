"""VGG19 up to fc7, the image feature of VSE++'s default and of the FG-CMIR group."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

# Channels of the 3x3 convolutions; "pool" halves height and width.
VGG19 = (
  64,
  64,
  "pool",
  128,
  128,
  "pool",
  *[256] * 4,
  "pool",
  *[512] * 4,
  "pool",
  *[512] * 4,
  "pool",
)
GRID = 7


def _bins(size):
  """Averaging matrix [7, size] of PyTorch's adaptive pooling: bin i covers floor(i s / 7) to
  ceil((i + 1) s / 7).
  """
  weights = np.zeros((GRID, size), np.float32)
  for i in range(GRID):
    start, stop = i * size // GRID, -(-(i + 1) * size // GRID)
    weights[i, start:stop] = 1 / (stop - start)
  return weights


class VGG(nn.Module):
  """VGG19 without its classifier: relu7, 4096 values per image.

  relu(fc7(relu(fc6(flatten(pool_7x7(convolutions(x))))))), dropout 0.5 after fc6 and fc7 in
  training.

  Args:
    layers: channels of each convolution and "pool".
    hidden: width of fc6 and fc7, 4096 as released.
    dtype: of the computation; parameters stay float32.
    remat: recompute each block in the backward pass.
  Call:
    images: [B, H, W, 3] float, standardised with ImageNet's mean and deviation; H, W at least 32.
    train: dropout on (rng "dropout").  grid: return the [B, 7, 7, 512] map before fc6 instead.
  Returns:
    [B, hidden] non-negative features.
  References:
    Simonyan and Zisserman, ICLR 2015, configuration E; layer order and names as in torchvision.
  """

  layers: tuple = VGG19
  hidden: int = 4096
  dtype: jnp.dtype = jnp.float32
  remat: bool = False

  @property
  def features(self):
    return self.hidden

  @nn.compact
  def __call__(self, images, *, train=False, grid=False):
    if images.ndim != 4 or images.shape[-1] != 3 or min(images.shape[1:3]) < 32:
      raise ValueError(
        f"images have shape {images.shape}; expected [B, H, W, 3] with H and W at least 32"
      )
    he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    conv = nn.remat(nn.Conv) if self.remat else nn.Conv
    x = images.astype(self.dtype)
    # The index counts convolutions, ReLUs and poolings, as in torchvision's `features`.
    index = 0
    for layer in self.layers:
      if layer == "pool":
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        index += 1
      else:
        x = nn.relu(
          conv(
            layer, (3, 3), padding=1, kernel_init=he, dtype=self.dtype, name=f"features_{index}"
          )(x)
        )
        index += 2
    if x.shape[1:3] != (GRID, GRID):
      x = jnp.einsum("ih,jw,bhwc->bijc", _bins(x.shape[1]), _bins(x.shape[2]), x).astype(self.dtype)
    if grid:
      return x
    # PyTorch flattens channels first.
    x = x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1)
    for name in ("fc6", "fc7"):
      x = nn.relu(
        nn.Dense(
          self.hidden, dtype=self.dtype, kernel_init=nn.initializers.normal(0.01), name=name
        )(x)
      )
      x = nn.Dropout(0.5, deterministic=not train)(x)
    return x


def torchvision_name(path):
  """Name in torchvision's vgg19 of one of our parameters, (module, leaf)."""
  module, leaf = path
  leaf = {"kernel": "weight", "bias": "bias"}[leaf]
  module = {"fc6": "classifier.0", "fc7": "classifier.3"}.get(module, module.replace("_", "."))
  return f"{module}.{leaf}"


def timm_name(path):
  """Name of one of our parameters in timm's vgg19, which stores fc6 and fc7 as convolutions."""
  return (
    torchvision_name(path)
    .replace("classifier.0", "pre_logits.fc1")
    .replace("classifier.3", "pre_logits.fc2")
  )
