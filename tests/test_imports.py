"""The order of dependencies, read from the imports themselves."""

import ast
import graphlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted((ROOT / "xmr").rglob("*.py"))
COMMANDS = {"main", "extract", "sweep", "search", "bench"}

# What a part may import of ours; a part is the first name under xmr, or "eval.metrics" and the like
# where it differs.
ALLOWED = {
  "terminal": {"terminal"},
  "errors": {"terminal"},
  "storage": {"errors", "storage"},
  "command_line": {"errors", "fields", "terminal"},
  "recipe": {"errors", "fields", "storage"},
  "tasks": set(),
  "fields": {"errors"},
  # Of losses, mining, models and eval the tables, which need no JAX.
  "config": {
    "errors",
    "eval.table",
    "fields",
    "terminal",
    "losses",
    "mining",
    "models",
    "recipe",
    "tasks",
  },
  "ops": {"errors", "ops"},
  "losses": {"errors", "fields", "ops", "losses"},
  "models": {"errors", "fields", "ops", "models"},
  "models.convert": {"errors", "command_line", "interop", "models"},
  "models.transformer": {"errors", "ops", "models", "interop.torch_files"},
  "interop": {"errors", "storage", "models", "interop", "data.subwords"},
  "eval.metrics": {"errors"},
  "eval.table": {"errors", "fields", "eval.truth"},
  "run_folder": {"errors", "config", "checkpoint", "terminal", "storage"},
  "data": {"errors", "storage", "ops.unit", "data"},
  "training": {"errors", "checkpoint", "data", "interop", "models", "training"},
  "parallel": {"errors"},
  "checkpoint": {"errors", "storage", "checkpoint"},
  "tracking": {"errors", "storage", "tracking"},
  "preemption": {"terminal"},
  "encode": {"data", "errors", "ops", "parallel"},
  "mining": {"errors", "fields", "ops", "parallel", "mining", "eval.relevance", "data"},
  "eval": {
    "__version__",
    "errors",
    "command_line",
    "fields",
    "storage",
    "ops",
    "parallel",
    "eval",
    "data",
  },
  "experiment": {
    "errors",
    "fields",
    "training",
    "config",
    "recipe",
    "data",
    "terminal",
    "losses",
    "models",
    "ops",
    "interop",
    "parallel",
    "checkpoint",
    "run_folder",
  },
}


def name_of(path):
  parts = path.relative_to(ROOT / "xmr").with_suffix("").parts
  return ".".join(part for part in parts if part != "__init__")


def imports(path):
  """Yields what a file imports of ours, as "losses.similarity" and the like; imports inside
  functions count too.
  """
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "xmr":
      base = node.module.split(".")[1:]
      if base:
        yield ".".join(base)
      else:
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.Import):
      yield from (
        alias.name.removeprefix("xmr.") for alias in node.names if alias.name.startswith("xmr.")
      )


def covered(name, allowed):
  return any(name == entry or name.startswith(entry + ".") for entry in allowed)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_what_its_place_allows(path):
  name = name_of(path)
  entry = next((key for key in (name, name.split(".")[0]) if key in ALLOWED), None)
  if entry is not None and not name.endswith("__main__"):
    wrong = [found for found in imports(path) if not covered(found, ALLOWED[entry])]
    assert not wrong, f"xmr.{name} imports {wrong}; allowed: {sorted(ALLOWED[entry])}"


def test_imports_go_in_no_circle():
  """Those inside functions count: they are there for the time to import, not to hide a circle."""
  names, graph = set(map(name_of, FILES)), {}
  for path in FILES:
    found = graph[name_of(path)] = set()
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "xmr":
        base = node.module.removeprefix("xmr").removeprefix(".")
        each = (f"{base}.{alias.name}".removeprefix(".") for alias in node.names)
        found |= {name if name in names else base for name in each} - {""}
  graphlib.TopologicalSorter(graph).prepare()


def test_nothing_imports_a_command():
  for path in FILES:
    name = name_of(path)
    if name.split(".")[0] in COMMANDS:
      continue
    assert not [found for found in imports(path) if found.split(".")[0] in COMMANDS], name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_has_one_topic_in_at_most_400_lines(path):
  assert len(path.read_text().splitlines()) <= 400


def test_nothing_is_unpickled():
  for path in FILES:
    text = path.read_text()
    assert (
      "import pickle" not in text
      and "allow_pickle=True" not in text
      and "weights_only=False" not in text
    ), path


def test_only_the_table_of_tasks_names_a_task_of_its_own():
  for path in FILES:
    name = name_of(path)
    if name.split(".")[0] == "fine_grained" or name == "tasks":
      continue
    assert not [found for found in imports(path) if found.split(".")[0] == "fine_grained"], name
    code = ast.dump(ast.parse(path.read_text()))
    assert "xmr.fine_grained" not in code and "Constant(value='fine_grained')" not in code, name


def test_a_config_is_built_and_checked_without_jax():
  program = (
    "import sys; from configs import imc_flickr; from xmr import config; "
    "config.validate(imc_flickr.get_config()); list(config.described(config.base_config())); "
    "assert 'jax' not in sys.modules"
  )
  subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=600)
