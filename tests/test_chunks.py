"""A batch in parts gives the numbers of the whole batch, for every loss and on eight devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr import losses, parallel
from xmr.models.dual_encoder import DualEncoder
from xmr.models.features import MLP, Linear
from xmr.models.tokens import Regions, Words
from xmr.models.vit import ImageTower
from xmr.training import chunks

ROWS, WIDTH = 32, 12


@pytest.fixture(scope="module")
def batch():
  generator = np.random.default_rng(0)
  rows = {
    side: generator.normal(size=(ROWS, WIDTH)).astype(np.float32) for side in ("image", "text")
  }
  return rows | {"image_id": np.arange(ROWS, dtype=np.int32) // 2}


def encoder(dropout=0.0):
  return DualEncoder(MLP(8, hidden=10, depth=1, dropout=dropout), Linear(8))


def value_and_gradient(model, params, batch, *, count, loss, key=0):
  """Loss and gradient of a batch in `count` parts."""

  def objective(params):
    image, text, _ = chunks.encoded(
      model, {"params": params}, batch, chunks=count, key=jax.random.key(key)
    )
    return loss(image, text, batch)

  return jax.jit(jax.value_and_grad(objective))(params)


def of_batch(name):
  same = {"match": lambda batch: batch["image_id"][:, None] == batch["image_id"][None]}
  return lambda image, text, batch: losses.LOSSES[name](image, text, match=same["match"](batch))[0]


def rolled(name, **options):
  """A loss of mined negatives, here the next row."""
  return lambda image, text, batch: losses.LOSSES[name](
    image, text, jnp.roll(image, 1, 0), jnp.roll(text, 1, 0), **options
  )[0]


LOSSES = {
  **{
    name: of_batch(name)
    for name in ("sum_of_hinges", "max_of_hinges", "imc", "info_nce", "sigmoid")
  },
  "hard_negative": rolled("hard_negative"),
  "margin_hard_negative": rolled("margin_hard_negative"),
  "full_hard_negative": rolled("full_hard_negative", same_pair=jnp.zeros(ROWS)),
}


# One of each kind; the others of the kind in the slow set.
QUICK = ("max_of_hinges", "imc", "info_nce", "full_hard_negative")


def equal(found, want):
  scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(want))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * scale), found, want
  )


@pytest.mark.parametrize(
  "name",
  [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LOSSES],
)
def test_loss_and_gradient_are_those_of_the_whole_batch(batch, name):
  model = encoder()
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  want = value_and_gradient(model, params, batch, count=1, loss=LOSSES[name])
  equal(value_and_gradient(model, params, batch, count=4, loss=LOSSES[name]), want)


@pytest.mark.slow
def test_losses_on_tokens_in_parts_are_those_of_the_whole_batch_on_eight_devices_too(batch):
  rng = np.random.default_rng(1)
  rows = {
    "image": rng.normal(size=(ROWS, 3, WIDTH)).astype(np.float32),
    "image_mask": np.arange(3) < rng.integers(1, 4, (ROWS, 1)),
    "text": rng.integers(0, 9, (ROWS, 6)).astype(np.int32),
    "text_length": rng.integers(3, 7, ROWS).astype(np.int32),
    "image_id": batch["image_id"],
  }
  model = DualEncoder(Regions(8), Words(8, 9, word_dim=4, layers=1, heads=2, dropout=0.0))
  params = model.init(jax.random.key(0), rows)["params"]

  def objective(params, rows, count):
    image, text, _ = chunks.encoded(
      model, {"params": params}, rows, chunks=count, key=jax.random.key(0), tokens=True
    )
    match = rows["image_id"][:, None] == rows["image_id"][None]
    # One program for both: each is a sum of hinges of the same size.
    hinges = losses.max_of_hinges(image, text, match=match, kind="symmetric")[0]
    return hinges + losses.aligned_full_hard_negative(image, text, match=match)[0]

  found = jax.jit(jax.value_and_grad(objective), static_argnums=2)
  want = found(params, rows, 1)
  equal(found(params, rows, 4), want)
  mesh = parallel.mesh()
  equal(found(parallel.replicate(mesh, params), parallel.shard(mesh, rows), 4), want)


@pytest.mark.parametrize("form", ["plain", "ring"])
def test_the_same_on_eight_devices(batch, form):
  model, mesh = encoder(), parallel.mesh()
  assert mesh.size == 8
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  loss = of_batch("info_nce")
  want = value_and_gradient(model, params, batch, count=1, loss=loss)
  if form == "ring":
    ring = parallel.over_rows(mesh, losses.get_ring("info_nce"))
    loss = lambda image, text, batch: ring(image, text, image_id=batch["image_id"])[0]  # noqa: E731
  placed = parallel.shard(mesh, batch)
  found = value_and_gradient(model, parallel.replicate(mesh, params), placed, count=2, loss=loss)
  equal(found, want)


def test_each_device_encodes_its_own_rows(batch):
  mesh = parallel.mesh()
  model = encoder()
  params = parallel.replicate(mesh, jax.jit(model.init)(jax.random.key(0), batch)["params"])
  placed = parallel.shard(mesh, batch)
  embed = functools.partial(chunks.encoded, model, chunks=4, key=jax.random.key(0))
  compiled = jax.jit(lambda p, b: embed({"params": p}, b)[:2]).lower(params, placed).compile()
  text = compiled.as_text()
  assert "all-gather" not in text and "all-to-all" not in text


def test_dropout_is_the_same_in_both_encodings(batch):
  """The gradient of the sum of embeddings, by hand from the parts' own keys."""
  model = encoder(dropout=0.5)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  weights = jax.random.normal(jax.random.key(2), (ROWS, 8))

  def loss(image, text, batch):
    return jnp.sum(image * weights) + jnp.sum(text)

  found = value_and_gradient(model, params, batch, count=4, loss=loss, key=5)

  def by_hand(params):
    total = 0.0
    for number, key in enumerate(jax.random.split(jax.random.key(5), 4)):
      part = {name: x[number::4] for name, x in batch.items()}
      image, text = model.apply({"params": params}, part, train=True, rngs={"dropout": key})
      total += jnp.sum(image * weights[number::4]) + jnp.sum(text)
    return total

  equal(found, jax.jit(jax.value_and_grad(by_hand))(params))


@pytest.mark.slow
def test_memory_for_activations_of_a_tower_falls_as_one_over_the_parts():
  """Planned for, not allocated; a loss without [B, B], which does not depend on the parts."""
  size = {"width": 32, "layers": 2, "heads": 2, "mlp_width": 128}
  model = DualEncoder(ImageTower(32, "clip", patch=8, grid=4, **size), Linear(32))
  batch = {
    "image": jax.ShapeDtypeStruct((256, 32, 32, 3), np.uint8),
    "text": jax.ShapeDtypeStruct((256, 8), np.float32),
  }
  params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]

  def temporary(count):
    def objective(params, batch):
      image, text, _ = chunks.encoded(
        model, {"params": params}, batch, chunks=count, key=jax.random.key(0)
      )
      return jnp.sum(image * text)

    step = jax.jit(jax.grad(objective)).lower(params, batch).compile()
    return step.memory_analysis().temp_size_in_bytes

  assert temporary(8) < 0.15 * temporary(1)
