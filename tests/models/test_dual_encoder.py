"""The two sides together: batches in, two matrices of embeddings out."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variables import random_variables

from xmr.models.dual_encoder import DualEncoder
from xmr.models.features import MLP, Linear
from xmr.models.image import ConvNet


class Words(nn.Module):
  """Mean of the first text_length word vectors."""

  @nn.compact
  def __call__(self, text, text_length, *, train=False):
    x = nn.Embed(20, 6)(text)
    mask = jnp.arange(text.shape[1])[None] < text_length[:, None]
    return nn.Dropout(0.5)((x * mask[..., None]).sum(1), deterministic=not train)


def batch(image="features", text="features", rows=5):
  rng = np.random.default_rng(0)
  result = {"image_id": np.arange(rows, dtype=np.int32)}
  if image == "features":
    result["image"] = rng.normal(size=(rows, 9)).astype(np.float32)
  else:
    result["image"] = rng.integers(0, 256, (rows, 32, 32, 3), np.uint8)
  if text == "features":
    result["text"] = rng.normal(size=(rows, 7)).astype(np.float32)
  else:
    result |= {
      "text": rng.integers(0, 20, (rows, 4), np.int32),
      "text_length": np.full(rows, 3, np.int32),
    }
  return result


@pytest.mark.parametrize(
  ("image", "text", "image_encoder", "text_encoder"),
  [
    ("features", "features", Linear(dim=6), MLP(dim=6)),
    ("pixels", "words", ConvNet(dim=6), Words()),
  ],
)
def test_each_side_is_its_encoder_with_its_own_variables(image, text, image_encoder, text_encoder):
  inputs = batch(image, text)
  model = DualEncoder(image_encoder, text_encoder)
  variables = random_variables(model, inputs)
  assert set(variables["params"]) == {"image_encoder", "text_encoder"}
  rows = model.apply(variables, inputs)
  alone = image_encoder.apply({"params": variables["params"]["image_encoder"]}, inputs["image"])
  np.testing.assert_array_equal(rows[0], alone)
  texts = [inputs[key] for key in ("text", "text_length") if key in inputs]
  alone = text_encoder.apply({"params": variables["params"]["text_encoder"]}, *texts)
  np.testing.assert_array_equal(rows[1], alone)
  np.testing.assert_array_equal(
    model.apply(variables, inputs["image"], method="encode_image"), rows[0]
  )
  np.testing.assert_array_equal(model.apply(variables, *texts, method="encode_text"), rows[1])
  for jitted, row in zip(jax.jit(model.apply)(variables, inputs), rows, strict=True):
    np.testing.assert_allclose(jitted, row, atol=1e-6)


def test_training_reaches_both_sides():
  inputs = batch()
  model = DualEncoder(MLP(dim=6), MLP(dim=6))
  variables = random_variables(model, inputs)
  still = model.apply(variables, inputs)
  for row, dropped in zip(
    still,
    model.apply(variables, inputs, train=True, rngs={"dropout": jax.random.key(1)}),
    strict=True,
  ):
    assert (row != dropped).any()


def test_words_and_features_are_not_mixed_up():
  words, features = batch(text="words"), batch()
  on_words, on_features = (
    DualEncoder(Linear(dim=6), Words()),
    DualEncoder(Linear(dim=6), Linear(dim=6)),
  )
  with pytest.raises(
    ValueError, match=r"\(5, 7\) and type float32 has no text_length; expected words"
  ):
    on_words.init(jax.random.key(0), features)
  with pytest.raises(
    ValueError, match=r"\(5, 4\) and type int32 has a text_length; expected features"
  ):
    on_features.init(jax.random.key(0), words)


def test_pixels_and_image_features_are_not_mixed_up():
  with pytest.raises(ValueError, match=r"\(5, 32, 32, 3\) and type uint8; expected \[B, F\]"):
    DualEncoder(Linear(dim=6), Linear(dim=6)).init(jax.random.key(0), batch(image="pixels"))
  with pytest.raises(ValueError, match=r"\(5, 9\) and type float32; expected \[B, H, W, 3\] uint8"):
    DualEncoder(ConvNet(dim=6), Linear(dim=6)).init(jax.random.key(0), batch())
