"""Alignment of regions with words against loops, in every form, padding and size of block."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from xmr.errors import UserError
from xmr.ops.alignment import FORMS, Tokens, aligned, aligned_rows

# name of a form -> function of (best region of each word, best word of each region).
OF_BEST = {
  "MrSw": lambda words, regions: sum(words),
  "MwSr": lambda words, regions: sum(regions),
  "symmetric": lambda words, regions: sum(words) + sum(regions),
  "MrAVGw": lambda words, regions: sum(words) / len(words),
  "MwAVGr": lambda words, regions: sum(regions) / len(regions),
  "symmetric_mean": lambda words, regions: (
    sum(words) / len(words) / 2 + sum(regions) / len(regions) / 2
  ),
}


def sides(
  seed=0, images=5, texts=3, regions=4, words=6, dim=3, dtype=np.float32, padding="ignored"
):
  """Tokens of both sides with masks that have gaps."""
  generator = np.random.default_rng(seed)
  made = []
  for count, tokens in ((images, regions), (texts, words)):
    mask = generator.random((count, tokens)) < 0.6
    mask[np.arange(count), generator.integers(0, tokens, count)] = True
    x = generator.normal(size=(count, tokens, dim)).astype(dtype)
    made.append(Tokens(np.where(mask[..., None], x, 100), mask, padding))
  return made


def by_loops(image, text, form):
  """Scores [N, M] by loops over the tokens; with zeros, a cell of padding takes part in maxima."""
  result = np.zeros((len(image), len(text)))
  for n in range(len(image)):
    for m in range(len(text)):
      r, w = np.flatnonzero(image.mask[n]), np.flatnonzero(text.mask[m])
      if not (len(r) and len(w)):
        continue
      cell = lambda i, j, n=n, m=m: float(image.x[n, i].astype(float) @ text.x[m, j])  # noqa: E731
      also = lambda mask: [0.0] if image.padding == "zero" and not mask.all() else []  # noqa: E731
      of_words = [max([cell(i, j) for i in r] + also(image.mask[n])) for j in w]
      of_regions = [max([cell(i, j) for j in w] + also(text.mask[m])) for i in r]
      result[n, m] = OF_BEST[form](of_words, of_regions)
  return result


@pytest.mark.parametrize("padding", ["ignored", "zero"])
@pytest.mark.parametrize("form", FORMS)
def test_all_pairs_and_rows_equal_loops(form, padding):
  image, text = sides(padding=padding)
  expected = by_loops(image, text, form)
  found = jax.jit(functools.partial(aligned, form=form))(image, text)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  rows = jax.jit(functools.partial(aligned_rows, form=form))(image[:3], text)
  np.testing.assert_allclose(rows, np.diagonal(expected), rtol=1e-5, atol=1e-5)


CELLS = 4 * 4 * 6  # bytes of one pair


@pytest.mark.parametrize("budget", [CELLS, 2 * CELLS, 3 * CELLS, 7 * CELLS])
def test_blocks_change_neither_scores_nor_gradients(budget):
  image, text = sides(1)
  weights = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32)

  def objective(image_x, text_x, budget):
    scores = aligned(
      Tokens(image_x, image.mask), Tokens(text_x, text.mask), form="symmetric", budget=budget
    )
    return jnp.sum(weights * scores), scores

  grad = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True), static_argnums=2)
  (_, whole), expected = grad(image.x, text.x, 1 << 20)
  (_, found), gradients = grad(image.x, text.x, budget)
  np.testing.assert_allclose(found, whole, rtol=1e-6, atol=1e-6)
  for a, b in zip(gradients, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def largest(jaxpr):
  """Bytes of the largest array that a program makes, inside its loops too."""
  inner = (
    largest(value.jaxpr)
    for equation in jaxpr.eqns
    for value in jax.tree.leaves(tuple(equation.params.values()))
    if hasattr(value, "jaxpr")
  )
  own = (x.aval.size * x.aval.dtype.itemsize for e in jaxpr.eqns for x in e.outvars)
  return max([0, *inner, *own])


def test_no_array_is_larger_than_the_budget_in_the_gradient_too():
  image, text = sides(3, images=96, texts=80, regions=8, words=12, dim=4)
  budget, cells = 1 << 17, 96 * 80 * 8 * 12 * 4

  def made(budget):
    total = lambda x: jnp.sum(aligned(Tokens(x, image.mask), text, budget=budget))  # noqa: E731
    return largest(jax.make_jaxpr(jax.grad(total))(image.x).jaxpr)

  assert made(cells) == cells
  assert made(budget) <= budget


@pytest.mark.parametrize("padding", ["ignored", "zero"])
def test_gradient_is_the_slope_and_zero_in_padding(padding):
  with jax.enable_x64(True):
    image, text = sides(4, dtype=np.float64, padding=padding)

    def total(image_x, text_x):
      scores = aligned(
        dataclasses.replace(image, x=image_x), dataclasses.replace(text, x=text_x), form="symmetric"
      )
      return jnp.sum(scores * jnp.arange(15).reshape(5, 3))

    check_grads(jax.jit(total), (image.x, text.x), order=1, modes=["rev"], eps=1e-7, rtol=1e-5)
    gradients = jax.jit(jax.grad(total, (0, 1)))(image.x, text.x)
  assert not np.any(gradients[0][~image.mask]) and not np.any(gradients[1][~text.mask])


@pytest.mark.parametrize("form", ["symmetric", "symmetric_mean"])
def test_an_item_without_tokens_scores_zero_with_a_finite_gradient(form):
  image, text = sides(5)
  image.mask[2] = text.mask[1] = False
  scores = lambda x: aligned(Tokens(x, image.mask), text, form=form)  # noqa: E731
  found, gradient = jax.jit(lambda x: (scores(x), jax.grad(lambda x: jnp.sum(scores(x)))(x)))(
    image.x
  )
  assert not found[2].any() and not found[:, 1].any() and np.isfinite(gradient).all()
  rows = aligned_rows(image[:3], text, form=form)
  np.testing.assert_allclose(rows, np.diagonal(found), rtol=1e-5)


def test_bfloat16_is_computed_in_float32():
  image, text = (Tokens(jnp.asarray(x.x, jnp.bfloat16), x.mask) for x in sides(6))
  found = aligned(image, text)
  assert found.dtype == jnp.float32
  wide = [Tokens(np.asarray(x.x, np.float32), x.mask) for x in (image, text)]
  np.testing.assert_allclose(found, aligned(*wide), rtol=1e-6)


def test_errors_name_what_was_found():
  image, text = sides(7)
  with pytest.raises(UserError, match="form is 'MxSw'; expected one of MrSw, MwSr"):
    aligned(image, text, form="MxSw")
  with pytest.raises(ValueError, match="budget is 95 bytes; expected at least 96, one pair of 4"):
    aligned(image, text, budget=CELLS - 1)
  with pytest.raises(ValueError, match=r"image has shape \(5, 4, 3\) and text \(3, 6, 2\)"):
    aligned(image, Tokens(text.x[..., :2], text.mask))
  with pytest.raises(ValueError, match=r"text_mask has shape \(3, 5\); expected \(3, 6\)"):
    aligned(image, Tokens(text.x, text.mask[:, :5]))
  with pytest.raises(ValueError, match="image has padding 'ignored' and text 'zero'; expected one"):
    aligned(image, dataclasses.replace(text, padding="zero"))
  with pytest.raises(UserError, match="padding is 'none'; expected one of ignored, zero"):
    dataclasses.replace(text, padding="none")
  with pytest.raises(ValueError, match="image is ndarray; expected Tokens"):
    aligned(image.x, text)
