"""config.loss_gather=bfloat16: half the bytes on the way to the other devices, and nearly the same
loss.
"""

import jax
import numpy as np
import pytest
import test_ring

from xmr import experiment, parallel
from xmr.config import base_config
from xmr.errors import UserError
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
  "name, parameters, gathers",
  [("max_of_hinges", {}, 1), ("info_nce", {}, 1), ("imc", {"distance": "cosine"}, 2)],
)
def test_bfloat16_halves_what_is_gathered_and_hardly_moves_the_loss(name, parameters, gathers):
  found, bytes_of = [], []
  for sent in ("float32", "bfloat16"):
    step = compiled(name, sent, **parameters)
    found.append(step(*test_ring.batch(0, size=ROWS, dim=DIM)))
    moved = {each.kind: each.bytes for each in traffic.collectives(step.as_text(), devices=8)}
    bytes_of.append(moved)
  # info_nce has a column more, for the bias; a few numbers a row are gathered beside the rows.
  rows = gathers * ROWS * (DIM + (name == "info_nce"))
  assert bytes_of[0]["all-gather"] - bytes_of[1]["all-gather"] == 2 * rows
  assert bytes_of[0]["all-gather"] <= 4 * rows + 16 * ROWS
  assert bytes_of[0]["reduce-scatter"] == bytes_of[1]["reduce-scatter"]
  np.testing.assert_allclose(found[1][0], found[0][0], rtol=5e-3)
  for rounded, exact in zip(found[1][1], found[0][1], strict=True):
    assert np.abs(rounded - exact).max() <= 5e-3 * np.abs(exact).max()
  assert np.any(found[1][0] != found[0][0])


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"loss_form": "ring"}, "loss_gather is 'bfloat16' but a ring gathers nothing"),
    ({"loss.name": "hard_negative"}, "loss hard_negative gathers no rows; expected float32"),
  ],
)
def test_bfloat16_where_nothing_is_gathered_is_a_mistake(changes, message):
  config = base_config()
  config.update_from_flattened_dict({**changes, "loss_gather": "bfloat16"})
  with pytest.raises(UserError, match=message):
    experiment.losses_of(config, parallel.mesh())
