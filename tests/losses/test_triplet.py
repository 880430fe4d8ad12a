"""SH and MH: against triple loops, the released code, and batches that break careless code."""

import jax
import jax.numpy as jnp
import numpy as np
import programs
import pytest

from xmr.losses import max_of_hinges, sum_of_hinges
from xmr.ops import tiles

LOSSES = {"sum_of_hinges": sum_of_hinges, "max_of_hinges": max_of_hinges}


def value_and_grad(name, **parameters):
  """The program that most tests share; its gradients are those of image and text."""
  return programs.value_and_grad(LOSSES[name], (0, 1), has_aux=True, **parameters)


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
  program = programs.value(LOSSES[name], margin=0.3, kind=kind)
  loss, terms = program(image, text, match=match)
  np.testing.assert_allclose(terms["i2t"], sum(map(pick, i2t)), rtol=2e-6)
  np.testing.assert_allclose(terms["t2i"], sum(map(pick, t2i)), rtol=2e-6)
  np.testing.assert_allclose(loss, terms["i2t"] + terms["t2i"], rtol=1e-6)
  counted = sum(i2t + t2i, []) if name == "sum_of_hinges" else [max(h) for h in i2t + t2i]
  np.testing.assert_allclose(terms["active"], np.mean([h > 0 for h in counted]), rtol=1e-6)
  if kind == "dot":
    program = programs.value(LOSSES[name], margin=0.3, kind=kind, reduce="mean")
    np.testing.assert_allclose(program(image, text, match=match)[0], loss / 9, rtol=1e-6)


@pytest.mark.parametrize("file", ["spread", "paired", "collapsed"])
@pytest.mark.parametrize("name", LOSSES)
def test_equals_the_released_code(golden, name, file):
  stored = golden(f"imc_losses_{file}")
  (value, _), gradients = value_and_grad(name)(stored["image"], stored["text"])
  np.testing.assert_allclose(value, stored[name], rtol=1e-5)
  for side, gradient in zip(("image", "text"), gradients, strict=True):
    expected = stored[f"{name}_grad_{side}"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("kind", ["dot", "cosine", "order"])
@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_slope(name, kind):
  image, text = unit_rows(1)
  if kind == "order":
    image, text = abs(image) + 0.5, abs(text)
  programs.assert_gradient_is_the_slope(value_and_grad(name, kind=kind), image, text, step=1e-7)


def test_gathered_negatives_equal_the_plain_maximum():
  image, text = unit_rows(2, batch=24, dim=32)

  def plain(image, text):
    scores = image @ text.T
    positive = jnp.diagonal(scores)
    others = jnp.where(jnp.eye(len(scores), dtype=bool), -jnp.inf, scores)
    i2t = jax.nn.relu(0.2 + others.max(1) - positive)
    return i2t.sum() + jax.nn.relu(0.2 + others.max(0) - positive).sum()

  expected = jax.jit(jax.value_and_grad(plain, (0, 1)))(image, text)
  (loss, _), gradients = value_and_grad("max_of_hinges")(image, text)
  found = loss, gradients
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected)


def test_of_tied_negatives_the_lowest_index_takes_the_gradient():
  text = np.eye(4, dtype=np.float32)
  image = np.array([[0.5, 0.5, 0.5, 0.5]] + [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], np.float32)
  gradient = jax.jit(jax.grad(lambda t: max_of_hinges(image, t)[1]["i2t"]))(text)
  np.testing.assert_allclose(gradient[1], image[0], atol=1e-6)
  np.testing.assert_allclose(gradient[2:], 0, atol=1e-6)


def test_duplicate_image_is_not_a_negative():
  image = text = np.eye(4, dtype=np.float32)[[0, 1, 0, 3]]
  match = (image @ text.T).astype(bool)
  program = programs.value(max_of_hinges)
  np.testing.assert_allclose(program(image, text)[0], 4 * 0.2, rtol=1e-6)
  assert program(image, text, match=match)[0] == 0
  _, gradients = value_and_grad("sum_of_hinges")(image[:3:2], text[:3:2], match=np.ones((2, 2)))
  np.testing.assert_array_equal(gradients[1], 0)


@pytest.mark.parametrize("name", LOSSES)
def test_a_collapsed_batch_costs_two_margins_per_negative_or_query(name):
  same = np.zeros((24, 32), np.float32)
  same[:, :16] = 0.25
  (loss, terms), _ = value_and_grad(name)(same, same)
  np.testing.assert_allclose(loss, 2 * 0.2 * 24 * (23 if name == "sum_of_hinges" else 1), rtol=1e-5)
  assert terms["active"] == 1
  if name == "max_of_hinges":
    np.testing.assert_allclose(terms["same_hardest"], 23 / 24, rtol=1e-6)


@pytest.mark.parametrize("kind", ["dot", "cosine", "order"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("batch", ["one", "zeros", "identical", "all match"])
def test_degenerate_batches_have_finite_gradients(name, kind, batch):
  size = 1 if batch == "one" else 9
  image, text = unit_rows(4, batch=size)
  # A mask of its own in each case: one program for all that have nine rows.
  match = np.ones((size, size), bool) if batch == "all match" else np.eye(size, dtype=bool)
  if batch == "zeros":
    image, text = 0 * image, 0 * text
  if batch == "identical":
    image = text = np.ones_like(image)
  (loss, terms), gradients = value_and_grad(name, kind=kind)(image, text, match=match)
  assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)
  if batch in ("one", "all match"):
    assert loss == 0 and not any(np.any(g) for g in gradients)
    assert not any(np.isnan(value) for value in terms.values())


@pytest.mark.parametrize("name", LOSSES)
def test_same_without_jit_and_in_bfloat16(name):
  half = [jnp.asarray(x, jnp.bfloat16) for x in unit_rows(5)]
  loss, _ = LOSSES[name](*half)
  assert loss.dtype == jnp.float32
  expected, _ = programs.value(LOSSES[name])(*(np.asarray(x, np.float32) for x in half))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_same_on_eight_devices(name):
  image, text = unit_rows(6, batch=32, dim=24)
  ids = np.arange(32) // 2
  match, program = ids[:, None] == ids[None, :], value_and_grad(name)
  expected = program(image, text, match=match)
  image, text, match = programs.over_eight_devices((image, text, match))
  found = program(image, text, match=match)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), found, expected)


@pytest.mark.parametrize("loss", [sum_of_hinges, max_of_hinges])
def test_the_tiles_of_one_device_change_nothing(monkeypatch, loss):
  def value_and_gradient(batch):
    image, text = unit_rows(0, batch)
    match = np.random.default_rng(2).random((batch, batch)) < 0.2

    def weighted(image, text):
      terms = loss(image, text, match=match, margin=0.3)[1]
      return 2 * terms["i2t"] + 3 * terms["t2i"], terms

    return jax.jit(jax.value_and_grad(weighted, argnums=(0, 1), has_aux=True))(image, text)

  # As many rows as a tile has, and a last tile that reaches back.
  batches = (16, 41) if loss is max_of_hinges else (41,)
  whole = [value_and_gradient(batch) for batch in batches]
  monkeypatch.setattr(tiles, "ROWS", 16)
  in_tiles = [value_and_gradient(batch) for batch in batches]
  for found, expected in zip(jax.tree.leaves(in_tiles), jax.tree.leaves(whole), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss", [sum_of_hinges, max_of_hinges])
def test_one_device_keeps_one_matrix_of_scores(loss):
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
