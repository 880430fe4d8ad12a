"""All that is known of each scope of mining, one row each. Adding a scope takes its function and a
row.

A row names its function by its path: this module imports neither the scopes nor JAX.
"""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Scope:
  """Where negatives come from: the function, by path, and what it needs.

  `rows`: the rows of the training set on the devices, as pool["rows"].  `bank`: their embeddings,
  kept in the training state.  `uses`: fields of config.mining that have a meaning.
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
