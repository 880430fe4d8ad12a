"""config.shard_params: parameters and optimiser in parts over eight devices train as whole ones do,
and checkpoints go from one form to the other.
"""

import jax
import numpy as np
import optax
import pytest

from xmr import checkpoint, experiment, models, parallel, train
from xmr.config import base_config
from xmr.models import lora

B, F, G = 16, 24, 40
STEPS = 3


def parts(adapters):
  config = base_config()
  config.model.dim = 16
  config.model.image.name = "mlp"
  config.model.image.hidden = 32
  config.model.text.name = "linear"
  config.loss.name, config.loss.learn = "sigmoid", ("temperature", "bias")
  if adapters:
    config.model.lora.rank = 2
    config.model.lora.kernels = "."
  mesh = parallel.mesh()
  model = models.build(config.model)
  loss, _ = experiment.losses_of(config, mesh)
  rng = np.random.default_rng(0)
  batch = {
    "image": rng.normal(size=(B, F)).astype(np.float32),
    "text": rng.normal(size=(B, G)).astype(np.float32),
    "image_id": np.arange(B, dtype=np.int32) // 2,
  }
  variables = jax.device_get(model.init(jax.random.key(0), {k: v[:1] for k, v in batch.items()}))
  variables["params"]["loss"] = loss.start()
  return mesh, model, loss, parallel.shard(mesh, batch), variables


def transform():
  parts = optax.clip_by_global_norm(2.0), optax.scale_by_adam(), optax.scale(-0.01)
  return optax.chain(*parts)


def trained(mesh, model, loss, batch, state, split, steps=STEPS):
  step = train.compiled(
    transform=transform(),
    model=model,
    loss=loss,
    ema=0.9,
    split_over=mesh if split else None,
  )
  for _ in range(steps):
    state, terms = step(state, batch, None)
  return state, terms


def close(found, expected):
  for name, value in checkpoint.flatten(expected).items():
    np.testing.assert_allclose(
      checkpoint.flatten(found)[name], value, rtol=1e-6, atol=1e-6, err_msg=name
    )


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True])
def test_training_in_parts_is_training_whole_and_checkpoints_go_both_ways(adapters, tmp_path):
  mesh, model, loss, batch, variables = parts(adapters)
  states, folders = {}, {}
  for split in (False, True):
    state = train.create_train_state(variables, transform(), mesh=mesh, averaged=True, split=split)
    state, terms = trained(mesh, model, loss, batch, state, split)
    states[split] = jax.device_get((state.params, state.opt_state, state.average, terms))
    checkpoints = checkpoint.Checkpoints(tmp_path / str(split))
    checkpoints.directory.parent.mkdir()
    checkpoints.save(STEPS, params=state.average, state=train.rest(state), run={})
    checkpoints.close()
    folders[split] = checkpoints
    for tree in (state.params, state.opt_state, state.average):
      for x in jax.tree.leaves(tree):
        wanted = parallel.split(mesh, x.shape) if split else parallel.replicated(mesh)
        assert x.sharding.is_equivalent_to(wanted, x.ndim)
  kernels = [x for x in jax.tree.leaves(state.params) if x.ndim == 2 and x.size % 8 == 0]
  assert kernels and all(x.addressable_shards[0].data.size == x.size // 8 for x in kernels)
  close(states[True], states[False])
  # What was saved whole goes on in parts, and the other way round, as both would have gone on.
  went_on = []
  for split in (False, True):
    state = train.create_train_state(variables, transform(), mesh=mesh, averaged=True, split=split)
    _, average, rest, _ = folders[not split].latest(state.params, train.rest(state))
    state = train.TrainState(average=average, **rest)
    went_on.append(trained(mesh, model, loss, batch, state, split, steps=1)[0].params)
  close(went_on[1], went_on[0])
  assert (lora.ADAPTERS in variables["params"]) == adapters


def test_a_parameter_is_split_by_its_largest_axis_that_divides():
  mesh = parallel.mesh()
  for shape, axis in (((8, 24, 7), 1), ((16, 100), 0), ((7, 9), None), ((), None), ((24, 24), 0)):
    spec = parallel.split(mesh, shape).spec
    assert [i for i, name in enumerate(spec) if name] == ([] if axis is None else [axis])
