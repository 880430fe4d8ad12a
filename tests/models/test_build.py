"""What a config's model section becomes."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from xmr.config import base_config
from xmr.errors import UserError
from xmr.models import IMAGE_ENCODERS, TEXT_ENCODERS, DualEncoder, build, table
from xmr.models.features import MLP, Linear

WORDS = sorted(set(TEXT_ENCODERS) - {"linear", "mlp"})


def config(image="linear", text="linear", **fields):
  """The model section with the fields that a run's config has; `image__bias=False` sets one inside
  a section.
  """
  section = {
    "bias": True,
    "input_norm": True,
    "hidden": 0,
    "depth": 2,
    "activation": "relu",
    "dropout": 0.1,
    "weights": "",
    "trainable": True,
    "batch_norm": "frozen",
    "remat": False,
  }
  tower = {"width": 16, "layers": 1, "heads": 2, "mlp_width": 16, "positions": 5, "patch": 16}
  tower |= {"grid": 4, "project": True}
  model = ml_collections.ConfigDict({"dim": 16, "normalize": "l2", "dtype": "float32"})
  model.image = ml_collections.ConfigDict({**section, **tower, "name": image})
  model.text = ml_collections.ConfigDict(
    {**section, **tower, "name": text, "input_norm": False, "word_dim": 12, "readout": "last"},
    type_safe=False,
  )
  for key, value in fields.items():
    *sections, key = key.split("__")
    functools.reduce(getattr, sections, model)[key] = value
  return model.lock()


def test_fields_reach_the_encoder_that_declares_them():
  model = build(
    config(
      text="mlp",
      normalize="abs",
      dtype="bfloat16",
      image__bias=False,
      text__hidden=5,
      text__activation="tanh",
    )
  )
  assert isinstance(model, DualEncoder)
  assert model.image_encoder == Linear(
    dim=16, bias=False, input_norm=True, normalize="abs", dtype=jnp.bfloat16
  )
  assert model.text_encoder == MLP(
    dim=16, hidden=5, depth=2, activation="tanh", dropout=0.1, normalize="abs", dtype=jnp.bfloat16
  )


def test_another_name_keeps_what_both_encoders_have_and_brings_the_rest():
  model = base_config().model
  model.text.dropout, model.text.hidden = 0.1, 5
  model.text.name = "mlp"
  assert (model.text.dropout, model.text.hidden, model.text.activation) == (0.1, 5, "relu")
  with pytest.raises(AttributeError, match="config.model.text: mlp has no field readout; expected"):
    model.text.readout = "mean"
  model.image.name = "linear"
  assert model.image.input_norm is True and "remat" not in model.image


def test_backbone_options_reach_it():
  encoder = build(
    config("resnet50", image__batch_norm="released", image__trainable=False, image__remat=True)
  ).image_encoder
  assert (encoder.arch, encoder.batch_norm, encoder.trainable, encoder.remat) == (
    "resnet50",
    "released",
    False,
    True,
  )


# Networks that differ from smaller ones in their numbers alone are traced for seconds.
LARGE = ("efficientnet_v2_l", "efficientnet_v2_m", "resnet152", "resnet101")


@pytest.mark.parametrize(
  "name",
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in LARGE))
    for name in sorted(IMAGE_ENCODERS)
  ],
)
def test_every_image_encoder_builds_and_gives_unit_shapes(name):
  shape = {"linear": (2, 9), "mlp": (2, 9), "regions": (2, 5, 9)}.get(name)
  image = jax.ShapeDtypeStruct(shape or (2, 64, 64, 3), jnp.float32 if shape else jnp.uint8)
  inputs = {"image": image, "text": jax.ShapeDtypeStruct((2, 7), jnp.float32)}
  model = build(config(name))
  variables = jax.eval_shape(model.init, jax.random.key(0), inputs)
  rows = jax.eval_shape(model.apply, variables, inputs)
  assert [(row.shape, row.dtype) for row in rows] == [((2, 16), jnp.float32)] * 2
  params = variables["params"]["image_encoder"]
  assert "projection" in params and ("backbone" in params) == (
    name not in ("linear", "mlp", "convnet", "regions")
  )


# The others are proved word by word (test_text) and on golden towers (interop).
QUICK = ("gru", "bilstm", "transformer", "bert")


@pytest.mark.parametrize(
  "name",
  [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in WORDS],
)
def test_every_encoder_of_words_builds_with_and_without_word_vectors(name):
  inputs = {
    "image": np.ones((2, 9), np.float32),
    "text": np.array([[1, 4, 2, 0, 0], [1, 5, 2, 0, 0]], np.int32),
    "text_length": np.array([3, 3], np.int32),
  }
  vectors = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
  for given in (None, vectors):
    # MPNet counts positions from behind its padding id.
    longest = {"text__positions": 7} if name == "mpnet" else {}
    model = build(config(text=name, **longest), vocabulary_size=20, word_vectors=given)
    run = jax.jit(model.init_with_output)
    image, text = run(jax.random.key(0), inputs)[0]
    assert image.shape == text.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(text, axis=-1), 1, atol=1e-5)


def test_words_need_a_vocabulary():
  assert WORDS
  with pytest.raises(UserError, match=f"config.model.text.name is '{WORDS[0]}', which reads words"):
    build(config(text=WORDS[0]))


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    (
      {"image": "resnet20"},
      "image.name is 'resnet20'; expected one of linear, mlp, convnet, resnet18",
    ),
    ({"text": "convnet"}, "text.name is 'convnet'; expected one of linear, mlp"),
    ({"dim": 0}, "model.dim is 0; expected 1 or more"),
    ({"dtype": "float16"}, "model.dtype is 'float16'; expected one of float32, bfloat16"),
    ({"normalize": "l1"}, "model.normalize is 'l1'; expected one of l2, abs, none"),
    (
      {"image": "mlp", "image__activation": "sine"},
      "image.activation is 'sine'; expected one of relu, gelu, tanh, none",
    ),
    ({"image": "mlp", "image__dropout": 1.0}, "image.dropout is 1.0; expected from 0 to below 1"),
    ({"text": "mlp", "text__hidden": -1}, "text.hidden is -1; expected from 0 to 65,536"),
    (
      {"image": "resnet18", "image__batch_norm": "off"},
      "image.batch_norm is 'off'; expected one of frozen, released",
    ),
  ],
)
def test_a_wrong_field_is_named_with_what_is_expected(fields, message):
  with pytest.raises(UserError, match=f"config.*{message}"):
    build(config(**fields))


@pytest.mark.parametrize(
  "side, name", [(side, name) for side, rows in table.SIDES.items() for name in rows]
)
def test_a_row_describes_every_field_of_its_encoder(side, name):
  for key, declared in table.SIDES[side][name].fields.items():
    declared.check(key, declared.default)
    assert declared.about, f"{side} {name}: {key} says nothing of itself"
    number = isinstance(declared.default, int | float) and not isinstance(declared.default, bool)
    assert declared.allowed or not number, f"{side} {name}: {key} is a number without a range"
