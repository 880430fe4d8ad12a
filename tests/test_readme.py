"""What the README names is there."""

import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()


def test_every_path_exists():
  paths = set(
    re.findall(r"\b(?:xmr|configs|launch|notebooks|tests|docs)/[A-Za-z0-9_./-]*[A-Za-z0-9_/]", TEXT)
  )
  assert paths
  assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_module_and_config_variant_of_a_command_exists():
  import importlib.util

  for module in set(re.findall(r"python -m (xmr[.\w]*)", TEXT)):
    assert importlib.util.find_spec(module), module
  for config, variant in set(re.findall(r"--config=(configs/\w+\.py)(?::(\w+))?", TEXT)):
    assert (ROOT / config).exists(), config
    assert (
      not variant
      or variant in (ROOT / config).read_text() + (ROOT / "configs/common/flickr.py").read_text()
    ), (config, variant)


def test_every_dependency_has_its_reason():
  required = re.findall(
    r"^([A-Za-z][\w.-]*)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
  )
  table = TEXT[TEXT.index("## Dependencies") :]
  assert [name for name in required if not re.search(rf"\b{name}\b", table)] == []


def test_code_blocks_are_shell_that_parses():
  for block in re.findall(r"```\n(.*?)```", TEXT, re.DOTALL):
    assert shlex.split(block)
