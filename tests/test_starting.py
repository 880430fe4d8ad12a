"""What config.init takes of another run, what it leaves, and what it says of both."""

import numpy as np
import pytest

from xmr import checkpoint
from xmr.config import base_config
from xmr.losses import table
from xmr.training import starting

KERNEL = {"image_encoder": {"projection": {"kernel": np.ones((3, 2), np.float32)}}}
FRESH = {"temperature": np.float32(-1), "bias": np.float32(5)}


class Model:
  """A model of one kernel."""

  def init(self, key, batch):
    del key, batch
    return {"params": KERNEL}


@pytest.fixture
def started(monkeypatch):
  """Returns a function (its loss, what it learned) -> variables of a run that starts from it."""
  config = base_config()
  config.init, config.loss = "runs/other", table.section("info_nce")
  monkeypatch.setattr(starting.pipeline, "train_batches", lambda *_, **__: iter([{}]))

  def start(loss, learned):
    other = {"image_encoder": {"projection": {"kernel": np.full((3, 2), 7, np.float32)}}}
    other |= {"text_encoder": {"old": np.zeros(1)}} | ({"loss": learned} if learned else {})
    found = 5, {"params": other}, {"config": {"loss.name": loss}}
    monkeypatch.setattr(checkpoint, "load", lambda workdir: found)
    return starting.starting_values(config, Model(), None, None, scalars=FRESH)

  return start


def test_a_learned_scalar_of_the_same_loss_is_taken_and_said(started, capsys):
  params = started("info_nce", {"temperature": np.float32(-3)})["params"]
  assert params["loss"] == {"temperature": -3, "bias": 5}
  assert (params["image_encoder"]["projection"]["kernel"] == 7).all()
  assert capsys.readouterr().out == (
    "config.init: 2 arrays of runs/other are taken, params.loss.temperature among them; left "
    "behind, as this run has none of that name: params.text_encoder.old\n"
  )


def test_a_learned_scalar_of_another_loss_is_left_and_said(started, capsys):
  assert started("sigmoid", {"temperature": np.float32(-3)})["params"]["loss"] == FRESH
  assert "params.loss.temperature, params.text_encoder.old" in capsys.readouterr().out
