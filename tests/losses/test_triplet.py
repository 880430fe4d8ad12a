"""SH and MH: against triple loops, the released code, and batches that break careless code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from xmr.losses import max_of_hinges, sum_of_hinges
from xmr.ops import tiles

LOSSES = {"sum_of_hinges": sum_of_hinges, "max_of_hinges": max_of_hinges}


def unit_rows(seed, batch=9, dim=7):
  x = np.random.default_rng(seed).normal(size=(2, batch, dim))
  return (x / np.linalg.norm(x, axis=2, keepdims=True)).astype(np.float32)


def pair_score(image, text, kind):
  if kind == "order":
    return -np.sqrt(
      sum(max(0.0, float(t) - float(v)) ** 2 for v, t in zip(image, text, strict=True))
    )
  dot = sum(float(v) * float(t) for v, t in zip(image, text, strict=True))
  return dot / np.linalg.norm(image) / np.linalg.norm(text) if kind == "cosine" else dot


def hinges_by_loops(image, text, match, margin, kind):
  """[query direction][query] -> list of hinges of its negatives."""
  batch = len(image)
  i2t, t2i = [[] for _ in range(batch)], [[] for _ in range(batch)]
  for n in range(batch):
    for m in range(batch):
      if n != m and not match[n][m]:
        s = pair_score(image[n], text[m], kind)
        i2t[n].append(max(0.0, margin + s - pair_score(image[n], text[n], kind)))
        t2i[m].append(max(0.0, margin + s - pair_score(image[m], text[m], kind)))
  return i2t, t2i


@pytest.mark.parametrize("kind", ["dot", "cosine", "order"])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_triple_loops(name, kind):
  image, text = unit_rows(0)
  image, text = abs(image) * 1.3, abs(text)
  ids = np.array([0, 1, 2, 0, 4, 5, 2, 2, 8])
  match = ids[:, None] == ids[None, :]
  i2t, t2i = hinges_by_loops(image, text, match, 0.3, kind)
  pick = sum if name == "sum_of_hinges" else max
  loss, terms = LOSSES[name](image, text, match=match, margin=0.3, kind=kind)
  np.testing.assert_allclose(terms["i2t"], sum(map(pick, i2t)), rtol=2e-6)
  np.testing.assert_allclose(terms["t2i"], sum(map(pick, t2i)), rtol=2e-6)
  np.testing.assert_allclose(loss, terms["i2t"] + terms["t2i"], rtol=1e-6)
  counted = sum(i2t + t2i, []) if name == "sum_of_hinges" else [max(h) for h in i2t + t2i]
  np.testing.assert_allclose(terms["active"], np.mean([h > 0 for h in counted]), rtol=1e-6)
  mean, _ = LOSSES[name](image, text, match=match, margin=0.3, kind=kind, reduce="mean")
  np.testing.assert_allclose(mean, loss / 9, rtol=1e-6)


@pytest.mark.parametrize("file", ["spread", "paired", "collapsed"])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_released_code(golden, name, file):
  stored = golden(f"imc_losses_{file}")
  value_and_grad = jax.jit(
    jax.value_and_grad(lambda i, t: LOSSES[name](i, t, margin=0.2)[0], (0, 1))
  )
  value, gradients = value_and_grad(stored["image"], stored["text"])
  np.testing.assert_allclose(value, stored[name], rtol=1e-5)
  for side, gradient in zip(("image", "text"), gradients, strict=True):
    expected = stored[f"{name}_grad_{side}"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("kind", ["dot", "cosine", "order"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope(name, kind):
  with jax.enable_x64(True):
    image, text = unit_rows(1).astype(np.float64)
    if kind == "order":
      image, text = abs(image) + 0.5, abs(text)
    loss = jax.jit(lambda i, t: LOSSES[name](i, t, kind=kind)[0])
    check_grads(loss, (image, text), order=1, modes=["rev"], rtol=1e-5, eps=1e-7)


def test_gathered_negatives_equal_the_plain_maximum():
  image, text = unit_rows(2, batch=33, dim=16)

  def plain(image, text):
    scores = image @ text.T
    positive = jnp.diagonal(scores)
    others = jnp.where(jnp.eye(len(scores), dtype=bool), -jnp.inf, scores)
    i2t = jax.nn.relu(0.2 + others.max(1) - positive)
    return i2t.sum() + jax.nn.relu(0.2 + others.max(0) - positive).sum()

  expected = jax.value_and_grad(plain, (0, 1))(image, text)
  found = jax.value_and_grad(lambda i, t: max_of_hinges(i, t)[0], (0, 1))(image, text)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


def test_of_tied_negatives_the_lowest_index_takes_the_gradient():
  text = np.eye(4, dtype=np.float32)
  image = np.array([[0.5, 0.5, 0.5, 0.5]] + [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
  gradient = jax.grad(lambda t: max_of_hinges(image, t)[1]["i2t"])(text)
  np.testing.assert_allclose(gradient[1], image[0], atol=1e-6)
  np.testing.assert_allclose(gradient[2:], 0, atol=1e-6)


def test_duplicate_image_is_not_a_negative():
  image = text = np.eye(4, dtype=np.float32)[[0, 1, 0, 3]]
  match = (image @ text.T).astype(bool)
  np.testing.assert_allclose(max_of_hinges(image, text)[0], 4 * 0.2, rtol=1e-6)
  assert max_of_hinges(image, text, match=match)[0] == 0
  gradient = jax.grad(lambda t: sum_of_hinges(image[:3:2], t, match=np.ones((2, 2)))[0])(text[:3:2])
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_collapsed_batch_costs_two_margins_per_negative_or_query(name):
  same = np.full((12, 16), 0.25, np.float32)
  loss, terms = LOSSES[name](same, same, margin=0.2)
  np.testing.assert_allclose(loss, 2 * 0.2 * 12 * (11 if name == "sum_of_hinges" else 1), rtol=1e-5)
  assert terms["active"] == 1
  if name == "max_of_hinges":
    np.testing.assert_allclose(terms["same_hardest"], 11 / 12, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dot", "cosine", "order"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", ["one", "zeros", "identical", "all match"])
def test_degenerate_batches_have_finite_gradients(name, kind, batch):
  image, text = unit_rows(4, batch=1 if batch == "one" else 5)
  match = np.ones((5, 5), bool) if batch == "all match" else None
  if batch == "zeros":
    image, text = 0 * image, 0 * text
  if batch == "identical":
    image = text = np.ones_like(image)
  value_and_grad = jax.value_and_grad(
    lambda i, t: LOSSES[name](i, t, match=match, kind=kind), (0, 1), has_aux=True
  )
  (loss, terms), gradients = jax.jit(value_and_grad)(image, text)
  assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)
  if batch in ("one", "all match"):
    assert loss == 0 and not any(np.any(g) for g in gradients)
    assert not any(np.isnan(value) for value in terms.values())


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_inputs_are_computed_in_float32(name):
  image, text = (jnp.asarray(x, jnp.bfloat16) for x in unit_rows(5))
  loss, _ = jax.jit(LOSSES[name])(image, text)
  expected, _ = LOSSES[name](np.asarray(image, np.float32), np.asarray(text, np.float32))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_same_under_jit_and_on_eight_devices(name):
  image, text = unit_rows(6, batch=32, dim=24)
  ids = np.arange(32) // 2
  match = ids[:, None] == ids[None, :]
  value_and_grad = jax.value_and_grad(
    lambda i, t, m: LOSSES[name](i, t, match=m), (0, 1), has_aux=True
  )
  expected = value_and_grad(image, text, match)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec("data"))
  for arguments in ((image, text, match), jax.device_put((image, text, match), rows)):
    found = jax.jit(value_and_grad)(*arguments)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected
    )


@pytest.mark.parametrize("loss", [sum_of_hinges, max_of_hinges])
@pytest.mark.parametrize("batch", [3, 16, 41])
def test_the_tiles_of_one_device_change_nothing(monkeypatch, loss, batch):
  image, text = unit_rows(0, batch)
  match = np.random.default_rng(2).random((batch, batch)) < 0.2

  def value_and_gradient():
    def weighted(image, text):
      terms = loss(image, text, match=match, margin=0.3)[1]
      return 2 * terms["i2t"] + 3 * terms["t2i"], terms

    return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(image, text)

  whole = value_and_gradient()
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  monkeypatch.setattr(tiles, "ROWS", 16)
  for found, expected in zip(
    jax.tree.leaves(value_and_gradient()), jax.tree.leaves(whole), strict=True
  ):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [sum_of_hinges, max_of_hinges])
def test_one_device_keeps_one_matrix_of_scores(monkeypatch, loss):
  monkeypatch.setattr(jax, "device_count", lambda: 1)
  x = jax.ShapeDtypeStruct((2048, 1024), np.float32)
  step = jax.jit(jax.value_and_grad(lambda image, text: loss(image, text)[0], argnums=(0, 1)))
  memory = step.lower(x, x).compile().memory_analysis()
  # Scores, a byte for each, the mask, a few tiles.
  assert memory.temp_size_in_bytes < 1.7 * 4 * 2048**2


def test_errors_name_what_was_found():
  image, text = unit_rows(7, batch=8)
  with pytest.raises(ValueError, match=r"text has shape \(6, 7\); expected \(8, 7\) as image has"):
    sum_of_hinges(image, text[:6])
  with pytest.raises(ValueError, match=r"image has shape \(7,\); expected \[B, D\]"):
    max_of_hinges(image[0], text[0])
  with pytest.raises(
    ValueError, match=r"match has shape \(8, 6\); expected \(8, 8\) for 8 images and 8 texts"
  ):
    max_of_hinges(image, text, match=np.ones((8, 6), bool))
  with pytest.raises(ValueError, match="reduce is 'max'; expected one of sum, mean"):
    sum_of_hinges(image, text, reduce="max")
