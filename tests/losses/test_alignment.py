"""Token-level alignment and F-TERAN's loss against loops over regions and words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from xmr.losses import aligned_full_hard_negative
from xmr.losses.alignment import trim_tokens


def sequences(seed, batch=5, regions=4, words=6, dim=3):
  generator = np.random.default_rng(seed)
  image, text = (
    generator.normal(size=(batch, n, dim)).astype(np.float32) for n in (regions, words)
  )
  lengths = generator.integers(1, regions + 1, batch), generator.integers(1, words + 1, batch)
  return (
    image,
    text,
    np.arange(regions) < lengths[0][:, None],
    np.arange(words) < lengths[1][:, None],
  )


def cell_table(a, b, a_mask, b_mask, padding):
  table = np.zeros((len(a), len(b)))
  for r in range(len(a)):
    for w in range(len(b)):
      valid = a_mask[r] and b_mask[w]
      table[r, w] = (
        float(a[r].astype(float) @ b[w]) if valid else {"zero": 0.0, "ignored": np.nan}[padding]
      )
  return table


def best_sum(table):
  """Sum over rows of the best of each, leaving out what is not there."""
  return sum(max(x for x in row if not np.isnan(x)) for row in table if not np.isnan(row).all())


def both(table):
  return best_sum(table) + best_sum(table.T)


def loss_by_loops(
  image, text, image_mask, text_mask, match, margin, weight, diagonal, pair_rule, padding
):
  size = len(image)
  table = lambda a, i, b, j: cell_table(  # noqa: E731
    a[i],
    b[j],
    (image_mask if a is image else text_mask)[i],
    (image_mask if b is image else text_mask)[j],
    padding,
  )
  s = np.array([[both(table(image, i, text, j)) for j in range(size)] for i in range(size)])
  total = 0.0
  hardest_text, hardest_image = [], []
  for k in range(size):
    allowed = [m for m in range(size) if diagonal == "released" or not (match[k, m] or m == k)]
    hardest_text.append(max(allowed, key=lambda m: s[k, m]))
    allowed = [n for n in range(size) if diagonal == "released" or not (match[n, k] or n == k)]
    hardest_image.append(max(allowed, key=lambda n: s[n, k]))
  for k in range(size):
    h, g = hardest_text[k], hardest_image[k]
    total += max(0, margin + s[k, h] - s[k, k]) + max(0, margin + s[g, k] - s[k, k])
    total += weight / 100 * max(0, margin + best_sum(table(image, k, image, h)) - s[k, k])
    total += weight / 10 * max(0, margin + both(table(text, k, text, g)) - s[k, k])
    if (h != g) == (pair_rule == "different"):
      total += weight * max(0, margin + s[g, h] - s[k, k])
  return total


@pytest.mark.parametrize("padding", ["zero", "ignored"])
@pytest.mark.parametrize("pair_rule", ["different", "same"])
@pytest.mark.parametrize("diagonal", ["masked", "released"])
def test_loss_equals_loops(diagonal, pair_rule, padding):
  image, text, image_mask, text_mask = sequences(1)
  match = np.eye(5, dtype=bool)
  match[0, 3] = match[3, 0] = True
  options = {
    "margin": 0.3,
    "weight": 0.5,
    "diagonal": diagonal,
    "pair_rule": pair_rule,
    "padding": padding,
  }
  expected = loss_by_loops(image, text, image_mask, text_mask, match, **options)
  loss, terms = jax.jit(
    lambda i, t: aligned_full_hard_negative(
      i, t, image_mask=image_mask, text_mask=text_mask, match=match, **options
    )
  )(image, text)
  np.testing.assert_allclose(loss, expected, rtol=1e-5)
  assert {"i2t", "t2i", "active"} <= set(terms)


def test_gradient_is_the_slope_and_zero_in_padding():
  with jax.enable_x64(True):
    image, text, image_mask, text_mask = sequences(2)
    loss = jax.jit(
      lambda i, t: aligned_full_hard_negative(i, t, image_mask=image_mask, text_mask=text_mask)[0]
    )
    check_grads(
      loss, (image.astype(float), text.astype(float)), order=1, modes=["rev"], eps=1e-7, rtol=1e-5
    )
    gradients = jax.jit(jax.grad(loss, (0, 1)))(image, text)
  assert not np.any(gradients[0][~image_mask]) and not np.any(gradients[1][~text_mask])


def test_an_unmasked_diagonal_costs_a_constant_margin():
  tokens = 2 * np.eye(3, dtype=np.float32)[:, None]

  def run(x, diagonal):
    return aligned_full_hard_negative(x, tokens, diagonal=diagonal, weight=0.0, margin=0.2)[0]

  loss, gradient = jax.jit(jax.value_and_grad(run), static_argnums=1)(tokens, "released")
  np.testing.assert_allclose(loss, 2 * 3 * 0.2, rtol=1e-5)
  np.testing.assert_allclose(gradient, 0, atol=1e-6)
  assert jax.jit(run, static_argnums=1)(tokens, "masked") == 0


def test_one_pair_and_empty_sequences_have_finite_gradients():
  image, text, image_mask, text_mask = sequences(3)
  assert jax.jit(aligned_full_hard_negative)(image[:1], text[:1])[0] == 0
  for padding in ("zero", "ignored"):
    gradient = jax.jit(
      jax.grad(
        lambda i, padding=padding: aligned_full_hard_negative(
          i, text, image_mask=image_mask & False, padding=padding
        )[0]
      )
    )(image)
    assert np.isfinite(gradient).all()


def test_trim_drops_special_tokens():
  tokens = np.arange(12.0).reshape(2, 6, 1)
  kept, mask = trim_tokens(tokens, np.array([6, 4]), first=1, last=2)
  np.testing.assert_array_equal(kept[:, :, 0], [[1, 2, 3], [7, 8, 9]])
  np.testing.assert_array_equal(mask, [[True, True, True], [True, False, False]])
  with pytest.raises(
    ValueError, match=r"tokens has shape \(2, 6, 1\); expected more than 6 tokens to drop"
  ):
    trim_tokens(tokens, np.array([6, 4]), first=3, last=3)


def test_bfloat16_is_computed_in_float32():
  image, text, *_ = sequences(4)
  half = [jnp.asarray(x, jnp.bfloat16) for x in (image, text)]
  loss, _ = jax.jit(aligned_full_hard_negative)(*half)
  assert loss.dtype == jnp.float32
  expected, _ = jax.jit(aligned_full_hard_negative)(*(np.asarray(x, np.float32) for x in half))
  np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_errors_name_what_was_found():
  image, text, image_mask, text_mask = sequences(5)
  with pytest.raises(
    ValueError, match=r"text_mask has shape \(5, 4\); expected \(5, 6\) as text has tokens"
  ):
    aligned_full_hard_negative(image, text, text_mask=image_mask)
  with pytest.raises(ValueError, match=r"image has shape \(5, 3\); expected \[B, tokens, D\]"):
    aligned_full_hard_negative(image[:, 0], text)
  with pytest.raises(ValueError, match="diagonal is 'kept'; expected one of masked, released"):
    aligned_full_hard_negative(image, text, diagonal="kept")
