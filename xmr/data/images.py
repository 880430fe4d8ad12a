"""Encoded images to uint8 crops, as torchvision makes them from PIL images."""

import contextlib
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
  with _whole(name):
    image.load()
    if image.mode.startswith("I;16"):  # Pillow would cut them off at 255: a white image.
      image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def verify(content, *, name):
  """Raises UserError where decode would; cheaper, as a JPEG is only decoded at an eighth of its
  size.
  """
  image = _open(content, name)
  image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
  with _whole(name):
    image.load()


@contextlib.contextmanager
def _whole(name):
  """Turns Pillow's errors about damaged bytes into a UserError."""
  try:
    yield
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
    # Pillow names the buffer that it could not identify, which tells a user nothing.
    reason = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    raise UserError(f"image {name} is no {', '.join(FORMATS)} image{reason}") from None
  if image.width * image.height > MAX_PIXELS:
    raise UserError(
      f"image {name} is too large: {image.width} x {image.height} pixels; expected at most "
      f"{MAX_PIXELS:,} pixels"
    )
  return image


INTERPOLATIONS = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}
FITS = ("crop", "crop_floor", "stretch")


def train_crop(image, rng, *, size, min_area=0.08, interpolation="bilinear"):
  """Returns a random part of an image at a fixed size, mirrored half of the time.

  The part covers min_area to 1 of the area (uniform) with a width 3/4 to 4/3 of its height (uniform
  in the logarithm), ten attempts, then the largest centred part with an allowed ratio; antialiased
  resize.

  Args:
    image: RGB PIL image.
    rng: numpy Generator.
    size: int, side of the result.
    min_area: float, 0.08 as released; scenes of a few small shapes need more.
    interpolation: key of INTERPOLATIONS.
  Returns:
    [size, size, 3] uint8.
  References:
    torchvision RandomResizedCrop and RandomHorizontalFlip at their defaults, as released by VSE++
    and IMC; the random numbers are our own.
  """
  crop = image.crop(_random_box(image.width, image.height, rng, min_area)).resize(
    (size, size), INTERPOLATIONS[interpolation]
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


def eval_crop(image, *, resize, size, fit="crop", interpolation="bilinear"):
  """Returns an image as evaluation sees it, after an antialiased resize.

  Args:
    image: RGB PIL image.
    resize: int, pixels of the shorter side before the crop.
    size: int, side of the result, at most resize.
    fit: "crop": the centre, as torchvision cuts it; "crop_floor": the centre as Hugging Face's
      processors cut it, half a pixel to the left and to the top where the border is odd; "stretch":
      the whole image, its sides brought to `size` each (SigLIP).
    interpolation: key of INTERPOLATIONS.
  Returns:
    [size, size, 3] uint8.
  Raises:
    UserError: size is larger than resize.
  References:
    torchvision Resize(256) and CenterCrop(224), as released by VSE++ and IMC.
  """
  method = INTERPOLATIONS[interpolation]
  if fit == "stretch":
    return np.asarray(_resized(image, (size, size), method))
  if size > resize:
    raise UserError(
      f"config.data.image_size is {size}; expected at most config.data.resize, {resize}"
    )
  image = shorter_side(image, resize, method)
  centre = round if fit == "crop" else int
  left, top = centre((image.width - size) / 2), centre((image.height - size) / 2)
  return np.asarray(image.crop((left, top, left + size, top + size)))


def shorter_side(image, size, method=Image.Resampling.BILINEAR):
  """Returns a PIL image whose shorter side was brought to `size` pixels, antialiased; the
  longer one is cut to whole pixels, as torchvision's Resize does.
  """
  short, long = min(image.size), max(image.size)
  if short == size:
    return image
  # In whole numbers: size / short, rounded first, loses a pixel at some sizes.
  other = size * long // short
  shape = (size, other) if image.width <= image.height else (other, size)
  return _resized(image, shape, method)


def _resized(image, shape, method):
  """Returns a PIL image of another shape (width, height)."""
  if method is Image.Resampling.BICUBIC:
    # Rows before columns, as torchvision; Pillow takes the cheaper order first, and what the first
    # pass overshoots is cut off: up to 5 of 255 apart.
    image = image.resize((shape[0], image.height), method)
  return image.resize(shape, method)
