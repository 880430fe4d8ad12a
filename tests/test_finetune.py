"""Fine-tuning as in the papers: the network frozen, then trained at a tenth of the rate; and
training in bfloat16.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import vsepp_flickr
from xmr import losses, models, parallel, train
from xmr.models import image
from xmr.models.resnet import ResNet
from xmr.training import optim

B = 8  # one phase of the recurrent layer, which compiles fastest
STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def small_network():
  """A small network under the name of ResNet-152."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(
      image.BACKBONES,
      "resnet152",
      functools.partial(ResNet, blocks=(1, 1), bottleneck=True, width=8),
    )
    yield


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  image_id = np.repeat(np.arange(B // 2), 2).astype(np.int32)
  return {
    "image": rng.integers(0, 256, (B // 2, 32, 32, 3)).astype(np.uint8)[image_id],
    "image_id": image_id,
    "text": rng.integers(0, 30, (B, 6)).astype(np.int32),
    "text_length": rng.integers(1, 7, B).astype(np.int32),
  }


def config_of(variant, **model):
  config = vsepp_flickr.get_config(variant)
  config.model.update({"dim": 16, **model})
  config.model.text.word_dim = 8
  return config


def trained(config, batch, variables=None):
  """Some steps of a config on one batch: (losses, variables before, variables after, seen epoch by
  epoch).
  """
  model = models.build(config.model, vocabulary_size=30)
  if variables is None:
    variables = jax.device_get(jax.jit(model.init)(jax.random.key(0), batch))
  frozen = () if config.model.image.trainable else ("^image_encoder/backbone/",)
  transform, rates = optim.make(
    config.optimizer,
    variables["params"],
    steps_per_epoch=1,
    total_steps=int(config.epochs),
    frozen=frozen,
  )
  step = jax.jit(
    functools.partial(
      train.train_step,
      model=model,
      transform=transform,
      loss=losses.get("max_of_hinges"),
      match="pair",
    )
  )
  state, found = (
    train.create_train_state(variables, transform, mesh=parallel.mesh(jax.devices()[:1])),
    [],
  )
  for _ in range(STEPS):
    state, terms = step(state, batch, None)
    found.append(terms["loss"])
  return found, variables, jax.device_get(state.variables), rates


def same(first, second):
  """Whether two trees hold the same numbers."""
  return all(
    np.array_equal(a, b)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True)
  )


def backbone(variables, collection="params"):
  return variables[collection]["image_encoder"]["backbone"]


@pytest.fixture(scope="module")
def frozen(batch):
  """The first stage, as released: (losses, before, after, rates)."""
  return trained(config_of(""), batch)


@pytest.fixture(scope="module")
def finetuned(batch, frozen):
  """The second stage, which starts from the first."""
  return trained(config_of("finetuned"), batch, frozen[2])


@pytest.mark.slow
def test_the_network_is_frozen_for_30_epochs_and_trained_for_15_at_a_tenth_of_the_rate(
  frozen, finetuned
):
  first, second = vsepp_flickr.get_config(""), vsepp_flickr.get_config("finetuned")
  assert (first.epochs, second.epochs) == (30, 15) and second.init == "runs/vsepp"
  np.testing.assert_allclose(
    [frozen[3](epoch) for epoch in (0, 14, 15, 29)], [2e-4, 2e-4, 2e-5, 2e-5], rtol=1e-6
  )
  np.testing.assert_allclose([finetuned[3](epoch) for epoch in (0, 14)], 2e-5, rtol=1e-6)
  for stage, moves in ((frozen, False), (finetuned, True)):
    _, before, after, _ = stage
    assert same(backbone(before), backbone(after)) != moves
    assert not same(
      before["params"]["image_encoder"]["projection"],
      after["params"]["image_encoder"]["projection"],
    )
    # As released: the statistics of BatchNorm drift in both stages.
    assert not same(backbone(before, "batch_stats"), backbone(after, "batch_stats"))


@pytest.mark.slow
def test_frozen_batch_norm_keeps_its_statistics_while_the_network_is_trained(batch, frozen):
  config = config_of("finetuned")
  config.model.image.batch_norm = "frozen"
  config.model.image.remat = True
  _, before, after, _ = trained(config, batch, frozen[2])
  assert same(backbone(before, "batch_stats"), backbone(after, "batch_stats"))
  assert not same(backbone(before), backbone(after))


@pytest.mark.slow
def test_bfloat16_stays_within_a_hundredth_of_the_loss_and_keeps_float32(batch, frozen, finetuned):
  half, _, after, _ = trained(config_of("finetuned", dtype="bfloat16"), batch, frozen[2])
  assert (
    {x.dtype for x in jax.tree.leaves(after)} == {jnp.dtype("float32")} == {x.dtype for x in half}
  )
  half, full = np.array(half), np.array(finetuned[0])
  assert (half != full).all(), "computed in float32"
  np.testing.assert_allclose(half, full, rtol=1e-2)
