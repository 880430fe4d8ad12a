"""Weights between those that a run started from and its own (WiSE-FT)."""

import jax
import numpy as np

from xmr import checkpoint
from xmr.errors import UserError
from xmr.models import lora
from xmr.training.starting import adapted, replace


def ends(model, variables, config):
  """What lies at both ends of the line between two runs' weights.

  Args:
    model: of the run.  variables: of the run.  config: of the run; config.init names where it
      started.
  Returns:
    (model without adapters, start, end): variables as NumPy, adapters merged and without what a
    loss learned.
  Raises:
    UserError: config.init is not set, or its model is another one.
  """
  if not config.init:
    raise UserError(
      "an average needs the weights that the run started from; its config.init is not set"
    )
  plain = getattr(model, "model", model)
  _, start, run = checkpoint.load(config.init)
  start = _without_loss(adapted(plain, start, run["config"]))
  end = _without_loss(variables)
  if lora.ADAPTERS in end["params"]:
    end = {**end, "params": lora.merged(end["params"], scale=model.scale)}
  return plain, replace(end, start, where=config.init), end


def _without_loss(variables):
  params = {name: tree for name, tree in variables["params"].items() if name != "loss"}
  return {**variables, "params": params}


def between(start, end, share):
  """theta = (1 - a) theta_0 + a theta_1, NumPy.

  Args:
    start, end: theta_0 and theta_1, variables of one model.  share: a in [0, 1].
  References:
    Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022, section 3.
  """

  def mixed(old, new):
    old, new = np.asarray(old), np.asarray(new)
    return ((1 - share) * old + share * new).astype(new.dtype)

  return jax.tree.map(mixed, start, end)
