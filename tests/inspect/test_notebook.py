"""The notebooks run from a clean kernel, as Jupyter opens them, and show what they promise."""

import pathlib

import pytest
import quick_compilation

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / "notebooks"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_small_and_without_outputs(path):
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(path, as_version=4)
  assert path.stat().st_size < 200_000
  assert not any(cell.get("outputs") for cell in notebook.cells)


def run(name, monkeypatch, changes=(), **environment):
  """Runs a notebook in its own folder; returns (images shown, text printed)."""
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  for key, value in {
    "XLA_FLAGS": quick_compilation.FLAGS,
    "PYTHONPATH": ROOT,
    **environment,
  }.items():
    monkeypatch.setenv(key, str(value))
  notebook = nbformat.read(FOLDER / name, as_version=4)
  for old, new in changes:
    assert sum(old in cell.source for cell in notebook.cells) == 1
    for cell in notebook.cells:
      cell.source = cell.source.replace(old, new)
  nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
  ).execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  assert not [output for output in outputs if output.output_type == "error"]
  images = [output for output in outputs if "image/png" in output.get("data", {})]
  printed = [o.text for o in outputs if o.output_type == "stream" and o.name == "stdout"]
  return images, "".join(printed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_run_is_looked_into(trained, earlier, monkeypatch):
  images, printed = run(
    "inspect_checkpoint.ipynb", monkeypatch, XMR_RUN=trained, XMR_COMPARE=earlier
  )
  # Curves, matrix, histograms, map, retrieved; then curves and retrieved of two runs.
  assert len(images) == 8
  assert printed.count("rsum") == 3 and "scene_" in printed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_four_losses_are_compared(monkeypatch):
  images, _ = run("compare_losses.ipynb", monkeypatch, [("STEPS = 400", "STEPS = 16")])
  assert len(images) == 3
