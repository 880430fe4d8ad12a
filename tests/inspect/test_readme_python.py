"""The Python of README.md and docs/getting-started.md runs on a run."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize("page", ["README.md", "docs/getting-started.md"])
def test_the_python_of_a_page_runs(page, trained):
  (code,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
  names = {}
  exec(code.replace("runs/scenes", str(trained)), names)
  assert names["text"].shape[0] == 2 and names["index"].tolist() == [[0], [1]]
