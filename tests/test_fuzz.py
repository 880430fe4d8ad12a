"""Damaged, odd and hostile input by seed: what `python -m tests.fuzz` does for a few seconds, and
every case that once failed.
"""

import json

import fuzz
import numpy as np
import pytest

from xmr import inspect
from xmr.errors import UserError

# A method of ml_collections, and what damaged files make the libraries that read them say.
pytestmark = pytest.mark.filterwarnings("ignore")


SLOW = ("config", "resumed", "scored")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  return fuzz.Fuzz(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize(
  "kind", [pytest.param(k, marks=[pytest.mark.slow] * (k in SLOW)) for k in fuzz.KINDS]
)
def test_odd_input_is_refused_in_one_line_or_changes_no_number(small, kind):
  problems = [small.case(kind, seed) for seed in range(2)]
  assert not any(problems), "\n".join(filter(None, problems))


def corpus():
  for number, case in enumerate(json.loads(fuzz.CORPUS.read_text())):
    slow = case["kind"] in ("resumed", "scored")
    yield pytest.param(
      case, marks=[pytest.mark.slow] * slow, id=f"{case['kind']}-{number}-{case.pop('was')}"
    )


@pytest.mark.parametrize("case", list(corpus()))
def test_a_case_that_once_failed(small, case):
  assert small.case(**case) is None


def test_features_of_another_size_or_that_are_not_finite_are_refused(small):
  run = inspect.load(small.run)
  for x, message in (
    (np.zeros((3, 7), np.float32), r"features of another size; found \[7\]"),
    (np.full((3, 24), np.nan, np.float32), "row 0 of the image features holds NaN"),
  ):
    with pytest.raises(UserError, match=message):
      run.encode_image(x)
