"""The notebook runs from a clean kernel and shows what it promises."""

import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks" / "inspect_checkpoint.ipynb"


def test_the_notebook_is_committed_small_and_without_outputs():
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  assert NOTEBOOK.stat().st_size < 200_000
  assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_from_a_clean_kernel(trained, earlier, monkeypatch):
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  for name, value in {
    "XMR_RUN": trained,
    "XMR_COMPARE": earlier,
    "XLA_FLAGS": "",
    "PYTHONPATH": ROOT,
  }.items():
    monkeypatch.setenv(name, str(value))
  notebook = nbformat.read(NOTEBOOK, as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
  ).execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  pictures = [output for output in outputs if "image/png" in output.get("data", {})]
  # Curves, matrix, histograms, map, retrieved; then curves and retrieved of two runs.
  assert len(pictures) == 8
  assert not [output for output in outputs if output.output_type == "error"]
  printed = "".join(
    output.text for output in outputs if output.output_type == "stream" and output.name == "stdout"
  )
  assert printed.count("rsum") == 3 and "scene_" in printed
