"""The table of losses: what it gives and what it refuses."""

import inspect

import numpy as np
import pytest

from xmr import losses
from xmr.errors import UserError


def test_get_binds_parameters_and_drops_none():
  x = np.eye(3, dtype=np.float32)[[0, 0, 1]]
  loss, _ = losses.get("max_of_hinges", margin=0.4, reduce=None)(x, x)
  assert loss == losses.max_of_hinges(x, x, margin=0.4)[0]


def test_unknown_name_lists_the_known_ones():
  with pytest.raises(
    UserError, match=f"loss.name is 'mh'; expected one of {', '.join(sorted(losses.LOSSES))}"
  ):
    losses.get("mh")


def test_unknown_parameter_lists_the_losss_own():
  with pytest.raises(
    UserError, match="loss info_nce has no parameter margin; expected some of temperature, bias"
  ):
    losses.get("info_nce", margin=0.2)
  with pytest.raises(UserError, match="no parameter match"):
    losses.get("imc", match=True)


@pytest.mark.parametrize("name", losses.LOSSES)
def test_every_parameter_of_every_loss_is_keyword_only_with_a_default(name):
  for parameter in inspect.signature(losses.LOSSES[name]).parameters.values():
    if parameter.kind is parameter.KEYWORD_ONLY:
      assert parameter.default is not parameter.empty or parameter.name in losses.TENSORS
    else:
      assert parameter.default is parameter.empty
  assert losses.get(name).func is getattr(losses, name)
