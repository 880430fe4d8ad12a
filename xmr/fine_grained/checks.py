"""Checks a config of FG-CMIR."""

import jax

from xmr import config as config_lib
from xmr import losses
from xmr.errors import UserError
from xmr.fine_grained.config import BASE, CROSS_ENTROPY, FINE_GRAINED
from xmr.terminal import home

# Fields that change retrieval training but that the two stages do not read.
UNREAD = (
  "init",
  "batch_chunks",
  "shard_params",
  "evaluate.ema",
  "model.lora.rank",
  "model.shared_layers",
)


def validate(config):
  """Raises UserError for a config that the two stages cannot run."""
  home.expand(config)
  config_lib.validate(config)
  if jax.process_count() > 1:
    raise UserError(f"config.task=fine_grained runs in one process; found {jax.process_count()}")
  for name in UNREAD:
    section, default = config, config_lib.FIELDS[name].default
    for part in name.split("."):
      section = section[part]
    if section != default:
      raise UserError(
        f"config.{name} is {section!r}, which config.task=fine_grained does not know; expected "
        f"{default!r}"
      )
  loss_of(config)


def loss_of(config):
  """Returns the loss of stage 2, with or without labels, with its parameters bound."""
  names = (BASE, CROSS_ENTROPY, FINE_GRAINED)
  if config.loss.name not in names:
    expected = f"one of {', '.join(names)} with config.task=fine_grained"
    raise UserError(f"config.loss.name is {config.loss.name!r}; expected {expected}")
  return losses.get(config.loss.name, **losses.table.parameters(config.loss))
