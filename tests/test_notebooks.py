"""The notebooks of the documentation, cell by cell in one session, with less to compute than they say."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "notebooks").glob("*.ipynb"))
LESS = {
    "train_search_extract": {"EPOCHS": 1, "EVALUATIONS": 4, "HOLDOUT": 0.95},
    "measure_and_compare": {"SUBNETS": 8, "ROUNDS": 1},
}

pytestmark = pytest.mark.filterwarnings("ignore")


def cells(notebook):
    return [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_notebook_is_run_with_less():
    assert {notebook.stem for notebook in NOTEBOOKS} == set(LESS)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_runs_from_top_to_bottom(notebook, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    less = LESS[notebook.stem]
    for number, cell in enumerate(cells(notebook)):
        exec(compile("".join(cell["source"]), f"{notebook.name}, cell {number}", "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert less.keys() <= names.keys()
            names.update(less)
    assert capsys.readouterr().out.count("\n") >= 4
    assert list(tmp_path.rglob("*.jsonl" if "search" in notebook.stem else "predictor.json"))


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_it_is_kept_without_outputs(notebook):
    for cell in cells(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
