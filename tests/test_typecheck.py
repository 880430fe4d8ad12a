"""What tests/typecheck.py puts around the project's functions does refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from xmr.data.split import Split
from xmr.models.features import Linear
from xmr.models.normalize import normalize


def split(**changed):
  rows = {name: np.arange(2, dtype=np.int32) for name in ("image_id", "text_id", "image_of_text")}
  return Split(**{"name": "train", **rows, "image_names": [], "texts": [], "tokens": []} | changed)


def test_a_split_of_other_shapes_or_types_is_refused():
  split(label=np.zeros(2, np.int32))
  for wrong in ({"label": np.zeros(3, np.int32)}, {"text_id": np.arange(2, dtype=np.int64)}):
    with pytest.raises(TypeCheckError):
      split(**wrong)


def test_functions_and_encoders_are_checked():
  with pytest.raises(TypeCheckError):
    normalize(jnp.ones((2, 3), jnp.int32), "l2")
  encoder = Linear(dim=4)
  variables = encoder.init(jax.random.key(0), jnp.ones((2, 3)))
  assert encoder.apply(variables, jnp.ones((2, 3))).shape == (2, 4)
  with pytest.raises(TypeCheckError):
    encoder.apply(variables, jnp.ones((2, 3)), train="yes")
