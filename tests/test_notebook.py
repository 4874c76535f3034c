"""The notebook: without outputs in the repository, and without errors when it runs."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "first_student.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 10
    for cell in cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("XLA_FLAGS")  # as for a user: one device, optimised
    monkeypatch.delenv("MPLBACKEND", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    book = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()  # raises a cell's error
    pictures = {}
    for number, cell in enumerate(book.cells):
        outputs = cell.get("outputs", ())
        assert not [output for output in outputs if output["output_type"] == "error"]
        pictures[number] = sum("image/png" in output.get("data", {}) for output in outputs)
    assert {number: count for number, count in pictures.items() if count} == {3: 1, 5: 1, 7: 1}
    assert not list(tmp_path.iterdir())
