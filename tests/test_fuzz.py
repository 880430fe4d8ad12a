"""Damaged, odd and hostile input by seed: what `python -m tests.fuzz` does for a few seconds, and
every case that once failed.
"""

import json

import fuzz
import pytest

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


@pytest.mark.parametrize("kind, seed", json.loads(fuzz.CORPUS.read_text()))
def test_a_case_that_once_failed(small, kind, seed):
  assert small.case(kind, seed) is None
