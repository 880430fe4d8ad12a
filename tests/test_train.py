import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from xmr import experiment, losses, mining, models, parallel, train
from xmr.config import base_config

B, F, G = 16, 12, 10


@pytest.fixture(scope="module")
def model():
  config = base_config().model
  config.dim = 8
  config.image.name = config.text.name = "linear"
  return models.build(config)


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  image_id = np.repeat(np.arange(B // 2), 2).astype(np.int32)
  image = rng.normal(size=(B // 2, F)).astype(np.float32)[image_id]
  return {"image": image, "text": rng.normal(size=(B, G)).astype(np.float32), "image_id": image_id}


def step_of(model, name="max_of_hinges", **options):
  return functools.partial(
    train.train_step, model=model, transform=optax.sgd(0.1), loss=losses.get(name), **options
  )


def state_of(model, batch, devices=None):
  variables = jax.device_get(model.init(jax.random.key(0), {k: v[:1] for k, v in batch.items()}))
  return train.create_train_state(variables, optax.sgd(0.1), mesh=parallel.mesh(devices))


@pytest.mark.slow
def test_jit_changes_nothing(model, batch):
  state = state_of(model, batch, jax.devices()[:1])
  plain, plain_terms = step_of(model)(state, batch, None)
  jitted, terms = jax.jit(step_of(model))(state, batch, None)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), plain.params, jitted.params
  )
  assert (
    terms.keys()
    == plain_terms.keys()
    >= {"loss", "i2t", "t2i", "gradient_norm", "parameter_norm", "update_norm"}
  )


def test_same_on_1_and_8_devices(model, batch):
  results = []
  for devices in (jax.devices()[:1], jax.devices()):
    mesh = parallel.mesh(devices)
    state, terms = jax.jit(step_of(model))(
      state_of(model, batch, devices), parallel.shard(mesh, batch), None
    )
    results.append((jax.device_get(state.params), float(terms["loss"])))
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6), results[0][0], results[1][0]
  )
  assert results[0][1] == pytest.approx(results[1][1], abs=1e-5)


def test_two_captions_of_one_image_are_negatives_only_as_released(model, batch):
  state = state_of(model, batch)
  _, kind = jax.jit(step_of(model, "sum_of_hinges", match="image_id"))(state, batch, None)
  _, released = jax.jit(step_of(model, "sum_of_hinges", match="pair"))(state, batch, None)
  # Each caption's own image stands twice in the batch: as a negative it violates the margin in
  # full.
  assert released["loss"] > kind["loss"] + 0.2 * B - 1e-4


def test_negatives_of_the_batch_reach_losses_that_take_them(model, batch):
  ids = {
    "image_id": np.arange(B // 2),
    "text_id": np.arange(B),
    "image_features": None,
    "text_features": None,
  }
  parts = types.SimpleNamespace(
    config=base_config(),
    model=model,
    mesh=parallel.mesh(jax.devices()[:1]),
    vocabulary=None,
    loss=losses.get("hard_negative"),
    splits={"train": types.SimpleNamespace(**ids)},
  )
  miner, pool, _ = mining.make(parts)
  state = state_of(model, batch)
  _, mined = jax.jit(step_of(model, "hard_negative", miner=miner))(state, batch, pool)
  _, hinges = jax.jit(step_of(model, "max_of_hinges"))(state, batch, None)
  np.testing.assert_allclose(mined["loss"], hinges["loss"] / B, rtol=1e-5)


def test_randomness_is_a_function_of_seed_and_step(model, batch):
  config = base_config().model
  config.dim = 8
  config.image.name, config.text.name, config.text.dropout = "linear", "mlp", 0.5
  model = models.build(config)
  state = state_of(model, batch)

  steps = [jax.jit(step_of(model, seed=seed)) for seed in (0, 1)]

  def loss(state, seed):
    return float(steps[seed](state, batch, None)[1]["loss"])

  assert loss(state, 0) == loss(state, 0)
  assert loss(state, 0) != loss(state, 1)
  assert loss(state, 0) != loss(state.replace(step=state.step + 1), 0)


@pytest.mark.parametrize(
  "name, value, message",
  [
    ("loss.distance", "l3", "distance is 'l3'; expected one of l1, l2, msd, cosine"),
    (
      "loss.name",
      "pairwise_similarity",
      "loss pairwise_similarity takes scores, positive, which a dual encoder",
    ),
    ("warmup.loss", "triplet", "config.warmup.loss is 'triplet'; expected one of"),
  ],
)
def test_a_loss_that_cannot_run_is_refused_before_the_warm_up(name, value, message):
  from xmr.errors import UserError

  config = base_config()
  config.warmup.epochs = 1.0
  config.update_from_flattened_dict({name: value})
  with pytest.raises(UserError, match=message):
    experiment.losses_of(config, parallel.mesh())


def test_a_batch_that_does_not_split_over_the_devices_is_refused():
  from xmr.errors import UserError

  with pytest.raises(
    UserError, match="config.batch_size is 12; expected a multiple of the 8 devices"
  ):
    parallel.check_batch(parallel.mesh(), 12, name="batch_size")


def test_gathered_rows_are_those_that_were_sharded():
  rows = np.arange(16, dtype=np.float32).reshape(16, 1)
  np.testing.assert_array_equal(
    parallel.gather(parallel.shard(parallel.mesh(), {"x": rows})["x"]), rows
  )
  assert jnp.shape(parallel.replicate(parallel.mesh(), {"x": rows})["x"]) == (16, 1)
