"""Backbone weights through a file: back as they were, or one error that names all that does not
fit.
"""

import functools

import flax.traverse_util
import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from variables import random_variables

from xmr.errors import UserError
from xmr.interop import weights
from xmr.models import image as image_module
from xmr.models.dual_encoder import DualEncoder
from xmr.models.features import Linear
from xmr.models.image import PretrainedEncoder
from xmr.models.resnet import ResNet

INPUTS = {"image": np.zeros((1, 32, 32, 3), np.uint8), "text": np.zeros((1, 5), np.float32)}


@pytest.fixture
def model(monkeypatch):
  monkeypatch.setitem(
    image_module.BACKBONES,
    "tiny",
    functools.partial(ResNet, blocks=(1, 1), bottleneck=True, width=4),
  )
  return DualEncoder(PretrainedEncoder("tiny", dim=6), Linear(dim=6))


def saved(path, model, seed, change=lambda flat: None):
  """Writes the backbone that `seed` initialises, after `change` on its flat dict, and returns that
  dict.
  """
  variables = random_variables(model, INPUTS, seed=seed)
  tree = {kind: tree["image_encoder"]["backbone"] for kind, tree in variables.items()}
  flat = {name: np.asarray(v) for name, v in flax.traverse_util.flatten_dict(tree, sep="/").items()}
  change(flat)
  weights.save(
    path, flax.traverse_util.unflatten_dict(flat, sep="/"), {"kind": "tiny", "layers": 2}
  )
  return flat


@pytest.mark.parametrize("abstract", [False, True])
def test_only_the_backbone_is_filled_in(tmp_path, model, abstract):
  path = tmp_path / "tiny.safetensors"
  flat = saved(path, model, 7)
  before = (
    jax.eval_shape(model.init, jax.random.key(0), INPUTS)
    if abstract
    else random_variables(model, INPUTS)
  )
  adapters = {"backbone": {"conv1": {"kernel": {"a": np.ones(2)}}}}
  before["params"]["lora"] = {"image_encoder": adapters}
  after = weights.load_backbone(path, before)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  assert after["params"]["lora"]["image_encoder"] == adapters
  loaded = {kind: tree["image_encoder"]["backbone"] for kind, tree in after.items()}
  loaded = flax.traverse_util.flatten_dict(loaded, sep="/")
  assert set(loaded) == set(flat) and "batch_stats/layer1_0/downsample_1/var" in flat
  for name, value in flat.items():
    np.testing.assert_array_equal(loaded[name], value)
  assert (
    after["params"]["text_encoder"]["projection"]["kernel"]
    is before["params"]["text_encoder"]["projection"]["kernel"]
  )
  if not abstract:
    kept = before["params"]["image_encoder"]["backbone"]["bn1"]["scale"]
    assert (kept != flat["params/bn1/scale"]).all()


def test_the_file_says_where_it_came_from(tmp_path, model):
  saved(tmp_path / "x.safetensors", model, 1)
  with safetensors.safe_open(tmp_path / "x.safetensors", framework="numpy") as file:
    assert {**file.metadata(), "digests": ""} == {"kind": "tiny", "layers": "2", "digests": ""}
    assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"F32"}  # noqa: SIM118  (not a dict)


def test_every_tensor_that_does_not_fit_is_named_at_once(tmp_path, model):
  def change(flat):
    del flat["params/bn1/scale"]
    flat["params/fc/kernel"] = np.zeros((16, 10), np.float32)
    flat["params/conv1/kernel"] = np.zeros((3, 7, 7, 4), np.float32)

  path = tmp_path / "x.safetensors"
  saved(path, model, 1, change)
  with pytest.raises(UserError) as error:
    weights.load_backbone(path, random_variables(model, INPUTS))
  message = str(error.value)
  assert str(path) in message and "3 tensors" in message
  assert "missing params/bn1/scale (4,)" in message and "extra params/fc/kernel (16, 10)" in message
  assert "params/conv1/kernel has shape (3, 7, 7, 4), expected (7, 7, 3, 4)" in message


def test_another_type_is_named(tmp_path, model):
  path = tmp_path / "x.safetensors"
  flat = saved(path, model, 1)
  flat["params/bn1/bias"] = flat["params/bn1/bias"].astype(np.float16)
  safetensors.numpy.save_file(flat, path)
  with pytest.raises(UserError, match="params/bn1/bias has type F16, expected F32"):
    weights.load_backbone(path, random_variables(model, INPUTS))


@pytest.mark.parametrize("damage", ["absent", "truncated", "text", "empty", "folder"])
def test_what_is_no_whole_file_is_a_users_mistake(tmp_path, model, damage):
  path = tmp_path / "x.safetensors"
  if damage == "truncated":
    saved(path, model, 1)
    path.write_bytes(path.read_bytes()[:-100])
  elif damage == "folder":
    path.mkdir()
  elif damage != "absent":
    path.write_bytes(b"" if damage == "empty" else b"not a tensor in sight")
  with pytest.raises(UserError, match="x.safetensors: "):
    weights.load_backbone(path, random_variables(model, INPUTS))


def test_a_flipped_bit_of_a_weight_is_named(tmp_path, model):
  path = tmp_path / "x.safetensors"
  saved(path, model, 1)
  whole, variables = path.read_bytes(), random_variables(model, INPUTS)
  header = 8 + int.from_bytes(whole[:8], "little")
  for place in np.random.default_rng(0).integers(header, len(whole), 20):
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
    with pytest.raises(UserError, match="is not what was written .digests differ.; convert it"):
      weights.load_backbone(path, variables)
  for change in ({}, {"digests": "{"}, {"digests": "[]"}):
    flat = safetensors.numpy.load(whole)
    safetensors.numpy.save_file(flat, path, change or None)
    if change:
      with pytest.raises(UserError, match="its header is not what was written"):
        weights.load_backbone(path, variables)
    else:  # As older versions wrote them.
      weights.load_backbone(path, variables)


def test_an_encoder_without_backbone_takes_no_weights(tmp_path):
  model = DualEncoder(Linear(dim=6), Linear(dim=6))
  variables = model.init(
    jax.random.key(0), {"image": np.zeros((1, 4), np.float32), "text": INPUTS["text"]}
  )
  with pytest.raises(UserError, match="the image_encoder has no backbone"):
    weights.load_backbone(tmp_path / "x", variables)
