"""The diffs of docs/extending.md apply to this repository, and what they add trains."""

import json
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import small_run

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
DIFFS = re.findall(r"^```diff\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
CHANGED = (
  "loss.name",
  "data.name",
  "model.image.name",
  "model.image.hidden",
  "model.image.dropout",
)


@pytest.mark.slow
def test_what_the_page_adds_trains_and_is_scored(tmp_path):
  root = tmp_path / "copy"
  for folder in ("xmr", "configs"):
    shutil.copytree(ROOT / folder, root / folder)
  assert len(DIFFS) == 5
  for diff in DIFFS:
    apply = ["git", "apply", "-C1", "-"]
    done = subprocess.run(apply, input=diff, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
  data = small_run.write_data(tmp_path / "data")
  own = "--config.model.image.name=scaled --config.data.name=halved".split()
  for name, flags in {
    "loss": ["--config.loss.name=soft_max_of_hinges", "--config.loss.sharpness=5"],
    "scope": ["--config.loss.name=hard_negative", "--config.mining.scope=next"],
  }.items():
    given = small_run.arguments(data, tmp_path / name)
    kept = [flag for flag in given if flag[9:].partition("=")[0] not in CHANGED]
    command = [sys.executable, "-m", "xmr.main", *kept, *own, *flags]
    done = subprocess.run(
      command,
      cwd=root,
      env=small_run.environment(1, PYTHONPATH=str(root)),
      capture_output=True,
      text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / name / "results.json").read_text())
    assert found["dataset"] == "halved" and found["metrics"]["gap"] > 0
