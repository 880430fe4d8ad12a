"""Images as users pass them: a path, a PIL image, an array or bytes."""

import io
import os
import pathlib

import numpy as np
from PIL import Image

from xmr.data import images
from xmr.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")


def is_picture(item):
  """Returns whether an item of a query or gallery is an image: the path of an existing image file,
  or anything but a str.
  """
  return not isinstance(item, str) or (
    item.lower().endswith(IMAGE_ENDINGS) and os.path.isfile(item)
  )


def opened(item):
  """Returns a path, PIL image or [H, W, 3] uint8 array as an RGB PIL image, or raises UserError."""
  if isinstance(item, Image.Image):
    return item.convert("RGB")
  if isinstance(item, np.ndarray):
    if item.dtype != np.uint8 or item.ndim != 3 or item.shape[2] != 3:
      raise UserError(f"a picture is {item.dtype} of shape {item.shape}; expected uint8 [H, W, 3]")
    return Image.fromarray(item)
  if isinstance(item, bytes):
    return images.decode(item, name="(bytes)")
  try:
    # A pipe would make the reader wait for ever.
    if os.path.exists(item) and not os.path.isfile(item):
      raise UserError(f"cannot read image {item}: no plain file")
    content = pathlib.Path(item).read_bytes()
  except OSError as error:
    raise UserError(f"cannot read image {item}: {error.strerror}") from None
  return images.decode(content, name=str(item))


def thumbnail(image, *, side, quality=60):
  """Returns a PIL image as WebP bytes, its longer side at most `side` pixels."""
  image = image.copy()
  image.thumbnail((side, side))
  file = io.BytesIO()
  image.convert("RGB").save(file, "WEBP", quality=quality)
  return file.getvalue()
