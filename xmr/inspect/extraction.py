"""Networks that turn images into features: converted backbones and the image encoders of runs."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from xmr.data.images import INTERPOLATIONS, eval_crop, shorter_side
from xmr.errors import UserError
from xmr.inspect.loading import load
from xmr.interop import weights as weight_files
from xmr.models import convert, image
from xmr.models.dual_encoder import gives_tokens


@dataclasses.dataclass(frozen=True)
class Network:
  """A network that computes features.

  Attributes:
    apply: (variables, pixels [N, S, S, 3] uint8) -> [N, F], or [N, H, W, F] of a grid.
    variables: NumPy.  cut: size, resize, fit and interpolation, as of images.eval_crop.
    manifest: what manifest.json says of it.
  """

  apply: Callable
  variables: Any
  cut: Mapping[str, Any]
  manifest: Mapping[str, Any]


def of_backbone(kind, path, data, *, grid):
  """The Network of a converted file.

  Args:
    kind: one of convert.IMAGE_KINDS.  path: safetensors file.  data: config.data.
    grid: keep the last feature map.
  Raises:
    UserError: an unknown kind, or a file of another one.
  """
  if kind not in convert.IMAGE_KINDS:
    raise UserError(f"--backbone is {kind!r}; expected one of {', '.join(convert.IMAGE_KINDS)}")
  variables, metadata = load_weights(kind, path)
  scale, cut = scale_of(kind), {"size": data.image_size, "resize": data.resize}
  return Network(
    apply=backbone_of(convert.kind(kind).module(), grid, scale),
    variables=variables,
    cut=cut,
    manifest={
      "backbone": kind,
      "weights": pathlib.Path(path).name,
      "source": metadata.get("source", ""),
      "source_sha256": metadata.get("sha256", ""),
      "resize": data.resize,
      "crop": data.image_size,
      "mean": list(scale[0]),
      "std": list(scale[1]),
    },
  )


@functools.cache
def backbone_of(module, grid, scale):
  """(variables, pixels) -> features of a backbone; each has one function, and so one program."""
  mean, deviation = (jnp.array(numbers, jnp.float32) for numbers in scale)

  def apply(variables, pixels):
    x = (pixels.astype(jnp.float32) / 255 - mean) / deviation
    return module.apply(variables, x, grid=grid)

  return apply


def of_run(workdir, *, grid):
  """The Network of a run's image encoder: the run's own embeddings, or its tokens in rows.

  Args:
    workdir: folder of a run.  grid: keep the tokens, which are the patches of a tower.
  Raises:
    UserError: no run, a run on features, or no tokens in the encoder where `grid` asks for them.
  """
  run = load(workdir)
  data = run.config.data
  if data.image != "pixels":
    raise UserError(f"{workdir} reads image {data.image}; expected a run on pixels")
  if grid and not gives_tokens(run.model.image_encoder):
    raise UserError(
      f"--grid: {workdir} has no tokens; its image encoder is {run.config.model.image.name}"
    )

  def apply(variables, pixels):
    if not grid:
      return run.model.apply(variables, pixels, method="encode_image")
    x = run.model.apply(variables, pixels, method="image_tokens").x
    side = round(x.shape[1] ** 0.5)
    return x.reshape(len(x), side, side, -1)

  cut = {"resize": data.resize, "fit": data.fit, "interpolation": data.interpolation}
  return Network(
    apply=apply,
    variables=run.variables,
    cut=cut | {"size": data.image_size},
    manifest={
      "run": pathlib.Path(workdir).resolve().name,
      "step": int(run.step),
      "fingerprint": run.fingerprint,
      "crop": data.image_size,
      **cut,
    },
  )


def views(picture, *, size, resize, average, fit="crop", interpolation="bilinear"):
  """Crops of one image.

  Args:
    picture: RGB PIL image.  size, resize, fit, interpolation: as of images.eval_crop.
    average: "none": the centre crop; "flip": the centre and its mirror image; "ten_crop": the four
      corners and the centre, then their mirror images.
  Returns:
    [V, size, size, 3] uint8, V = 1, 2 or 10; the second half mirrors the first.
  Raises:
    UserError: "ten_crop" of an image that is stretched to its size.
  """
  crops = [eval_crop(picture, resize=resize, size=size, fit=fit, interpolation=interpolation)]
  if average == "none":
    return np.stack(crops)
  if average == "ten_crop":
    if fit == "stretch":
      raise UserError("--average=ten_crop: this run stretches images and cuts none; use none, flip")
    whole = np.asarray(shorter_side(picture, resize, INTERPOLATIONS[interpolation]))
    height, width = whole.shape[:2]
    corners = [(0, 0), (0, width - size), (height - size, 0), (height - size, width - size)]
    crops = [whole[top : top + size, left : left + size] for top, left in corners] + crops
  stacked = np.stack(crops)
  return np.concatenate([stacked, stacked[:, :, ::-1]])


@functools.cache
def averaging(apply, *, grid):
  """Compiles (variables, pixels [B, V, S, S, 3] uint8) -> [B, ...] float32, the mean over V views.

  apply, grid: as of Network.
  """

  def encode(variables, pixels):
    count = pixels.shape[1]
    x = apply(variables, pixels.reshape(-1, *pixels.shape[2:])).astype(jnp.float32)
    x = x.reshape(-1, count, *x.shape[1:])
    if grid and count == 2:
      # The mirror image has left and right exchanged.
      x = jnp.stack([x[:, 0], x[:, 1, :, ::-1]], axis=1)
    return x.mean(1)

  return jax.jit(encode)


def scale_of(kind):
  """Returns (mean, deviation) of pixels in [0, 1] for a kind of weights.

  TensorFlow's release maps pixels to -1..1.
  """
  if kind.startswith("tf_"):
    return (0.5,) * 3, (0.5,) * 3
  return image.MEAN, image.STD


def load_weights(kind, path):
  """The variables of a backbone from a converted file; UserError where it is of another kind."""
  wrapped = {
    name: {"image_encoder": {"backbone": tree}} for name, tree in convert.shapes(kind).items()
  }
  loaded = weight_files.load_backbone(path, wrapped)
  with safetensors.safe_open(path, framework="numpy") as file:
    metadata = file.metadata() or {}
  if metadata.get("kind", kind) != kind:
    raise UserError(f"{path}: holds {metadata['kind']}; --backbone says {kind}")
  return {name: tree["image_encoder"]["backbone"] for name, tree in loaded.items()}, metadata
