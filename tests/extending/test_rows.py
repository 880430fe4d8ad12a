"""A loss, an encoder, a dataset and a scope of mining of somebody's own: a file in a folder of
theirs and one row, and the real command trains and resumes with them.
"""

import json

import numpy as np
import pytest
import small_run

from xmr import data as data_lib
from xmr import main
from xmr.fields import field
from xmr.losses import table as losses
from xmr.mining import table as mining
from xmr.models import table as models

OWN = '''
import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from typing import Any

from xmr.data import karpathy


def ranked(image, text, *, match=None, sharpness=2.0, weights=(1.0, 0.5), side="both"):
  """A loss with a number, a list and a choice."""
  scores = sharpness * image @ text.T
  costs = [-jnp.mean(jnp.diagonal(jax.nn.log_softmax(scores, axis=axis))) for axis in (0, 1)]
  if side != "both":
    costs = costs[:1]
  value = sum(weight * cost for weight, cost in zip(weights, costs))
  return value, {"weights": jnp.float32(sum(weights))}


class Gated(nn.Module):
  """An encoder of features with a number and a list of its own."""

  dim: int
  width: int = 8
  scales: tuple = (1.0, 2.0)
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, *, train=False):
    parts = [nn.tanh(scale * nn.Dense(self.width)(x)) for scale in self.scales]
    x = nn.Dense(self.dim)(jnp.concatenate(parts, -1))
    return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-9)


def halved(config):
  """A dataset: the first half of another one's captions."""
  other = config.copy_and_resolve_references()
  other.data.name = "karpathy"
  splits = karpathy.load(other)
  train, n = splits["train"], len(splits["train"].text_id) // 2
  fields = ("text_id", "image_of_text", "texts", "tokens", "text_features")
  half = {name: getattr(train, name)[:n] for name in fields}
  print("halved:", n, "captions")
  return {**splits, "train": dataclasses.replace(train, **half)}


def neighbour(variables, batch, tensors, pool, bank, *, step, key, options):
  """A scope: the next row of the batch."""
  return {
    "image_negative": jnp.roll(tensors["image"], 1, axis=0),
    "text_negative": jnp.roll(tensors["text"], 1, axis=0),
    "same_pair": jnp.ones(len(tensors["image"])),
  }, bank
'''
CONFIG = """
from configs import imc_flickr


def get_config():
  config = imc_flickr.get_config("flickr8k_features")
  {}
  return config
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return small_run.write_data(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def own(tmp_path, monkeypatch):
  """A folder with a module of one's own, on the path."""
  (tmp_path / "own_parts.py").write_text(OWN)
  monkeypatch.syspath_prepend(tmp_path)
  monkeypatch.chdir(small_run.ROOT)
  return tmp_path


def train(data, workdir, *flags, steps, config=None, drop=()):
  """Runs the command in this process."""
  argv = small_run.arguments(data, workdir, **{"steps": steps, "evaluate.steps": 4})
  argv = [flag for flag in argv if not flag.startswith(tuple(f"--config.{key}" for key in drop))]
  if config is not None:
    argv = [f"--config={config}", *argv[1:]]
  main.main(["xmr.main", *argv, *flags])
  return json.loads((workdir / "config.json").read_text())


def trained_and_resumed(data, folder, *flags, **options):
  """Trains eight steps at once and in two starts; returns config.json, after comparing the bits."""
  train(data, folder / "parts", *flags, steps=4, **options)
  train(data, folder / "parts", *flags, steps=8, **options)
  recorded = train(data, folder / "whole", *flags, steps=8, **options)
  whole, parts = (small_run.parameters(folder / name, 8) for name in ("whole", "parts"))
  small_run.assert_equal(whole, parts)
  return recorded


def test_a_loss_takes_a_function_and_a_row(own, data, monkeypatch, capsys):
  row = losses.Loss(
    "own_parts.ranked",
    ("image", "text", "match"),
    {"sharpness": field(about="of the scores", above=0), "side": field(choices=("both", "one"))},
  )
  monkeypatch.setitem(losses.LOSSES, "ranked", row)
  flags = ("--config.loss.name=ranked", "--config.loss.weights=(1.0, 0.25)")
  flags = ("--config.loss.sharpness=3", *flags)
  recorded = train(data, own / "whole", *flags, steps=4, drop=("loss",))
  found = {key: value for key, value in recorded.items() if key.startswith("loss.")}
  assert found == {
    "loss.name": "ranked",
    "loss.learn": [],
    "loss.sharpness": 3.0,
    "loss.weights": [1.0, 0.25],
    "loss.side": "both",
  }
  assert small_run.logged(own / "whole")[0]["train/weights"] == 1.25

  (own / "mine.py").write_text(
    CONFIG.format('config.loss.name = "ranked"\n  config.loss.weights = (2.0,)')
  )
  recorded = train(data, own / "file", steps=4, config=own / "mine.py", drop=("loss",))
  assert recorded["loss.weights"] == [2.0] and recorded["loss.sharpness"] == 2.0

  for flag, message in (
    ("--config.loss.margin=1", "loss ranked has no parameter margin; expected some of learn, shar"),
    ("--config.loss.sharpness=0", "config.loss.sharpness is 0.0; expected more than 0"),
    ("--config.loss.side=none", "config.loss.side is 'none'; expected one of both, one"),
  ):
    with pytest.raises(SystemExit):
      train(data, own / "wrong", flag, steps=4, config=own / "mine.py", drop=("loss",))
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_an_encoder_takes_a_class_and_a_row(own, data, monkeypatch):
  row = models.Encoder("own_parts.Gated", "features", limits={"width": field(at_least=1)})
  monkeypatch.setitem(models.IMAGE, "gated", row)
  flags = ("--config.model.image.width=4", "--config.model.image.scales=(1.0,)")
  recorded = trained_and_resumed(
    data, own, *flags, "--config.model.image.name=gated", drop=("model.image",)
  )
  assert recorded["model.image.width"] == 4 and recorded["model.image.scales"] == [1.0]
  assert "model.image.hidden" not in recorded
  params = small_run.parameters(own / "whole", 8)
  shapes = {name: np.shape(x) for name, x in params.items() if "image_encoder" in name}
  assert shapes["params.image_encoder.Dense_0.kernel"] == (24, 4) and len(shapes) == 4


@pytest.mark.slow
def test_a_dataset_takes_a_function_and_a_row(own, data, monkeypatch, capsys):
  import own_parts

  monkeypatch.setitem(data_lib.DATASETS, "halved", own_parts.halved)
  recorded = trained_and_resumed(data, own, "--config.data.name=halved")
  assert recorded["data.name"] == "halved" and "halved: 40 captions" in capsys.readouterr().out


@pytest.mark.slow
def test_a_scope_of_mining_takes_a_function_and_a_row(own, data, monkeypatch):
  monkeypatch.setitem(
    mining.SCOPES, "neighbour", mining.Scope("own_parts.neighbour", rows=False, uses=())
  )
  flags = ("--config.loss.name=hard_negative", "--config.mining.scope=neighbour")
  recorded = trained_and_resumed(data, own, *flags)
  assert recorded["mining.scope"] == "neighbour"


@pytest.mark.slow
def test_learned_scalars_are_saved_logged_and_go_on(own, data):
  """From a config and flags; the bits of a resumed run are in `trained_and_resumed`."""
  flags = (
    "--config.loss.name=sigmoid",
    "--config.loss.learn=('temperature', 'bias')",
    "--config.optimizer.multipliers=(('^loss/', 5.0),)",
  )
  recorded = trained_and_resumed(data, own, *flags, drop=("loss",))
  assert recorded["loss.learn"] == ["temperature", "bias"]
  params = small_run.parameters(own / "whole", 8)
  last = small_run.logged(own / "whole")
  values = [line["train/temperature"] for line in last if "train/temperature" in line]
  assert values[0] != values[-1] and params["params.loss.bias"] != -10.0
  assert abs(np.log(values[-1]) - params["params.loss.temperature"]) < 0.1

  from xmr import inspect

  run = inspect.load(own / "whole")
  assert run.encode_text(np.zeros((1, 24), np.float32)).shape == (1, 16)
  plain = train(data, own / "after", f"--config.init={own / 'whole'}", steps=4)
  assert plain["init"] and "params.loss.bias" not in small_run.parameters(own / "after", 4)
