"""Losses by name: each returns (loss, terms), a scalar and a dict of scalars. Adding one takes one
line of LOSSES.
"""

import functools
import inspect

from xmr.errors import UserError
from xmr.losses.alignment import aligned_full_hard_negative
from xmr.losses.contrastive import info_nce, sigmoid
from xmr.losses.fine_grained import fine_grained_similarity, pair_cross_entropy, pairwise_similarity
from xmr.losses.full_hn import full_hard_negative, hard_negative, margin_hard_negative
from xmr.losses.intra import imc, intra_modal_constraint
from xmr.losses.ring import (
  ring_imc,
  ring_info_nce,
  ring_max_of_hinges,
  ring_sigmoid,
  ring_sum_of_hinges,
)
from xmr.losses.triplet import max_of_hinges, sum_of_hinges

__all__ = ["LOSSES", "RING", "get", "get_ring", "intra_modal_constraint"]

LOSSES = {
  "sum_of_hinges": sum_of_hinges,
  "max_of_hinges": max_of_hinges,
  "imc": imc,
  "hard_negative": hard_negative,
  "margin_hard_negative": margin_hard_negative,
  "full_hard_negative": full_hard_negative,
  "aligned_full_hard_negative": aligned_full_hard_negative,
  "pairwise_similarity": pairwise_similarity,
  "pair_cross_entropy": pair_cross_entropy,
  "fine_grained_similarity": fine_grained_similarity,
  "info_nce": info_nce,
  "sigmoid": sigmoid,
}
__all__ += sorted(LOSSES)
# The same losses on the rows of each device, without [B, B].
RING = {
  "sum_of_hinges": ring_sum_of_hinges,
  "max_of_hinges": ring_max_of_hinges,
  "imc": ring_imc,
  "info_nce": ring_info_nce,
  "sigmoid": ring_sigmoid,
}
# Keyword arguments that a batch supplies, not a config.
TENSORS = (
  "match",
  "same_pair",
  "image_found",
  "text_found",
  "image_mask",
  "text_mask",
  "axis_name",
  "gather",
)


def get(name, **parameters):
  """Returns the loss `name` with its parameters bound, ready for the tensors.

  Args:
    name: key of LOSSES.
    **parameters: the loss's own keyword parameters; None stands for its default.
  Returns:
    function of the loss's tensors -> (loss, terms).
  Raises:
    UserError: unknown name (lists the known ones) or parameter (lists the loss's own).
  """
  if name not in LOSSES:
    raise UserError(f"loss.name is {name!r}; expected one of {', '.join(sorted(LOSSES))}")
  return _bound(LOSSES[name], name, parameters)


def get_ring(name, **parameters):
  """Returns the ring form of a loss with its parameters bound, to be called inside shard_map.

  Args:
    name: key of RING.  **parameters: as of `get`.
  Returns:
    function of (image, text, image_id, *, axis_name) -> (loss, terms); see `xmr.losses.ring`.
  Raises:
    UserError: a loss without a ring form (lists those that have one), or an unknown parameter.
  """
  if name not in RING:
    raise UserError(
      f"loss {name} has no ring form; expected one of {', '.join(sorted(RING))}, or "
      "config.loss_form=plain"
    )
  return _bound(RING[name], name, parameters)


def _bound(function, name, parameters):
  given = {key: value for key, value in parameters.items() if value is not None}
  keywords = [
    p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
  ]
  own = [key for key in keywords if key not in TENSORS]
  unknown = sorted(set(given) - set(own))
  if unknown:
    raise UserError(
      f"loss {name} has no parameter {', '.join(unknown)}; expected some of {', '.join(own)}"
    )
  return functools.partial(function, **given)
