"""README and docs: short, rendered, and what they name is there."""

import importlib.util
import pathlib
import re
import shlex

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in PAGES]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")


def test_the_readme_has_at_most_900_words():
  assert len(README.split()) <= 900


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_link_of_a_page_leads_to_a_file(path):
  text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
  targets = [one or other for one, other in LINK.findall(text)]
  local = [t.partition("#")[0] for t in targets if "://" not in t and not t.startswith("#")]
  assert [t for t in local if not (path.parent / t).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_path_that_a_page_names_exists(path):
  named = set(
    re.findall(
      r"\b(?:xmr|configs|launch|notebooks|tests)/[A-Za-z0-9_./-]*[A-Za-z0-9_/]",
      # A diff may add a file.
      re.sub(r"```diff.*?```", "", path.read_text(), flags=re.DOTALL),
    )
  )
  assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_command_of_a_page_names_a_module_and_a_variant_that_exist(path):
  text = path.read_text()
  for module in set(re.findall(r"python -m (xmr[.\w]*)", text)):
    assert importlib.util.find_spec(module.rstrip(".")), module
  for config, variant in set(re.findall(r"--config=(configs/\w+\.py)(?::(\w+))?", text)):
    assert (ROOT / config).exists(), config
    if variant:
      source = "".join(
        p.read_text() for p in [ROOT / config, *(ROOT / "configs/common").glob("*.py")]
      )
      assert variant in source, (config, variant)


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_blocks_of_commands_are_shell_that_parses(path):
  for block in re.findall(r"^```\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE):
    if block.startswith(("python", "pip", ".ci", "launch", "git", "cd ")):
      assert shlex.split(block)


@pytest.mark.parametrize("path", sorted((ROOT / "docs").glob("*.md")), ids=lambda path: path.stem)
def test_a_page_opens_with_what_a_reader_can_do_after_it(path):
  if path.stem != "index":
    assert re.search(r"\bafter (this page|it)\b", path.read_text()[:500], re.IGNORECASE), path


def test_every_page_is_in_the_contents_and_in_the_readme():
  contents = (ROOT / "docs" / "index.md").read_text()
  for path in (ROOT / "docs").glob("*.md"):
    if path.stem != "index":
      assert f"\n{path.stem}\n" in contents, path
      assert f"docs/{path.name}" in README, path


def test_every_dependency_has_its_reason():
  required = re.findall(
    r"^([A-Za-z][\w.-]*)", (ROOT / "requirements.txt").read_text(), re.MULTILINE
  )
  design = (ROOT / "docs" / "design.md").read_text()
  table = design[design.index("## Dependencies") :]
  assert [name for name in required if not re.search(rf"\b{name}\b", table)] == []
