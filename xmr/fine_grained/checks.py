"""What a config of FG-CMIR may hold."""

import jax
import jax.numpy as jnp

from xmr import config as config_lib
from xmr import home, losses
from xmr.data.pairs import SCHEMES
from xmr.data.text_graph import SIGNALS
from xmr.errors import UserError
from xmr.fine_grained.config import BASE, CROSS_ENTROPY, FINE_GRAINED, labelled
from xmr.fine_grained.data import FEATURES, SCALES
from xmr.models.graph import ACTIVATIONS, BIASES, STARTS
from xmr.models.siamese import NORMALIZED

CHOICES = {
  "siamese.loss": (CROSS_ENTROPY, BASE),
  "pairs.scheme": SCHEMES,
  "pairs.image_scale": SCALES,
  "graph.signal": (*SIGNALS, FEATURES),
  "graph.bias": BIASES,
  "graph.start": STARTS,
  "pairs.activation": tuple(ACTIVATIONS),
  "pairs.normalize": NORMALIZED,
}
POSITIVE = (
  "graph.min_count",
  "graph.neighbours",
  "graph.order",
  "graph.dim",
  "siamese.steps",
  "siamese.every",
  "pairs.head_start",
)
DROPOUTS = (
  "siamese.dropout",
  "pairs.dropout",
  "pairs.unit_dropout",
  "pairs.image_dropout",
  "graph.dropout",
)


def validate(config):
  """Raises UserError for a config that the two stages cannot run."""
  home.expand(config)
  config_lib.validate(config)
  if jax.process_count() > 1:
    raise UserError(f"config.task=fine_grained runs in one process; found {jax.process_count()}")
  values = config_lib.flat(config)
  for key, choices in CHOICES.items():
    if values[key] not in choices:
      raise UserError(f"config.{key} is {values[key]!r}; expected one of {', '.join(choices)}")
  for key in POSITIVE:
    if not values[key] > 0:
      raise UserError(f"config.{key} is {values[key]}; expected more than 0")
  bound, pair = loss_of(config), jnp.zeros(2)
  # The loss checks its own parameters when it is traced.
  jax.eval_shape(bound, pair, pair > 0, *([pair] if labelled(config) else []))
  for key in DROPOUTS:
    if not 0 <= values[key] < 1:
      raise UserError(f"config.{key} is {values[key]}; expected from 0 to below 1")


def loss_of(config):
  """Returns the loss of stage 2 with its parameters bound: without or with labels."""
  names = (BASE, CROSS_ENTROPY, FINE_GRAINED)
  if config.loss.name not in names:
    expected = f"one of {', '.join(names)} with config.task=fine_grained"
    raise UserError(f"config.loss.name is {config.loss.name!r}; expected {expected}")
  return losses.get(
    config.loss.name, **{key: value for key, value in config.loss.items() if key != "name"}
  )
