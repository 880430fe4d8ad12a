"""Averages of a run's weights and those that it started from (WiSE-FT)."""

import jax
import numpy as np

from xmr import checkpoint
from xmr.errors import UserError
from xmr.models import lora
from xmr.training.starting import adapted, replace


def ends(model, variables, config):
  """The weights that a run started from and its own.

  Args:
    model, variables, config: of the run; config.init is the run that it started from.
  Returns:
    (model without adapters, start, end): variables as NumPy, with adapters merged and without
    parameters of the loss.
  Raises:
    UserError: config.init is not set, or has another model.
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
