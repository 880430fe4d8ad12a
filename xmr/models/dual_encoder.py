"""Two encoders into one space."""

import flax.linen as nn

from xmr.models.features import FEATURE_ENCODERS


class DualEncoder(nn.Module):
  """Maps images and texts to the joint space, each with its own encoder.

  Variables: {"params": {"image_encoder", "text_encoder"}, "batch_stats": {"image_encoder"} where
  there is BatchNorm}; dropout draws from the random stream "dropout".

  Attributes:
    image_encoder: module called as (image, *, train).
    text_encoder: module called as (text, text_length, *, train) on words, (text, *, train) on
      features.
  """

  image_encoder: nn.Module
  text_encoder: nn.Module

  def __call__(self, batch, *, train=False):
    """Encodes a batch.

    Args:
      batch: dict with `image` [B, H, W, 3] uint8 or [B, F] float, `text` [B, L] int32 and
        `text_length` [B] int32, or `text` [B, F] float alone; other keys are ignored.
      train: True turns dropout on, and lets released BatchNorm use and update its statistics.
    Returns:
      image: [B, D] float32.  text: [B, D] float32.
    Raises:
      ValueError: a shape or type that the encoder does not read.
    """
    image = self.encode_image(batch["image"], train=train)
    return image, self.encode_text(batch["text"], batch.get("text_length"), train=train)

  def encode_image(self, image, *, train=False):
    """Encodes `image` as in `__call__` into [B, D] float32."""
    return self.image_encoder(image, train=train)

  def encode_text(self, text, text_length=None, *, train=False):
    """Encodes `text` (with `text_length` for words) as in `__call__` into [B, D] float32."""
    found = f"text of shape {tuple(text.shape)} and type {text.dtype}"
    if not isinstance(self.text_encoder, FEATURE_ENCODERS):
      if text_length is None:
        raise ValueError(f"{found} has no text_length; expected words and their number")
      return self.text_encoder(text, text_length, train=train)
    if text_length is not None:
      raise ValueError(f"{found} has a text_length; expected features alone")
    return self.text_encoder(text, train=train)
