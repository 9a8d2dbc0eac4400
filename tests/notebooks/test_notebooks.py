"""Every notebook runs from top to bottom, in an empty folder, in the environment that the tests run in."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
named = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a notebook runs; neither the user's settings for Jupyter come in, nor do traces go out."""
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def run(notebook: Path, folder: Path, timeout: int) -> None:
    """Execute all cells; the first that fails raises, with its traceback.

    Args:
        notebook: The file, not changed.
        folder: To run in.
        timeout: Seconds for one cell.
    """
    content = nbformat.read(notebook, as_version=4)
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(content, timeout=timeout, kernel_name="python3", resources=place).execute()


def test_every_domain_has_one() -> None:
    assert {path.stem for path in NOTEBOOKS} == {path.parent.name for path in ROOT.glob("domains/*/__init__.py")}


@named
def test_notebook_is_valid_and_stripped(notebook: Path) -> None:
    content = nbformat.read(notebook, as_version=4)
    nbformat.validate(content)
    cells = [cell for cell in content.cells if cell.cell_type == "code"]
    assert not [cell.source for cell in cells if cell.outputs or cell.execution_count is not None]


@named
def test_notebook_runs(notebook: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps instead of minutes: every cell works, whatever the numbers."""
    monkeypatch.setenv("POLYFM_FAST", "1")
    run(notebook, folder, timeout=240)


@pytest.mark.full
@pytest.mark.timeout(1800)
@named
def test_notebook_runs_in_full(notebook: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYFM_FAST", raising=False)
    run(notebook, folder, timeout=900)
