"""Tokens of regions and of words: padding changes nothing, and the pooled embedding is the mean."""

import jax
import numpy as np
import pytest

from xmr.models.dual_encoder import DualEncoder
from xmr.models.features import Linear
from xmr.models.text import Recurrent
from xmr.models.tokens import Layers, Regions, Words, positions

VOCABULARY, DIM = 11, 8


def batch(seed=0, regions=5, words=7, rows=4):
  rng = np.random.default_rng(seed)
  length = np.array([7, 4, 3, 6][:rows])
  mask = rng.random((rows, regions)) < 0.6
  mask[:, 0] = True
  return {
    "image": rng.normal(size=(rows, regions, 6)).astype(np.float32),
    "image_mask": mask,
    "text": rng.integers(0, VOCABULARY, (rows, words)).astype(np.int32),
    "text_length": length.astype(np.int32),
  }


def model(text="recurrent", *, layers=0, shared=None):
  words = {
    "recurrent": Recurrent(DIM, VOCABULARY, word_dim=6, hidden=5, dropout=0.0, readout="mean"),
    "words": Words(DIM, VOCABULARY, word_dim=6, layers=1, heads=2, dropout=0.0),
  }[text]
  return DualEncoder(Regions(DIM, layers=layers, heads=2), words, shared)


@pytest.mark.parametrize(
  ("text", "layers", "shared"),
  [("recurrent", 0, None), ("words", 1, None), ("recurrent", 0, Layers(1, heads=2))],
)
def test_tokens_are_unit_rows_and_padding_moves_none(text, layers, shared):
  made, given = model(text, layers=layers, shared=shared), batch()
  variables = jax.jit(made.init)(jax.random.key(0), given)
  encode = jax.jit(
    lambda given: (made.apply(variables, given, method="tokens"), made.apply(variables, given))
  )
  (image, words), pooled = encode(given)
  assert image.shape == (4, 5, DIM) and words.shape == (4, 7, DIM)
  np.testing.assert_array_equal(image.mask, given["image_mask"])
  step = np.arange(7)
  inside = (step >= 1) & (step < given["text_length"][:, None] - 1)
  np.testing.assert_array_equal(words.mask, inside)
  for side in (image, words):
    np.testing.assert_allclose(np.linalg.norm(side.x, axis=2)[np.asarray(side.mask)], 1, rtol=1e-5)
  other = dict(given)
  other["image"] = np.where(given["image_mask"][..., None], given["image"], 50).astype(np.float32)
  outside = step >= given["text_length"][:, None]
  other["text"] = np.where(outside, 3, given["text"]).astype(np.int32)
  (image2, words2), pooled2 = encode(other)
  for a, b in ((image, image2), (words, words2)):
    kept = np.asarray(a.mask)
    np.testing.assert_allclose(np.asarray(a.x)[kept], np.asarray(b.x)[kept], rtol=1e-5, atol=1e-6)
  for a, b in zip(pooled, pooled2, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_pooled_regions_are_the_direction_of_the_mean_of_what_the_mask_keeps():
  encoder, given = Regions(DIM), batch()
  variables = encoder.init(jax.random.key(0), given["image"])
  pooled = encoder.apply(variables, given["image"], given["image_mask"])
  kernel, bias = (variables["params"]["projection"][name] for name in ("kernel", "bias"))
  for row in range(4):
    mean = (given["image"][row][given["image_mask"][row]] @ kernel + bias).mean(0)
    np.testing.assert_allclose(pooled[row], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)


def test_steps_of_a_recurrent_encoder_are_its_tokens():
  """The mean over all steps, <start> and <end> too, is the readout `mean`."""
  encoder, given = Recurrent(DIM, VOCABULARY, word_dim=6, readout="mean", normalize="none"), batch()
  texts = given["text"], given["text_length"]
  variables = jax.jit(encoder.init)(jax.random.key(0), *texts)
  found, pooled = jax.jit(
    lambda v: (encoder.apply(v, *texts, tokens=True), encoder.apply(v, *texts))
  )(variables)
  for row, length in enumerate(given["text_length"]):
    np.testing.assert_allclose(found.x[row, :length].mean(0), pooled[row], rtol=1e-5, atol=1e-6)


def test_shared_layers_are_one_set_of_parameters_and_off_by_default():
  given = batch()
  assert model().shared is None
  made = model(shared=Layers(2, heads=2))
  params = jax.eval_shape(made.init, jax.random.key(0), given)["params"]
  assert set(params) == {"image_encoder", "text_encoder", "shared"}
  assert {"layer0", "layer1", "norm"} == set(params["shared"])


def test_positions_tell_steps_apart():
  found = np.asarray(positions(6, 8))
  np.testing.assert_allclose(found[:, 0], np.sin(np.arange(6)), atol=1e-6)
  np.testing.assert_allclose(found[:, 3], np.cos(np.arange(6) / 10), atol=1e-6)
  assert positions(3, 5).shape == (3, 5)


def test_an_encoder_without_tokens_says_so():
  given = batch() | {"image": np.ones((4, 6), np.float32)}
  del given["image_mask"]
  made = DualEncoder(Linear(DIM), Words(DIM, VOCABULARY, word_dim=6))
  variables = jax.jit(made.init)(jax.random.key(0), given)
  with pytest.raises(ValueError, match="the image encoder Linear gives no tokens"):
    made.apply(variables, given, method="tokens")
  with pytest.raises(
    ValueError, match=r"regions have shape \(4, 6\) and type float32; expected \[B"
  ):
    Regions(DIM).init(jax.random.key(0), given["image"])
  with pytest.raises(ValueError, match="heads is 3; expected a divisor of the width, 8"):
    Layers(1, heads=3).init(jax.random.key(0), np.ones((1, 2, 8)), np.ones((1, 2), bool))
