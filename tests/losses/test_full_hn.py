"""HN, M-HN and Full-HN: the released code, loops over triplets, pair rules, the counted
constraints.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xmr.losses import full_hard_negative, hard_negative, margin_hard_negative

NAMES = ("image", "text", "image_negative", "text_negative")


def unit_rows(seed, batch=11, dim=4):
  x = np.random.default_rng(seed).normal(size=(4, batch, dim)) + 0.5
  return list((x / np.linalg.norm(x, axis=2, keepdims=True)).astype(np.float32))


@pytest.mark.parametrize("file", ["spread", "collapsed"])
@pytest.mark.parametrize(
  "case", ["HN_0.4_0.0", "M_HN_0.4_0.4", "F_HN_0.4_0.4", "F_HN_0.2_0.6", "F_HN_0.2_0.001"]
)
def test_equals_the_released_code(golden, file, case):
  stored = golden(f"full_hard_negative_{file}")
  name, margin, intra_margin = case.rsplit("_", 2)

  def loss(*arrays):
    if name == "HN":
      return hard_negative(*arrays, margin=float(margin))[0]
    if name == "M_HN":
      return margin_hard_negative(*arrays)[0]
    return full_hard_negative(
      *arrays, same_pair=stored["same_pair"], margin=float(margin), intra_margin=float(intra_margin)
    )[0]

  value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3)))(
    *(stored[key] for key in NAMES)
  )
  np.testing.assert_allclose(value, stored[case], rtol=1e-5)
  for key, gradient in zip(NAMES, gradients, strict=True):
    expected = stored[f"{case}_grad_{key}"]
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * abs(expected).max())


@pytest.mark.parametrize("pair_rule", ["same", "different", "released"])
def test_terms_equal_loops_over_triplets(pair_rule):
  arrays = unit_rows(0)
  same = np.arange(11) % 3 == 0
  a, b, size = 0.3, 0.1, 11
  loss, terms = jax.jit(
    lambda *x: full_hard_negative(*x, same_pair=same, margin=a, intra_margin=b, pair_rule=pair_rule)
  )(*arrays)
  expected = dict.fromkeys(terms, 0.0)
  hinges = []
  for k in range(size):
    i, c, i_n, c_n = (x[k].astype(float) for x in arrays)
    p = i @ c
    parts = {
      "i2t": a - p + i @ c_n,
      "t2i": a - p + i_n @ c,
      "image_constraint": b - p + i_n @ i,
      "text_constraint": b - p + c_n @ c,
    }
    for key, value in parts.items():
      expected[key] += max(0, value) / size
    expected["active"] += (float(parts["i2t"] > 0) + float(parts["t2i"] > 0)) / 2 / size
    hinges.append(max(0, b - p + i_n @ c_n))
    if pair_rule != "released" and same[k] == (pair_rule == "same"):
      expected["pair_constraint"] += hinges[-1] / size
    expected["satisfied_image"] += (p > i_n @ i + b) / size
    expected["satisfied_text"] += (p > c_n @ c + b) / size
    expected["satisfied_pair"] += (p > i_n @ c_n + b) / size
    expected["inconsistent_image"] += (i_n @ i > p) / size
    expected["inconsistent_text"] += (c_n @ c > p) / size
    expected["inconsistent"] += (i_n @ i > p or c_n @ c > p) / size
  if pair_rule == "released":
    expected["pair_constraint"] = np.mean(same) * np.mean(hinges)
  for key, value in expected.items():
    np.testing.assert_allclose(terms[key], value, rtol=1e-5, atol=1e-6, err_msg=key)
  named = ("i2t", "t2i", "image_constraint", "text_constraint", "pair_constraint")
  np.testing.assert_allclose(loss, sum(expected[key] for key in named), rtol=1e-5)
  assert 0 < expected["inconsistent"] < 1 and 0 < expected["satisfied_pair"] < 1


def test_intra_modal_similarity_of_the_negative_is_pushed_down():
  arrays = unit_rows(1)
  same = np.zeros(11, bool)
  gradient = jax.grad(
    lambda x: full_hard_negative(*arrays[:2], x, arrays[3], same_pair=same, intra_margin=9.0)[0]
  )(arrays[2])
  moved = arrays[2] - 1e-2 * gradient
  assert np.all(np.sum(moved * arrays[0], 1) < np.sum(arrays[2] * arrays[0], 1))


def test_bfloat16_identical_and_single_triplets():
  half = [jnp.asarray(x, jnp.bfloat16) for x in unit_rows(2)]
  full = [np.asarray(x, np.float32) for x in half]
  loss, _ = jax.jit(hard_negative)(*half)
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, hard_negative(*full)[0], rtol=1e-6)
  same = [np.full((3, 4), 0.5, np.float32)] * 4
  loss, terms = full_hard_negative(*same, same_pair=np.ones(3), margin=0.2, intra_margin=0.1)
  np.testing.assert_allclose(loss, 2 * 0.2 + 3 * 0.1, rtol=1e-6)
  assert terms["inconsistent"] == 0 and terms["satisfied_pair"] == 0
  assert np.isfinite(jax.grad(lambda x: margin_hard_negative(x, x, x, x)[0])(same[0][:1])).all()


def test_errors_name_what_was_found():
  arrays = unit_rows(3)
  with pytest.raises(
    ValueError, match=r"image_negative has shape \(5, 4\); expected \(11, 4\) as image has"
  ):
    hard_negative(*arrays[:2], arrays[2][:5], arrays[3])
  with pytest.raises(ValueError, match=r"same_pair has shape \(11, 1\); expected \(11,\)"):
    full_hard_negative(*arrays, same_pair=np.ones((11, 1)))
  with pytest.raises(
    ValueError, match="pair_rule is 'all'; expected one of same, different, released"
  ):
    full_hard_negative(*arrays, same_pair=np.ones(11), pair_rule="all")


@pytest.mark.parametrize("loss", [hard_negative, margin_hard_negative, full_hard_negative])
def test_a_negative_that_was_not_found_costs_nothing(loss):
  arrays, same = unit_rows(4), np.arange(11) % 2 == 0
  masks = {"image_found": np.arange(11) % 3 > 0, "text_found": np.arange(11) % 4 > 0}
  both = masks["image_found"] & masks["text_found"]
  parameters = {"same_pair": same, "intra_margin": 9.0} if loss is full_hard_negative else {}

  def value(*x):
    return loss(*x, **parameters, **masks)[0]

  gradients = jax.jit(jax.grad(value, (0, 1, 2, 3)))(*arrays)
  lost = ~masks["image_found"] & ~masks["text_found"]
  assert lost.any() and not any(np.any(np.asarray(g)[lost]) for g in gradients)
  assert not np.any(np.asarray(gradients[2])[~masks["image_found"]])
  assert not np.any(np.asarray(gradients[3])[~masks["text_found"]])
  # Rows that have both negatives count as they do alone.
  chosen = {"same_pair": same[both], "intra_margin": 9.0} if parameters else {}
  alone = jax.grad(lambda *x: loss(*x, **chosen)[0], (0, 1, 2, 3))(*(x[both] for x in arrays))
  for found, expected in zip(gradients, alone, strict=True):
    np.testing.assert_allclose(np.asarray(found)[both] * 11, expected * both.sum(), atol=1e-5)
