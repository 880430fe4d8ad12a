"""Converts the parameters of the authors' text encoders, under PyTorch's names, to ours."""

from typing import Any

import numpy as np

from xmr.errors import UserError

GATES = {"lstm": 4, "gru": 3}
NAMES = {
  "input_kernel": "weight_ih_l0",
  "hidden_kernel": "weight_hh_l0",
  "input_bias": "bias_ih_l0",
  "hidden_bias": "bias_hh_l0",
}


def import_text_encoder(state, *, cell, bidirectional, where="state"):
  """Converts an `EncoderText` of VSE++ or IMC into the parameters of `models.text.Recurrent`.

  The released projection, which no released code calls, is left out.

  Args:
    state: dict of arrays, its PyTorch state: embed.weight [V, E]; rnn.weight_ih_l0 [G H, E],
      rnn.weight_hh_l0 [G H, H], rnn.bias_ih_l0 and rnn.bias_hh_l0 [G H]; the same with _reverse
      where it is bidirectional; projection.* is ignored.
    cell: "lstm" (G = 4) or "gru" (G = 3).
    bidirectional: bool.
    where: source of the state, for errors.
  Returns:
    {"embedding", "forward": {...}, "backward": {...} if bidirectional}, float32.
  Raises:
    UserError: tensors are missing, extra or misshapen; all of them are named.
  """
  directions = {"forward": ""} | ({"backward": "_reverse"} if bidirectional else {})
  sources = {
    (d, ours): f"rnn.{theirs}{suffix}"
    for d, suffix in directions.items()
    for ours, theirs in NAMES.items()
  }
  expected = {"embed.weight", *sources.values()}
  missing = sorted(expected - set(state))
  extra = sorted(name for name in set(state) - expected if not name.startswith("projection."))
  if missing or extra:
    raise UserError(f"{where}: no {cell} text encoder: missing {missing}, not expected {extra}")
  words, hidden = np.shape(state["embed.weight"]), np.shape(state["rnn.weight_hh_l0"])[-1]
  columns = GATES[cell] * hidden
  shapes = {
    "input_kernel": (columns, words[-1]),
    "hidden_kernel": (columns, hidden),
    "input_bias": (columns,),
    "hidden_bias": (columns,),
  }
  wrong = [
    f"{name} is {np.shape(state[name])}, expected {shapes[ours]}"
    for (_, ours), name in sources.items()
    if np.shape(state[name]) != shapes[ours]
  ]
  if wrong:
    raise UserError(f"{where}: no {cell} text encoder of {hidden} units: {'; '.join(wrong)}")
  params: dict[str, Any] = {"embedding": np.asarray(state["embed.weight"], np.float32)}
  for (direction, ours), name in sources.items():
    params.setdefault(direction, {})[ours] = np.ascontiguousarray(
      np.asarray(state[name], np.float32).T
    )
  return params
