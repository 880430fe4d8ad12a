"""One device or many, one answer: every loss, every scope of mining, evaluation; and the ring form
through the train step.
"""

import functools
import inspect

import jax
import numpy as np
import optax
import pytest
import test_scopes

from xmr import encode, experiment, losses, mining, parallel, train
from xmr.config import base_config
from xmr.errors import UserError
from xmr.eval import protocol, ranks, top_k
from xmr.ops.alignment import Tokens

B, D, TOKENS = 32, 12, 5
# Two devices take a third program of everything.
STEPPED = ("train", "bank", "released")
COUNTS = (8, pytest.param(2, marks=pytest.mark.slow))


def tensors_of(name, seed=0):
  """Returns the tensors that a loss takes, by name, as a batch would supply them."""
  rng = np.random.default_rng(seed)
  shape = (B, TOKENS, D) if name == "aligned_full_hard_negative" else (B, D)

  def rows(near=None):
    x = rng.normal(size=shape) + (0.3 if near is None else near)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)

  image_id = np.repeat(np.arange(B // 2), 2)
  image = rows()
  tensors = {
    "image": image,
    "text": rows(image),
    "image_negative": rows(image),
    "text_negative": rows(image),
    "match": image_id[:, None] == image_id[None, :],
    "same_pair": (rng.random(B) < 0.5).astype(np.float32),
    "scores": rng.normal(size=B).astype(np.float32),
    "positive": rng.random(B) < 0.4,
    "hardness": rng.random(B).astype(np.float32),
    "image_mask": np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (B, 1)),
    "text_mask": np.arange(TOKENS) < rng.integers(2, TOKENS + 1, (B, 1)),
  }
  taken = inspect.signature(losses.LOSSES[name]).parameters
  return {key: value for key, value in tensors.items() if key in taken}


def close(found, expected):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * max(1, np.abs(b).max(initial=0)))


@pytest.mark.parametrize("devices", COUNTS)
@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_loss_has_the_same_value_and_gradient_on_one_device_and_many(name, devices):
  tensors = tensors_of(name)
  floats = [key for key, value in tensors.items() if value.dtype == np.float32]

  def value(wanted, others):
    return losses.LOSSES[name](**wanted, **others)

  results = []
  for count in (1, devices):
    on_mesh = parallel.shard(parallel.mesh(jax.devices()[:count]), tensors)
    wanted = {key: on_mesh.pop(key) for key in floats}
    (loss, terms), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(wanted, on_mesh)
    results.append(jax.device_get((loss, terms, gradient)))
  assert any(np.any(leaf) for leaf in jax.tree.leaves(results[0][2]))
  close(results[1], results[0])


@pytest.mark.slow
def test_losses_on_tokens_have_the_same_value_and_gradient_on_1_and_8_devices():
  """A token's loss over the batch, a mined one and F-TERAN, in one program."""
  rows = tensors_of("aligned_full_hard_negative")
  match, results = rows.pop("match"), []

  def total(arrays, masks):
    image, text = (Tokens(arrays[side], masks[f"{side}_mask"]) for side in ("image", "text"))
    negatives = [jax.tree.map(lambda x: jax.numpy.roll(x, 3, 0), side) for side in (image, text)]
    values = [
      losses.max_of_hinges(image, text, match=match, kind="MrSw")[0],
      losses.info_nce(image, text, match=match, kind="symmetric_mean")[0],
      losses.hard_negative(image, text, *negatives, kind="MwSr")[0],
      losses.aligned_full_hard_negative(image, text, match=match)[0],
    ]
    return sum(values), values

  for count in (1, 8):
    placed = parallel.shard(parallel.mesh(jax.devices()[:count]), rows)
    arrays = {side: placed.pop(side) for side in ("image", "text")}
    (_, values), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(arrays, placed)
    results.append(jax.device_get((values, gradient)))
  assert all(value > 0 for value in results[0][0])
  close(results[1], results[0])


def test_ranks_by_alignments_on_eight_devices_equal_one_exactly():
  rng = np.random.default_rng(4)
  owner = np.repeat(np.arange(16), 2)
  image = Tokens(rng.normal(size=(16, 3, D)).astype(np.float32), np.ones((16, 3), bool))
  mask = np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (32, 1))
  text = Tokens(rng.normal(size=(32, TOKENS, D)).astype(np.float32), mask)
  spread = [jax.device_put(x, parallel.sharded(parallel.mesh())) for x in (image, text)]
  assert len(spread[0].x.sharding.device_set) == 8
  assert protocol.score(*spread, owner, kind="symmetric") == protocol.score(
    image, text, owner, kind="symmetric"
  )


# The other scopes on eight devices: tests/mining/test_scopes.py, three steps of each.
@pytest.mark.parametrize(
  ("scope", "devices"),
  [
    pytest.param(scope, devices, marks=[pytest.mark.slow] * (devices == 2 or scope in STEPPED))
    for scope in ("batch", "random", *STEPPED)
    for devices in (2, 8)
  ],
)
def test_every_scope_of_mining_has_the_same_value_and_gradient_on_one_device_and_many(
  scope, devices
):
  split, results = test_scopes.make_split(), []
  batch = test_scopes.make_batch(split)[0]
  for count in (1, devices):
    e = test_scopes.make_experiment(
      split, test_scopes.make_config(mining__scope=scope), count, loss="full_hard_negative"
    )
    miner, pool, bank = mining.make(e)
    # A step of 1 against the gradient: the parameters hold it.
    transform = optax.sgd(1.0)
    state = train.create_train_state(e.variables, transform, mesh=e.mesh, bank=bank)
    step = jax.jit(
      functools.partial(
        train.train_step, model=e.model, transform=transform, loss=e.loss, miner=miner
      )
    )
    state, terms = step(state, parallel.shard(e.mesh, batch), pool)
    results.append(jax.device_get((terms["loss"], state.params)))
    assert terms["gradient_norm"] > 0
  close(results[1], results[0])


def ring_config(**changes):
  config = base_config()
  config.loss_form, config.model.dim = "ring", D
  config.model.image.name = config.model.text.name = "linear"
  config.update_from_flattened_dict(changes)
  return config


@pytest.mark.parametrize(
  ("name", "match"),
  [
    pytest.param(name, match, marks=[pytest.mark.slow] * (match == "pair" and name != "sigmoid"))
    for name in losses.RING
    for match in ("image_id", "pair")
  ],
)
def test_a_step_in_ring_form_is_the_plain_step(name, match):
  mesh = parallel.mesh()
  config = ring_config(**{"loss.name": name})
  rows = tensors_of(name)
  model = test_scopes.models.build(config.model)
  batch = {
    "image": rows["image"],
    "text": rows["text"],
    "image_id": np.repeat(np.arange(B // 2), 2).astype(np.int32),
  }
  variables = jax.device_get(
    model.init(jax.random.key(0), {key: value[:1] for key, value in batch.items()})
  )
  results = []
  for form in ("plain", "ring"):
    config.loss_form = form
    loss, warmup = experiment.losses_of(config, mesh)
    found = []
    # The warm-up's loss is the same whatever follows it.
    for each in (loss, warmup) if name == "sigmoid" else (loss,):
      state = train.create_train_state(variables, optax.sgd(1.0), mesh=mesh)
      step = jax.jit(
        functools.partial(
          train.train_step, model=model, transform=optax.sgd(1.0), loss=each, match=match
        )
      )
      state, terms = step(state, parallel.shard(mesh, batch), None)
      found.append(jax.device_get((state.params, terms)))
    results.append(found)
  close(results[1], results[0])


def test_a_loss_without_a_ring_form_is_refused():
  with pytest.raises(
    UserError,
    match="loss hard_negative has no ring form; expected one of imc, .*config.loss_form=plain",
  ):
    experiment.losses_of(ring_config(**{"loss.name": "hard_negative"}), parallel.mesh())
  with pytest.raises(KeyError, match="loss imc has no parameter temperature"):
    ring_config(**{"loss.temperature": 0.1})


@pytest.mark.parametrize("kind", ["cosine", "dot", "order"])
def test_evaluation_on_eight_devices_equals_one_exactly(kind):
  rng = np.random.default_rng(3)
  image_of_text = np.repeat(np.arange(64), 3).astype(np.int32)
  image = rng.normal(size=(64, D)).astype(np.float32)
  image[5] = image[9]
  text = (image[image_of_text] + rng.normal(size=(192, D))).astype(np.float32)
  spread = encode.over_devices(image, parallel.mesh())
  assert len(spread.sharding.device_set) == 8
  assert protocol.score(spread, text, image_of_text, kind=kind) == protocol.score(
    image, text, image_of_text, kind=kind
  )
  queries = encode.over_devices(text, parallel.mesh())
  found, expected = (
    ranks(x, image, image_of_text, kind=kind, text_query=True) for x in (queries, text)
  )
  np.testing.assert_array_equal(found, expected)
  for found, expected in zip(
    top_k(queries, image, 7, kind=kind), top_k(text, image, 7, kind=kind), strict=True
  ):
    np.testing.assert_array_equal(found, expected)
