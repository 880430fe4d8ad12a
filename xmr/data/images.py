"""Encoded images to uint8 crops, as torchvision makes them from PIL images."""

import io
import math
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from xmr.errors import UserError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
MAX_PIXELS = 89_478_485  # what Pillow calls a possible decompression bomb: 256 MiB of RGB


def decode(content, *, name):
  """Returns an encoded image as a loaded RGB PIL image.

  Args:
    content: bytes of a JPEG, PNG, WebP, BMP or GIF file.
    name: str, what to call it in errors.
  Raises:
    UserError: not an image, truncated, or of more than MAX_PIXELS pixels.
  """
  image = _open(content, name)
  try:
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
  except (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
  ) as error:
    raise UserError(
      f"image {name} is truncated or damaged: {error}; expected a whole image"
    ) from None


def verify(content, *, name):
  """Raises UserError where decode would; cheaper, as a JPEG is only decoded at an eighth of its
  size.
  """
  image = _open(content, name)
  image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
  try:
    image.load()
  except (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    MemoryError,
    Image.DecompressionBombError,
  ) as error:
    raise UserError(
      f"image {name} is truncated or damaged: {error}; expected a whole image"
    ) from None


def _open(content, name):
  try:
    with warnings.catch_warnings():
      warnings.simplefilter(
        "ignore", Image.DecompressionBombWarning
      )  # The check below refuses these.
      image = Image.open(io.BytesIO(content), formats=FORMATS)
  except Image.DecompressionBombError as error:
    raise UserError(
      f"image {name} is too large: {error}; expected at most {MAX_PIXELS:,} pixels"
    ) from None
  except (OSError, ValueError, SyntaxError, EOFError) as error:
    # Pillow names the buffer that it could not identify, which nobody knows.
    reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    raise UserError(f"image {name} is no {', '.join(FORMATS)} image{reason}") from None
  if image.width * image.height > MAX_PIXELS:
    raise UserError(
      f"image {name} is too large: {image.width} x {image.height} pixels; expected at most "
      f"{MAX_PIXELS:,} pixels"
    )
  return image


def train_crop(image, rng, *, size, min_area=0.08):
  """Returns a random part of an image at a fixed size, mirrored half of the time.

  The part covers min_area to 1 of the area (uniform) with a width 3/4 to 4/3 of its height (uniform
  in the logarithm), ten attempts, then the largest centred part with an allowed ratio; antialiased
  bilinear resize.

  Args:
    image: RGB PIL image.
    rng: numpy Generator.
    size: int, side of the result.
    min_area: float, 0.08 as released; scenes of a few small shapes want more.
  Returns:
    [size, size, 3] uint8.
  References:
    torchvision RandomResizedCrop and RandomHorizontalFlip at their defaults, as released by VSE++
    and IMC; the random numbers are our own.
  """
  crop = image.crop(_random_box(image.width, image.height, rng, min_area)).resize(
    (size, size), Image.Resampling.BILINEAR
  )
  if rng.random() < 0.5:
    crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
  return np.asarray(crop)


def _random_box(width, height, rng, min_area):
  low, high = 3 / 4, 4 / 3
  for _ in range(10):
    area = width * height * rng.uniform(min_area, 1.0)
    ratio = math.exp(rng.uniform(math.log(low), math.log(high)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
      return left, top, left + w, top + h
  w, h = width, height
  if width / height < low:
    h = round(w / low)
  elif width / height > high:
    w = round(h * high)
  left, top = (width - w) // 2, (height - h) // 2
  return left, top, left + w, top + h


def eval_crop(image, *, resize, size):
  """Returns the centre of an image whose shorter side was brought to `resize`, antialiased
  bilinear.

  Args:
    image: RGB PIL image.
    resize: int, pixels of the shorter side before the crop.
    size: int, side of the result, at most resize.
  Returns:
    [size, size, 3] uint8.
  Raises:
    UserError: size is larger than resize.
  References:
    torchvision Resize(256) and CenterCrop(224), as released by VSE++ and IMC.
  """
  if size > resize:
    raise UserError(
      f"config.data.image_size is {size}; expected at most config.data.resize, {resize}"
    )
  image = shorter_side(image, resize)
  left, top = round((image.width - size) / 2), round((image.height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def shorter_side(image, size):
  """Returns a PIL image whose shorter side was brought to `size` pixels, antialiased bilinear; the
  longer one is cut to whole pixels, as torchvision's Resize does.
  """
  short, long = min(image.size), max(image.size)
  if short == size:
    return image
  # In whole numbers: size / short, rounded first, loses a pixel at some sizes.
  other = size * long // short
  shape = (size, other) if image.width <= image.height else (other, size)
  return image.resize(shape, Image.Resampling.BILINEAR)
