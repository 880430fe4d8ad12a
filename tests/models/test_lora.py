"""Low-rank adapters: they start at nothing, only they learn, and merged they are the adapted
model.
"""

import dataclasses
import re

import jax
import ml_collections
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from xmr import checkpoint, models
from xmr import config as config_lib
from xmr.errors import UserError
from xmr.models import lora
from xmr.models.dual_encoder import DualEncoder
from xmr.models.features import MLP, Linear
from xmr.training import finetune, starting


@pytest.fixture(scope="module")
def batch():
  generator = np.random.default_rng(0)
  return {side: generator.normal(size=(6, 12)).astype(np.float32) for side in ("image", "text")}


@pytest.fixture(scope="module")
def adapted():
  model = DualEncoder(MLP(8, hidden=10, depth=1), Linear(8))
  return lora.Adapted(model, rank=2, alpha=4.0, kernels="image_encoder/.*/kernel")


@pytest.fixture(scope="module")
def variables(adapted, batch):
  return adapted.init(jax.random.key(0), batch)


def test_fresh_adapters_change_nothing(adapted, variables, batch):
  base = {"params": {k: v for k, v in variables["params"].items() if k != "lora"}}
  want = adapted.model.apply(base, batch)
  jax.tree.map(np.testing.assert_array_equal, adapted.apply(variables, batch), want)


def test_only_adapters_have_a_gradient(adapted, variables, batch):
  gradient = jax.grad(lambda params: adapted.apply({"params": params}, batch)[0].sum())(
    variables["params"]
  )
  moved = {
    name for name, tree in gradient.items() if any(np.any(leaf) for leaf in jax.tree.leaves(tree))
  }
  assert moved == {"lora"}
  adapters = flatten_dict(gradient["lora"], sep="/")
  assert all(np.any(x) for name, x in adapters.items() if name.endswith("/b"))


def test_an_adapted_model_shows_its_encoders(adapted):
  # Whoever looks inside a run asks whether they give tokens.
  assert adapted.image_encoder is adapted.model.image_encoder
  assert adapted.text_encoder is adapted.model.text_encoder


def test_merged_equals_adapted(adapted, variables, batch):
  params = dict(variables["params"])
  params["lora"] = jax.tree.map(lambda x: x + 0.1, params["lora"])
  merged = lora.merged(params, scale=adapted.scale)
  assert merged.keys() == {"image_encoder", "text_encoder"}
  found = adapted.apply({"params": params}, batch)
  jax.tree.map(np.testing.assert_array_equal, found, adapted.model.apply({"params": merged}, batch))
  plain = adapted.model.apply({"params": {k: params[k] for k in merged}}, batch)
  assert np.abs(found[0] - plain[0]).max() > 0.01
  np.testing.assert_array_equal(found[1], plain[1])


def test_an_adapter_is_alpha_over_rank_times_a_b(adapted, variables):
  params = dict(variables["params"])
  params["lora"] = jax.tree.map(lambda x: x + 0.1, params["lora"])
  flat = {name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()}
  merged = flatten_dict(lora.merged(params, scale=adapted.scale), sep="/")
  name = next(name for name in flat if name.startswith("lora/")).removesuffix("/a")
  kernel = name.removeprefix("lora/")
  want = flat[kernel] + 4.0 / 2 * flat[f"{name}/a"] @ flat[f"{name}/b"]
  np.testing.assert_allclose(merged[kernel], want, rtol=1e-6)


def test_the_number_of_an_adapter_depends_on_seed_and_path_alone(variables):
  one = lora.start(variables["params"], rank=2, pattern="kernel", seed=3)
  few = lora.start(variables["params"], rank=2, pattern="image_encoder/.*/kernel", seed=3)
  few, one = (flatten_dict(tree, sep="/") for tree in (few, one))
  assert few.keys() < one.keys()
  jax.tree.map(np.testing.assert_array_equal, few, {name: one[name] for name in few})


def test_an_adapter_without_its_kernel_is_refused(variables):
  params = {**variables["params"], "lora": {"text_encoder": {"gone": {"kernel": {"a": 1, "b": 1}}}}}
  with pytest.raises(ValueError, match="an adapter of text_encoder/gone/kernel, but no such"):
    lora.merged(params, scale=1.0)


def test_adapters_come_back_from_a_file_of_flat_names(adapted, variables, batch):
  params = {
    **variables["params"],
    "lora": jax.tree.map(lambda x: x + 0.1, variables["params"]["lora"]),
  }
  read = checkpoint.nest(checkpoint.flatten({"params": jax.device_get(params)}))
  found = adapted.apply(read, batch)
  jax.tree.map(np.testing.assert_array_equal, found, adapted.apply({"params": params}, batch))


def test_kernels_that_match_nothing_are_named(adapted, variables):
  with pytest.raises(UserError, match="'attention/query', which no kernel has: .*/kernel"):
    lora.start(variables["params"], rank=2, pattern="attention/query", seed=0)
  with pytest.raises(UserError, match="config.model.lora.kernels is '\\('"):
    lora.start(variables["params"], rank=2, pattern="(", seed=0)


@pytest.mark.parametrize("change", [{}, {"alpha": 8.0}, {"kernels": "image_encoder/projection"}])
def test_a_run_that_starts_from_another_starts_as_that_one_whatever_its_adapters(
  adapted, variables, batch, change
):
  params = dict(variables["params"])
  params["lora"] = jax.tree.map(lambda x: np.asarray(x) + 0.1, params["lora"])
  config = {"model.lora.rank": 2, "model.lora.alpha": 4.0, "model.lora.kernels": adapted.kernels}
  mine = dataclasses.replace(adapted, **change)
  started = starting.adapted(mine, {"params": params}, config)
  found, wanted = mine.apply(started, batch)[0], adapted.apply({"params": params}, batch)[0]
  np.testing.assert_allclose(found, wanted, atol=1e-6)


PATHS = {"image_encoder": ("backbone/k", "projection/k"), "text_encoder": ("backbone/k",)}


@pytest.mark.parametrize(
  ("init", "weights", "trained"),
  [
    ("run", ("", ""), []),
    ("run", ("a", "b"), []),
    ("", ("a", "b"), ["image_encoder/projection/k"]),
    ("", ("a", ""), ["image_encoder/projection/k", "text_encoder/backbone/k"]),
  ],
)
def test_adapters_freeze_what_has_weights_and_train_what_is_fresh(init, weights, trained):
  sides = {
    side: {"weights": path, "trainable": True}
    for side, path in zip(("image", "text"), weights, strict=True)
  }
  config = ml_collections.ConfigDict({"init": init, "model": {"lora": {"rank": 2}} | sides})
  patterns = finetune.frozen(config, {})
  paths = [f"{name}/{path}" for name, inside in PATHS.items() for path in inside]
  paths += ["shared/c", "lora/image_encoder/a", "loss/x"]
  found = [path for path in paths if not any(re.search(pattern, path) for pattern in patterns)]
  fresh = [] if init else ["shared/c"]
  assert found == [*trained, *fresh, "lora/image_encoder/a", "loss/x"]


def test_fresh_parts_have_a_gradient_beside_adapters_and_go_with_them(batch):
  model = DualEncoder(MLP(8, hidden=10, depth=1), Linear(8))
  hidden, pattern = "image_encoder/hidden_0/", "kernel"
  adapted = lora.Adapted(model, rank=2, alpha=4.0, kernels=pattern, base=(hidden,))
  variables = adapted.init(jax.random.key(0), batch)
  gradient = jax.grad(
    lambda params: sum(x.sum() for x in adapted.apply({"params": params}, batch))
  )(variables["params"])
  moved = {"/".join(path) for path, x in flatten_dict(gradient).items() if np.any(x)}
  adapters = {path for path in moved if path.startswith("lora/")}
  assert adapters == {f"lora/{hidden}kernel/b"}
  whole = {"/".join(path) for path in adapted.trained(variables["params"])}
  assert whole == moved - adapters and not any(path.startswith(hidden) for path in whole)
  line = adapted.line(variables["params"])
  assert "else frozen but image_encoder/projection, text_encoder, which no weights were" in line
  assert "1 of image_encoder" in line and "NONE" not in line


def test_adapters_of_weights_that_are_all_fresh_are_refused():
  config = config_lib.base_config()
  config.model.lora.rank = 2
  with pytest.raises(UserError, match="lora.rank is 2, but all weights are fresh; expected some"):
    config_lib.validate(config)
  config.init = "runs/clip"
  config_lib.validate(config)


TOWER = {"bias": True, "width": 8, "layers": 2, "heads": 2, "mlp_width": 8, "positions": 5}
TOWER |= {"patch": 8, "grid": 2, "word_dim": 8, "input_norm": False}
# Kernels of two blocks; SigLIP's pooling attends, too.
IMAGES = {"clip_vit": 4, "siglip_vit": 6, "dinov2": 4, "linear": 0}
TEXTS = {"clip_text": 4, "siglip_text": 4, "bert": 4, "mpnet": 4, "transformer": 4, "bigru": 0}


def line_of(image, text):
  """What a run of two small encoders says of its adapters, by the default pattern."""
  default = config_lib.FIELDS["model.lora.kernels"].default
  section = ml_collections.ConfigDict(
    {
      "dim": 8,
      "normalize": "l2",
      "dtype": "float32",
      "image": TOWER | {"name": image},
      "text": TOWER | {"name": text, "positions": 7 if text == "mpnet" else 5},
      "lora": {"rank": 2, "alpha": 4.0, "kernels": default},
    }
  )
  model = models.build(section, vocabulary_size=20)
  pixels = jax.ShapeDtypeStruct((1, 16, 16, 3), np.uint8)
  inputs = {
    "image": jax.ShapeDtypeStruct((1, 9), np.float32) if image == "linear" else pixels,
    "text": jax.ShapeDtypeStruct((1, 5), np.int32),
    "text_length": jax.ShapeDtypeStruct((1,), np.int32),
  }
  return model.line(jax.eval_shape(model.model.init, jax.random.key(0), inputs)["params"])


@pytest.mark.parametrize(
  ("image", "text"), [*((name, "bert") for name in IMAGES), *(("clip_vit", name) for name in TEXTS)]
)
def test_default_kernels_are_in_every_transformer_and_the_log_counts_them(image, text):
  line = line_of(image, text)
  for name, count in {"image_encoder": IMAGES[image], "text_encoder": TEXTS[text]}.items():
    assert f"{count or 'NONE'} of {name}" in line
    assert (f"{name} is not trained: no path matches" in line) == (not count)
  assert "\n" not in line


def test_default_kernels_that_no_encoder_has_are_refused():
  with pytest.raises(UserError, match="which no kernel has: image_encoder/projection/kernel"):
    line_of("linear", "bigru")
