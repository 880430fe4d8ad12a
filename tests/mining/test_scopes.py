"""Mining against brute force in NumPy: every scope, masks, ties, options, devices, resuming."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.common import flickr
from xmr import checkpoint, experiment, losses, mining, models, parallel, train
from xmr.data.split import Split
from xmr.errors import UserError
from xmr.eval.relevance import rouge_l, rouge_l_above
from xmr.mining import pool as pool_lib
from xmr.mining import scopes
from xmr.models.dual_encoder import DualEncoder
from xmr.models.features import Linear
from xmr.models.tokens import Regions
from xmr.ops.alignment import Tokens
from xmr.ops.similarity import similarity
from xmr.training import optim

N, B, WORDS = 90, 16, ["a", "dog", "cat", "runs", "sits", "on", "grass", "snow", "red"]


def make_split(seed=0, images=N, width=(12, 8), dtype=np.float32):
  rng = np.random.default_rng(seed)
  count = np.resize([3, 1, 2], images)
  owner = np.repeat(np.arange(images), count)
  features = [
    rng.normal(size=(n, w)).astype(dtype) for n, w in zip((images, len(owner)), width, strict=True)
  ]
  texts = [" ".join(rng.choice(WORDS, 6)) for _ in owner]
  # Ids in no order: rows are what counts.
  numbers = [rng.permutation(n * 3)[:n].astype(np.int32) for n in (images, len(owner))]
  return Split(
    "train",
    *numbers,
    owner.astype(np.int32),
    [f"{i}.jpg" for i in range(images)],
    texts,
    [t.split() for t in texts],
    image_features=features[0],
    text_features=features[1],
  )


def make_config(**changes):
  config = flickr.get_config("hard_negative", "flickr8k_features")
  config.model.dim = 10
  config.batch_size = B
  config.mining.block = 7
  for side in ("image", "text"):
    config.model[side].bias = config.model[side].input_norm = False
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace("__", "."): value})
  return config


def make_experiment(split, config, devices=1, loss=None):
  model = models.build(config.model)
  example = {
    side: jnp.asarray(getattr(split, f"{side}_features")[:2], jnp.float32)
    for side in ("image", "text")
  }
  variables = jax.device_get(jax.jit(model.init)(jax.random.key(1), example))
  mesh = parallel.mesh(jax.devices()[:devices])
  transform, _ = optim.make(
    config.optimizer, variables["params"], steps_per_epoch=5, total_steps=20
  )
  return types.SimpleNamespace(
    config=config,
    splits={"train": split},
    mesh=mesh,
    model=model,
    vocabulary=None,
    length=None,
    variables=variables,
    transform=transform,
    loss=losses.get(loss or config.loss.name),
  )


def make_batch(split, seed=0):
  text = np.random.default_rng(seed).choice(len(split.text_id), B, replace=False)
  image = split.image_of_text[text]
  return (
    {
      "image": np.asarray(split.image_features[image], np.float32),
      "text": np.asarray(split.text_features[text], np.float32),
      "image_id": split.image_id[image],
      "text_id": split.text_id[text],
    },
    image,
    text,
  )


@functools.cache
def encoder(model, side):
  return jax.jit(functools.partial(model.apply, method=f"encode_{side}"))


def embed(e, split):
  return tuple(
    np.asarray(encoder(e.model, side)(e.variables, np.asarray(x, np.float32)))
    for side, x in (("image", split.image_features), ("text", split.text_features))
  )


def mine(e, batch, step=0, bank=None):
  return miner_of(e)(batch, step, bank)


def miner_of(e):
  """Returns mine(batch, step, bank) of an experiment, one program for all batches."""
  miner, pool, fresh = mining.make(e)

  @jax.jit
  def run(variables, batch, pool, bank, step):
    image, text = e.model.apply(variables, batch)
    tensors = {
      "image": image,
      "text": text,
      "match": batch["image_id"][:, None] == batch["image_id"][None, :],
    }
    return miner(variables, batch, tensors, pool, bank, step=step, key=jax.random.key(3))

  def mined(batch, step=0, bank=None):
    variables, batch = parallel.replicate(e.mesh, e.variables), parallel.shard(e.mesh, batch)
    bank = fresh if bank is None else bank
    return jax.device_get(run(variables, batch, pool, bank, np.int32(step)))

  return mined


def brute_force(embeddings, split, image, text, *, rank=0, skip=None, semi_hard=False):
  """Rows of the mined image and text of every query, by a full matrix and a stable sort."""
  scores = embeddings[0] @ embeddings[1].T
  mined = []
  for side, queries, matrix in (("image", text, scores), ("text", image, scores.T)):
    rows = []
    for k in range(len(text)):
      candidates = matrix[:, queries[k]].copy()
      owners = np.arange(N) if side == "image" else split.image_of_text
      candidates[owners == image[k]] = -np.inf
      if skip is not None:
        relevance = rouge_l(split.texts, split.image_of_text)
        candidates[
          (relevance[text[k]] if side == "image" else relevance[:, image[k]]) > skip
        ] = -np.inf
      if semi_hard:
        candidates[candidates >= scores[image[k], text[k]]] = -np.inf
      order, left = np.argsort(-candidates, kind="stable"), np.count_nonzero(candidates > -np.inf)
      rows.append(order[min(rank, left - 1)] if left else (image if side == "image" else text)[k])
    mined.append(np.array(rows))
  return mined


def assert_mined(found, embeddings, split, rows):
  image, text = rows
  np.testing.assert_allclose(found["image_negative"], embeddings[0][image], atol=1e-6)
  np.testing.assert_allclose(found["text_negative"], embeddings[1][text], atol=1e-6)
  np.testing.assert_array_equal(found["same_pair"], split.image_of_text[text] == image)


def product_of_negatives(image, text, image_negative, text_negative):
  """A user's own loss: it knows arrays [B, D] alone."""
  return jnp.sum(jnp.tanh(image * text_negative) + text * image_negative), {}


def test_a_loss_of_ones_own_gets_rows_of_the_batch_on_several_devices(monkeypatch):
  row = losses.table.Loss(product_of_negatives, losses.table.MINED[:4])
  monkeypatch.setitem(losses.table.LOSSES, "own", row)
  split, found = make_split(), []
  batch, _, _ = make_batch(split)
  for devices in (1, 8):
    e = make_experiment(split, make_config(loss__name="own", mining__scope="batch"), devices)
    loss, _ = experiment.losses_of(e.config, e.mesh)
    miner, pool, _ = mining.make(e)
    step = jax.value_and_grad(
      functools.partial(train.embed_and_compare, model=e.model, loss=loss, miner=miner),
      has_aux=True,
    )
    state = train.create_train_state(e.variables, e.transform, mesh=e.mesh)
    (value, _), gradient = jax.jit(step)(state.params, state, parallel.shard(e.mesh, batch), pool)
    found.append((value, gradient))
  for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "change, devices",
  [
    ({}, 1),
    ({}, 8),
    ({"mining__rank": 3}, 8),
    ({"mining__semi_hard": True}, 1),
    ({"mining__skip_relevance": 0.4}, 8),
    (
      {
        "mining__skip_relevance": 0.4,
        "mining__rank": 2,
        "mining__semi_hard": True,
        "mining__block": 1000,
      },
      1,
    ),
    ({"model__dim": 6}, 8),
    ({"mining__scope": "bank", "mining__skip_relevance": 0.4}, 8),
  ],
  ids=str,
)
def test_the_whole_set_is_mined_as_by_brute_force(change, devices, tmp_path):
  split = make_split()
  config = make_config(**{"mining__scope": "train", **change})
  config.data.cache_dir = str(tmp_path)
  e = make_experiment(split, config, devices)
  batch, image, text = make_batch(split)
  embeddings = embed(e, split)
  m = config.mining
  rows = brute_force(
    embeddings,
    split,
    image,
    text,
    rank=m.rank,
    skip=m.skip_relevance or None,
    semi_hard=m.semi_hard,
  )
  assert_mined(mine(e, batch)[0], embeddings, split, rows)
  if config.mining.skip_relevance:
    assert not np.array_equal(
      rows[1], brute_force(embeddings, split, image, text, rank=m.rank, semi_hard=m.semi_hard)[1]
    )


def test_scores_in_the_space_of_features_are_those_of_embeddings():
  split = make_split(width=(300, 530))
  e = make_experiment(split, make_config(mining__scope="train", model__dim=600))
  options = mining.make(e)[0].keywords["options"]
  assert options.folded == {"image": True, "text": True}
  query = np.random.default_rng(5).normal(size=(B, 600)).astype(np.float32)
  for side, x, expected in zip(
    ("image", "text"), (split.image_features, split.text_features), embed(e, split), strict=True
  ):

    def scored(variables, query, x, side=side):
      shared, score = pool_lib.scorer(variables, side, query, options)
      return score(shared, {"x": x})

    found = jax.jit(scored)(e.variables, query, x)
    np.testing.assert_allclose(found, expected @ query.T, atol=2e-5)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("rank", [0, 1])
def test_equal_scores_go_to_the_lowest_row(rank, devices):
  split = make_split()
  e = make_experiment(split, make_config(mining__scope="train", mining__rank=rank), devices)
  miner, pool, _ = mining.make(e)
  batch, image, text = make_batch(split)
  rng = np.random.default_rng(0)
  # Small whole numbers: many scores are equal, in distant blocks and on other devices, in any order
  # of summation.
  embeddings = {
    side: rng.integers(-1, 2, (len(pool_ids), 3)).astype(np.float32)
    for side, pool_ids in (("image", split.image_id), ("text", split.text_id))
  }
  queries = {"image": embeddings["image"][image], "text": embeddings["text"][text]}
  for side, other in (("image", "text"), ("text", "image")):
    rows = {
      "embedding": parallel.shard_rows(e.mesh, embeddings[side]),
      "owner": pool["rows"][side]["owner"],
    }
    options = miner.keywords["options"]
    scores = {"query": queries[other]}, functools.partial(pool_lib.product_of, options=options)
    index, _ = jax.jit(lambda *a, s=side, q=scores, o=options: pool_lib.hardest(s, q, *a, o))(
      rows, batch, queries, pool
    )
    owner = np.arange(N) if side == "image" else split.image_of_text
    expected = np.where(owner[:, None] == image, -np.inf, embeddings[side] @ queries[other].T)
    np.testing.assert_array_equal(index, np.argsort(-expected, axis=0, kind="stable")[rank])


def test_released_images_come_through_the_reshape():
  split = make_split()
  for devices in (1, 8):
    e = make_experiment(split, make_config(mining__scope="released"), devices)
    batch, image, text = make_batch(split)
    embeddings = embed(e, split)
    rating = (embeddings[0] @ embeddings[1][text].T).reshape(-1)
    chosen = []
    for i in range(B):
      row = rating[N * i : N * (i + 1)].copy()
      row[image[i]] = -np.inf
      chosen.append(np.argmax(row))
    rows = np.array(chosen), brute_force(embeddings, split, image, text)[1]
    assert not np.array_equal(rows[0], brute_force(embeddings, split, image, text)[0])
    assert_mined(mine(e, batch)[0], embeddings, split, rows)


def test_random_negatives_are_distinct_and_of_other_images():
  split = make_split()
  found = []
  for devices in (1, 8):
    e = make_experiment(split, make_config(mining__scope="random"), devices)
    batch, image, _ = make_batch(split)
    mined, embeddings = mine(e, batch)[0], embed(e, split)
    for side in (0, 1):
      distance = np.abs(
        mined[("image_negative", "text_negative")[side]][:, None] - embeddings[side][None]
      ).max(-1)
      rows = distance.argmin(1)
      assert distance.min(1).max() < 1e-6 and len(set(rows)) == B
      assert not set(rows if side == 0 else split.image_of_text[rows]) & set(image)
    found.append(mined)
  np.testing.assert_allclose(found[0]["image_negative"], found[1]["image_negative"], atol=1e-6)


@pytest.mark.parametrize(
  "change",
  [{}, {"mining__rank": 2}, {"mining__semi_hard": True}, {"mining__skip_relevance": 0.4}],
  ids=str,
)
def test_the_batch_is_mined_as_by_brute_force(change, tmp_path):
  split = make_split()
  config = make_config(**change)
  config.data.cache_dir = str(tmp_path)
  e = make_experiment(split, config)
  batch, image, text = make_batch(split, seed=2)
  mined, embeddings = mine(e, batch)[0], embed(e, split)
  relevance = rouge_l(split.texts, split.image_of_text)[np.ix_(text, image)]
  scores = embeddings[0][image] @ embeddings[1][text].T
  allowed = image[:, None] != image[None, :]
  if config.mining.skip_relevance:
    allowed &= relevance.T <= config.mining.skip_relevance
  for name, matrix, may, of in (
    ("text", scores, allowed, text),
    ("image", scores.T, allowed.T, image),
  ):
    for k in range(B):
      candidates = np.where(
        may[k] & ((not config.mining.semi_hard) | (matrix[k] < scores[k, k])), matrix[k], -np.inf
      )
      left = np.count_nonzero(candidates > -np.inf)
      best = (
        np.argsort(-candidates, kind="stable")[min(config.mining.rank, left - 1)] if left else k
      )
      np.testing.assert_allclose(
        mined[f"{name}_negative"][k], embeddings[name == "text"][of[best]], atol=1e-6
      )


@pytest.mark.parametrize("name", ["hard_negative", "margin_hard_negative", "full_hard_negative"])
def test_a_query_without_a_negative_costs_nothing_and_has_no_gradient(name):
  split = make_split()
  e = make_experiment(split, make_config(mining__semi_hard=True), loss=name)
  same = dict.fromkeys(("image_id", "text_id"), np.zeros(B, np.int32))
  batch = make_batch(split)[0] | same

  def loss(variables):
    image, text = e.model.apply(variables, batch)
    tensors = {"image": image, "text": text, "match": jnp.ones((B, B), bool)}
    miner, pool, _ = mining.make(e)
    negatives, _ = miner(variables, batch, tensors, pool, None, step=0, key=jax.random.key(0))
    if name != "full_hard_negative":
      del negatives["same_pair"]
    return e.loss(image, text, **negatives)[0]

  value, gradient = jax.jit(jax.value_and_grad(loss))(e.variables)
  assert value == 0
  assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) == 0


@pytest.mark.parametrize(
  "scope, devices, dtype",
  [
    ("batch", 1, "float32"),
    ("train", 8, "float32"),
    ("train", 1, "bfloat16"),
    ("bank", 1, "bfloat16"),
    pytest.param("train", 1, "float32", marks=pytest.mark.slow),
    pytest.param("bank", 1, "float32", marks=pytest.mark.slow),
    pytest.param("train", 8, "bfloat16", marks=pytest.mark.slow),
  ],
)
def test_copies_of_the_positive_are_no_semi_hard_negatives(scope, devices, dtype):
  split = make_split(width=(256, 200))
  # Five captions, seven pictures: equal ones belong to different images.
  split.text_features[:] = split.text_features[np.arange(len(split.text_id)) % 5]
  split.image_features[:] = split.image_features[np.arange(N) % 7]
  config = make_config(
    mining__scope=scope, mining__semi_hard=True, mining__dtype=dtype, model__dim=150
  )
  e = make_experiment(split, config, devices)
  mined, embeddings = miner_of(e), embed(e, split)
  for seed in range(3):
    batch, image, text = make_batch(split, seed)
    found = mined(batch)[0]
    for side, own in (("image", image), ("text", text)):
      positive = embeddings[side == "text"][own]
      copies = np.abs(found[f"{side}_negative"] - positive).max(axis=1) < 1e-5
      np.testing.assert_array_equal(copies & found[f"{side}_found"], False)
      assert found[f"{side}_found"].any()


def test_siblings_in_a_batch_are_the_same_pair_where_only_the_pair_matches():
  split = make_split()
  e = make_experiment(split, make_config())
  batch, image, text = make_batch(split)
  batch["image_id"] = split.image_id[np.arange(B) % 3]
  miner, pool, _ = mining.make(e)
  rng = np.random.default_rng(0)
  tensors = {side: rng.normal(size=(B, 3)).astype(np.float32) for side in ("image", "text")}
  tensors["match"] = None
  run = jax.jit(functools.partial(miner, step=0, key=jax.random.key(0)))
  found, _ = run(e.variables, batch, tensors, pool, None)
  scores = tensors["image"] @ tensors["text"].T
  np.fill_diagonal(scores, -np.inf)
  mined = {"image": scores.argmax(axis=0), "text": scores.argmax(axis=1)}
  expected = batch["image_id"][mined["image"]] == batch["image_id"][mined["text"]]
  np.testing.assert_array_equal(found["same_pair"], expected)
  assert np.any(expected & (mined["image"] != mined["text"])) and not expected.all()


@pytest.mark.parametrize(
  "scope",
  ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bank", "released"))],
)
def test_steps_are_the_same_on_1_and_8_devices_and_negatives_carry_gradient(scope):
  split, states = make_split(), []
  for devices in (1, 8):
    config = make_config(mining__scope=scope, mining__refresh_steps=2)
    e = make_experiment(split, config, devices, loss="full_hard_negative")
    miner, pool, bank = mining.make(e)
    state = train.create_train_state(e.variables, e.transform, mesh=e.mesh, bank=bank)
    step = jax.jit(
      functools.partial(
        train.train_step, model=e.model, transform=e.transform, loss=e.loss, miner=miner
      )
    )
    for i in range(3):
      state, terms = step(state, parallel.shard(e.mesh, make_batch(split, seed=i)[0]), pool)
    assert np.isfinite(terms["loss"]) and terms["gradient_norm"] > 0
    states.append(jax.device_get(state.params))
  for a, b in zip(*map(jax.tree.leaves, states), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_the_bank_is_refreshed_every_so_many_steps_and_goes_on_from_its_state():
  split = make_split()
  e = make_experiment(split, make_config(mining__scope="bank", mining__refresh_steps=3))
  batch, image, text = make_batch(split)
  old = embed(e, split)
  mined = miner_of(e)
  _, bank = mined(batch, step=6)
  for side, x in zip(("image", "text"), old, strict=True):
    np.testing.assert_allclose(bank[side][: len(x)], x, atol=1e-6)
  e.variables = jax.tree.map(lambda x: x[::-1] * 2, e.variables)
  new = embed(e, split)
  held = {side: parallel.shard_rows(e.mesh, x) for side, x in bank.items()}
  found, kept = mined(batch, step=7, bank=held)
  np.testing.assert_array_equal(kept["text"], bank["text"])
  scores = new[0][image] @ old[1].T
  scores[split.image_of_text[None, :] == image[:, None]] = -np.inf
  np.testing.assert_allclose(found["text_negative"], new[1][scores.argmax(1)], atol=1e-6)
  assert not np.allclose(mined(batch, step=9, bank=held)[1]["text"], bank["text"])


def test_a_resumed_run_with_a_bank_is_bit_identical(tmp_path):
  split = make_split()
  e = make_experiment(split, make_config(mining__scope="bank", mining__refresh_steps=3), devices=8)
  miner, pool, bank = mining.make(e)
  run = jax.jit(
    functools.partial(
      train.train_step, model=e.model, transform=e.transform, loss=e.loss, miner=miner
    )
  )

  def start():
    return train.create_train_state(e.variables, e.transform, mesh=e.mesh, bank=bank)

  def steps(state, first, last):
    for i in range(first, last):
      state, _ = run(state, parallel.shard(e.mesh, make_batch(split, seed=i)[0]), pool)
    return state

  # Stopped at step 5, between the refreshments at 3 and at 6.
  half = steps(start(), 0, 5)
  checkpoints = checkpoint.Checkpoints(tmp_path)
  checkpoints.save(5, params=half.params, state=train.rest(half), run={})
  _, params, rest, _ = checkpoints.latest(start().params, train.rest(start()))
  checkpoints.close()
  resumed = steps(train.TrainState(params=params, **rest), 5, 8)
  for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(steps(start(), 0, 8)), strict=True):
    np.testing.assert_array_equal(a, b)


def test_half_precision_features_stay_so_on_the_device():
  split = make_split(dtype=np.float16)
  e = make_experiment(split, make_config(mining__scope="train"))
  _, pool, _ = mining.make(e)
  assert pool["rows"]["text"]["x"].dtype == jnp.float16
  batch, image, text = make_batch(split)
  embeddings = embed(e, split)
  assert_mined(mine(e, batch)[0], embeddings, split, brute_force(embeddings, split, image, text))


def test_nothing_of_the_size_of_the_set_is_kept():
  split = make_split(images=4000, width=(64, 64))
  e = make_experiment(split, make_config(mining__scope="train", mining__block=256, model__dim=64))
  miner, pool, _ = mining.make(e)
  batch = make_batch(split)[0]
  tensors = {side: jnp.ones((B, 64)) for side in ("image", "text")}
  run = jax.jit(functools.partial(miner, step=0, key=jax.random.key(0)))
  memory = run.lower(e.variables, batch, tensors, pool, None).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 2_000_000 < pool["rows"]["text"]["x"].nbytes


def test_relevant_pairs_are_those_of_the_full_matrix(tmp_path):
  split = make_split()
  relevance = rouge_l(split.texts, split.image_of_text)
  relevance[np.arange(len(split.texts)), split.image_of_text] = 0
  for _ in range(2):
    pairs = rouge_l_above(split.texts, split.image_of_text, above=0.55, cache_dir=tmp_path)
    np.testing.assert_array_equal(pairs, np.argwhere(relevance > 0.55))
  assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"loss__name": "max_of_hinges", "mining__scope": "train"},
      "loss max_of_hinges takes no negatives",
    ),
    ({"mining__scope": "random", "mining__rank": 1}, "config.mining.rank is 1 but scope random"),
    (
      {"mining__scope": "released", "mining__semi_hard": True},
      "config.mining.semi_hard is True but scope released",
    ),
  ],
)
def test_what_has_no_meaning_is_one_clear_error(change, message):
  with pytest.raises(UserError, match=message):
    mining.make(make_experiment(make_split(), make_config(**change)))


def test_regions_are_mined_with_their_masks():
  rng = np.random.default_rng(0)
  split = make_split()
  split = dataclasses.replace(
    split,
    image_features=rng.normal(size=(N, 3, 5)).astype(np.float16),
    image_mask=np.arange(3) < rng.integers(1, 4, (N, 1)),
  )
  model = DualEncoder(Regions(6), Linear(6))
  x, mask = np.asarray(split.image_features, np.float32), split.image_mask
  init = {"image": x, "image_mask": mask, "text": x[:, 0]}
  variables = jax.jit(model.init)(jax.random.key(0), init)
  mesh = parallel.mesh(jax.devices()[:2])
  options = pool_lib.Options(model, mesh, {}, {}, {}, block=7)
  rows = pool_lib.place(mesh, split, None, length=None)["image"]
  wanted = np.asarray(encoder(model, "image")(variables, x, mask))
  assert np.abs(wanted - encoder(model, "image")(variables, x)).max() > 0.1
  found = jax.jit(lambda v, r: pool_lib.embedded(v, "image", r, options))(variables, rows)[:N]
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  index = np.array([80, 3, 44])

  def encoded(variables, rows, index):
    return pool_lib.encode(variables, "image", pool_lib.rows_at(rows, index, options), options)

  np.testing.assert_allclose(jax.jit(encoded)(variables, rows, index), wanted[index], atol=1e-6)


def test_adapted_kernels_are_not_scored_in_the_space_of_features():
  split = make_split(width=(8, 8))
  assert pool_lib.folds(make_config(), split, "image")
  assert not pool_lib.folds(make_config(**{"model__lora.rank": 2}), split, "image")


def test_copies_of_the_positive_are_no_semi_hard_negatives_among_tokens():
  rng = np.random.default_rng(0)
  x = rng.normal(size=(6, 4, 5)).astype(np.float32)
  text = Tokens(x[::-1].copy(), np.ones((6, 4), bool))
  # Image 1 has the tokens of image 0 in another order: its score differs by rounding alone.
  x[1] = x[0, ::-1]
  image = Tokens(x, np.ones((6, 4), bool))
  batch = {"image_id": np.arange(6), "text_id": np.arange(6)}
  options = pool_lib.Options(None, None, {}, {}, {}, semi_hard=True, kind="symmetric_mean")
  tensors = {"image": image, "text": text, "match": None}
  run = functools.partial(scopes.in_batch, step=0, key=None, options=options)
  negatives, _ = jax.jit(lambda tensors: run(None, batch, tensors, {}, None))(tensors)
  scores = np.asarray(jax.jit(functools.partial(similarity, kind="symmetric_mean"))(image, text))
  for n in np.flatnonzero(negatives["image_found"]):
    mined = np.flatnonzero((image.x == negatives["image_negative"].x[n]).all(axis=(1, 2)))
    assert scores[mined, n] < scores[n, n] and not {int(mined[0]), int(n)} <= {0, 1}


def test_pixels_are_mined_in_the_batch_alone():
  split = dataclasses.replace(make_split(), image_features=None)
  with pytest.raises(
    UserError, match="config.mining.scope is 'train' but config.data.image is 'pixels'"
  ):
    mining.check(make_config(mining__scope="train"), split, takes_negatives=True)
