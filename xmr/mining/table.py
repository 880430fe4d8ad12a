"""The table of mining scopes, one row each. A new scope needs a function and a row here.

A row names its function by its path, so this module imports neither the scopes nor JAX.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Scope:
  """Where negatives come from: the function, by path, and what it needs.

  `rows`: it needs the rows of the training set on the devices, as pool["rows"].  `bank`: it needs
  their embeddings, kept in the training state.  `uses`: the fields of config.mining that it reads.
  """

  function: str | Callable
  rows: bool = True
  bank: bool = False
  uses: tuple[str, ...] = ("rank", "semi_hard", "skip_relevance")


SCOPES = {
  "batch": Scope("xmr.mining.scopes.in_batch", rows=False),
  "train": Scope("xmr.mining.scopes.in_training_set"),
  "bank": Scope("xmr.mining.scopes.in_bank", bank=True),
  "random": Scope("xmr.mining.scopes.at_random", uses=()),
  "released": Scope("xmr.mining.scopes.as_released", uses=()),
}
