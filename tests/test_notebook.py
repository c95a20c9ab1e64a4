"""The notebook in `studies/` runs as it is written, and is stored with what it printed and drew.

    python tests/test_notebook.py

executes it in place. Where kaleido is installed, and a Chromium for it to draw with, every figure
is stored as a picture, too: what shows a notebook without running it, as a code host does, draws
none of plotly's own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat reads notebooks")
nbclient = pytest.importorskip("nbclient", reason="nbclient executes notebooks")
pytest.importorskip("ipykernel", reason="ipykernel is what executes them")

NOTEBOOK = Path(__file__).resolve().parent.parent / "studies" / "sampler.ipynb"
PLOTLY, PICTURE = "application/vnd.plotly.v1+json", "image/png"
FIGURES = 3
LARGEST = 300_000
"""Bytes of the stored notebook."""


def execute(folder: Path) -> Any:
    """The notebook as it is after a run in a folder.

    Raises:
        CellExecutionError: A cell failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=600,
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    ).execute(env=os.environ | {"OMP_NUM_THREADS": "1"})
    notebook.metadata.language_info = {"name": "python"}  # whichever version ran it
    return notebook


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def figures(notebook: Any, kind: str) -> list[str]:
    """Cells that drew a figure, by their id."""
    return [
        cell.id for cell in code(notebook) for out in cell.outputs if kind in out.get("data", {})
    ]


def printed(notebook: Any, stream: str) -> str:
    outputs = [out for cell in code(notebook) for out in cell.outputs]
    return "".join(out.text for out in outputs if out.get("name") == stream)


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_it_is_a_valid_notebook_of_this_size(stored: Any) -> None:
    nbformat.validate(stored)
    assert NOTEBOOK.stat().st_size < LARGEST


def test_it_is_stored_as_it_was_executed_from_its_first_cell_to_its_last(stored: Any) -> None:
    cells = code(stored)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(figures(stored, PLOTLY)) == FIGURES
    assert figures(stored, PICTURE) == figures(stored, PLOTLY)
    assert printed(stored, "stderr") == ""  # also no path of whoever executed it


def test_its_links_lead_somewhere(stored: Any) -> None:
    import re

    text = "\n".join(cell.source for cell in stored.cells if cell.cell_type == "markdown")
    targets = re.findall(r"\]\(([^)#]+)#?[^)]*\)", text)
    assert len(targets) >= 3
    for target in targets:
        assert (NOTEBOOK.parent / target).exists(), target


def test_every_cell_runs(stored: Any, tmp_path: Path) -> None:
    notebook = execute(tmp_path)
    assert not [out for cell in code(notebook) for out in cell.outputs if "traceback" in out]
    assert figures(notebook, PLOTLY) == figures(stored, PLOTLY)
    assert printed(notebook, "stderr") == ""
    assert "with a budget: 20 of 20 trials within" in printed(notebook, "stdout")
    assert not list(tmp_path.iterdir())  # and leaves nothing behind


if __name__ == "__main__":
    nbformat.write(execute(NOTEBOOK.parent), NOTEBOOK)
