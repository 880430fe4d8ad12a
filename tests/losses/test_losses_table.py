"""The table of losses: what it gives and what it refuses."""

import inspect

import numpy as np
import pytest

from xmr import losses
from xmr.errors import UserError
from xmr.losses import table


def test_get_binds_parameters_over_the_defaults_of_the_signature():
  x = np.eye(3, dtype=np.float32)[[0, 0, 1]]
  bound = losses.get("max_of_hinges", margin=0.4)
  assert bound(x, x)[0] == losses.max_of_hinges(x, x, margin=0.4)[0]
  assert bound.parameters == {"margin": 0.4, "reduce": "sum", "kind": "dot"}


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
def test_a_row_says_what_the_signature_says(name):
  row, function = table.LOSSES[name], losses.LOSSES[name]
  signature = inspect.signature(function).parameters
  parameters = {key: p for key, p in signature.items() if key not in row.routes}
  assert set(row.routes) <= set(signature)
  assert {key: p.default for key, p in parameters.items()} == {
    key: declared.default for key, declared in row.parameters.items()
  }
  assert set(row.limits) <= set(parameters) and set(row.learn) <= set(parameters)
  assert all(p.kind is p.KEYWORD_ONLY for p in parameters.values())
  for key, declared in row.parameters.items():
    declared.check(key, declared.default)
    assert declared.about, f"{name}: {key} says nothing of itself"
  assert losses.get(name).function is getattr(losses, name)


@pytest.mark.parametrize("name", losses.RING)
def test_a_ring_form_has_the_defaults_of_its_loss(name):
  row = table.LOSSES[name]
  for key, parameter in inspect.signature(losses.RING[name]).parameters.items():
    if key not in (*table.RING_TENSORS, "axis_name", "gather"):
      assert parameter.default == row.parameters[key].default


def test_a_ring_form_refuses_what_it_lacks():
  with pytest.raises(UserError, match="loss.kind is 'order', but max_of_hinges in ring form"):
    losses.get_ring("max_of_hinges", kind="order")
  assert "kind" not in losses.get_ring("max_of_hinges", kind="dot").parameters


@pytest.mark.parametrize(
  "name, parameters, message",
  [
    ("imc", {"margin": -1.0}, "loss.margin is -1.0; expected from 0 to"),
    ("imc", {"inter": "imc"}, "loss.inter is 'imc'; expected one of max_of_hinges, sum_of_hinges"),
    ("info_nce", {"temperature": 0.0}, "loss.temperature is 0.0; expected more than 0"),
    ("imc", {"learn": ["margin"]}, "loss.learn names margin; loss imc learns none"),
    ("sigmoid", {"learn": ["scale"]}, "loss sigmoid learns some of temperature, bias"),
    (
      "aligned_full_hard_negative",
      {"padding": "none"},
      "loss.padding is 'none'; expected one of ignored, zero",
    ),
  ],
)
def test_a_wrong_value_is_refused_with_what_was_expected(name, parameters, message):
  with pytest.raises(UserError, match=message):
    losses.get(name, **parameters)
