"""Plain losses over several devices: rows are gathered once, in bfloat16 with half the bytes; no
gradient is sent.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_ring

from xmr import experiment, losses, parallel
from xmr.config import base_config
from xmr.errors import UserError
from xmr.losses import full_hn
from xmr.mining import pool, scopes
from xmr.ops import chosen
from xmr.ops.alignment import Tokens
from xmr.plan import traffic

ROWS, DIM = 64, 32


def compiled(name, sent, **parameters):
  """Value and gradient of a plain loss over eight devices."""
  config = base_config()
  config.loss_gather, config.loss.name = sent, name
  config.loss.update(parameters)
  mesh = parallel.mesh()
  loss, _ = experiment.losses_of(config, mesh)

  def value(image, text, image_id):
    match = image_id[:, None] == image_id[None, :]
    tensors = {"image": image, "text": text, "image_id": image_id, "match": match}
    return loss.of(tensors)[0]

  rows = parallel.sharded(mesh)
  step = jax.jit(
    jax.value_and_grad(value, (0, 1)),
    in_shardings=rows,
    out_shardings=(parallel.replicated(mesh), (rows, rows)),
  )
  return step.lower(*test_ring.batch(0, size=ROWS, dim=DIM)).compile()


@pytest.mark.parametrize(
  "name, parameters",
  [
    ("max_of_hinges", {}),
    ("info_nce", {}),
    ("imc", {"distance": "cosine"}),
    ("imc", {"distance": "cosine", "inter": "sum_of_hinges"}),
  ],
)
def test_bfloat16_halves_what_is_moved_and_is_the_loss_of_rounded_rows(name, parameters):
  found, bytes_of, arrays = [], [], test_ring.batch(0, size=ROWS, dim=DIM)
  for sent in ("float32", "bfloat16"):
    step = compiled(name, sent, **parameters)
    found.append(step(*arrays))
    moved = {each.kind: each.bytes for each in traffic.collectives(step.as_text(), devices=8)}
    bytes_of.append(moved)
  # Both sides are gathered, and a few numbers a row; no gradient of rows is sent back.
  rows, few = 2 * ROWS * DIM, 64 * ROWS
  assert bytes_of[0]["all-gather"] - bytes_of[1]["all-gather"] == 2 * rows
  assert 4 * rows <= bytes_of[0]["all-gather"] <= 4 * rows + few
  assert sum(size for kind, size in bytes_of[0].items() if kind != "all-gather") <= few
  *rows, image_id = arrays
  rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32)) for x in rows]
  expected = compiled(name, "float32", **parameters)(*rounded, image_id)
  for one, other in zip(*map(jax.tree.leaves, (found[1], expected)), strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
  assert np.any(found[1][0] != found[0][0])


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"loss_form": "ring"}, "loss_gather is 'bfloat16' but a ring gathers nothing"),
    (
      {"loss.name": "hard_negative", "mining.scope": "train"},
      "loss hard_negative gathers no rows; expected float32",
    ),
  ],
)
def test_bfloat16_where_nothing_is_gathered_is_a_mistake(changes, message):
  config = base_config()
  config.update_from_flattened_dict({**changes, "loss_gather": "bfloat16"})
  with pytest.raises(UserError, match=message):
    experiment.losses_of(config, parallel.mesh())


@pytest.mark.parametrize(
  "sent, width", [("float32", 4), pytest.param("bfloat16", 2, marks=pytest.mark.slow)]
)
def test_negatives_of_the_batch_are_gathered_once_and_equal_those_of_one_device(sent, width):
  config = base_config()
  config.loss.name = "full_hard_negative"
  arrays, found = test_ring.batch(0, size=ROWS, dim=DIM), []
  for devices in (1, 8):
    mesh = parallel.mesh(jax.devices()[:devices])
    loss, _ = experiment.losses_of(config, mesh)
    options = pool.Options(None, mesh, {}, {}, {}, sent=sent, chosen=True)

    def value(image, text, image_id, loss=loss, options=options):
      match = image_id[:, None] == image_id[None, :]
      tensors = {"image": image, "text": text, "match": match}
      batch = {"image_id": image_id}
      mined, _ = scopes.in_batch(None, batch, tensors, {}, None, step=0, key=None, options=options)
      return loss.of(tensors | mined)[0]

    rows = parallel.sharded(mesh)
    out = (parallel.replicated(mesh), (rows, rows))
    step = jax.jit(jax.value_and_grad(value, (0, 1)), in_shardings=rows, out_shardings=out).lower(
      *arrays
    )
    made = step.compile()
    found.append(made(*arrays))
  if sent == "float32":
    for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
      np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6)
  else:
    np.testing.assert_allclose(found[1][0], found[0][0], rtol=5e-3)
    assert float(found[1][0]) != float(found[0][0])
  # docs/clusters.md: 8 B D bytes, both sides gathered, or 4 B D; and a few numbers a row.
  moved = {each.kind: each.sent for each in traffic.collectives(made.as_text(), devices=8)}
  rows = width * 2 * ROWS * DIM * 7 / 8
  assert rows <= moved.pop("all-gather") <= rows + 64 * ROWS
  assert sum(moved.values()) <= 64 * ROWS


@pytest.mark.parametrize("hub", [0, 37])
@pytest.mark.parametrize("tokens", [False, True])
def test_a_row_that_is_the_negative_of_all_has_the_gradient_of_all(hub, tokens):
  image, text, _ = test_ring.batch(2, size=ROWS, dim=DIM)
  rows = [Tokens(x.reshape(ROWS, 4, -1), jnp.ones((ROWS, 4), bool)) for x in (image, text)]
  rows = rows if tokens else [image, text]
  mesh, index = parallel.mesh(), (jnp.full(ROWS, hub), jnp.arange(ROWS) // 2)

  def score(*rows):
    return full_hn.scores_of_rows(*rows, kind="symmetric" if tokens else "dot")

  def value(image, text, *, spread):
    sides = zip((image, text), index, strict=True)
    negatives = [chosen.Chosen(x, rows, mesh) if spread else x[rows] for x, rows in sides]
    scores = chosen.row_by_row(score, image, text, *negatives)
    return sum((k + 1) * jnp.sum(jnp.sin(scores[name])) for k, name in enumerate(sorted(scores)))

  one, eight = (
    jax.jit(jax.grad(functools.partial(value, spread=spread), (0, 1), allow_int=True))(*rows)
    for spread in (False, True)
  )
  for a, b in zip(map(_values, one), map(_values, eight), strict=True):
    np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5)


def _values(rows):
  return rows.x if isinstance(rows, Tokens) else rows


def tokens_of(seed, words):
  """ROWS rows of up to `words` tokens, as arrays (x, mask)."""
  generator = np.random.default_rng(seed)
  x = generator.normal(size=(ROWS, words, DIM)).astype(np.float32)
  mask = np.arange(words) < generator.integers(1, words + 1, (ROWS, 1))
  return x / np.linalg.norm(x, axis=2, keepdims=True), mask


# (loss, parameters) that are always tried, and all.
QUICK = [
  ("max_of_hinges", {"kind": "order"}),
  ("sum_of_hinges", {"kind": "MrSw"}),
  ("aligned_full_hard_negative", {}),
]
RELEASED = {"diagonal": "released", "pair_rule": "same", "padding": "ignored"}
KINDS = ("order", "cosine", "symmetric_mean", "pooled")
SPREAD = [
  *QUICK,
  *(
    (name, {"kind": kind})
    for name in ("max_of_hinges", "sum_of_hinges", "info_nce", "sigmoid")
    for kind in KINDS
    if (name, {"kind": kind}) not in QUICK
  ),
  ("aligned_full_hard_negative", RELEASED),
]


@pytest.mark.parametrize(
  "name, parameters",
  [pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow) for case in SPREAD],
)
def test_losses_of_order_and_of_tokens_gather_once_and_equal_those_of_one_device(name, parameters):
  config = base_config()
  config.loss.name = name
  config.loss.update(parameters)
  image, text, image_id = test_ring.batch(0, size=ROWS, dim=DIM)
  masks, found = (None, None), []
  if losses.get(name, **parameters).tokens:
    (image, text), masks = zip(tokens_of(0, 5), tokens_of(1, 7), strict=True)

  for devices in (1, 8):
    mesh = parallel.mesh(jax.devices()[:devices])
    loss, _ = experiment.losses_of(config, mesh)

    def value(*arrays, loss=loss):
      image_id, sides = arrays[2], arrays[:2]
      if loss.tokens:
        sides = [Tokens(x, jnp.asarray(mask)) for x, mask in zip(sides, masks, strict=True)]
      tensors = dict(zip(("image", "text"), sides, strict=True)) | {"image_id": image_id}
      return loss.of(tensors | {"match": image_id[:, None] == image_id[None, :]})

    rows = parallel.sharded(mesh)
    out = ((parallel.replicated(mesh),) * 2, (rows, rows))
    step = jax.jit(
      jax.value_and_grad(value, (0, 1), has_aux=True), in_shardings=rows, out_shardings=out
    )
    made = step.lower(image, text, image_id).compile()
    found.append(made(image, text, image_id))
  for one, eight in zip(*map(jax.tree.leaves, found), strict=True):
    np.testing.assert_allclose(eight, one, rtol=1e-5, atol=1e-6 * max(1, np.abs(one).max()))
  # docs/clusters.md: the rows of both sides once; masks, ids and a few numbers a row beside them.
  rows = 2 * 4 * ROWS * DIM if parameters.get("kind") == "pooled" else image.nbytes + text.nbytes
  moved = {each.kind: each.bytes for each in traffic.collectives(made.as_text(), devices=8)}
  few = 64 * ROWS
  assert rows <= moved.pop("all-gather") <= rows + few
  assert sum(moved.values()) <= few
