"""Every block of the tutorials runs as it stands there, in order, each page in a folder of its own; tables are real."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def blocks(page):
    """Kind and text of the blocks; Python that follows Python, with nothing run between, goes on with its names."""
    found = BLOCK.findall(page.read_text())
    for kind, group in itertools.groupby(found, key=lambda block: block[0]):
        yield kind, "\n".join(text for _, text in group)


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=lambda page: page.stem)
def test_the_blocks_of_a_tutorial_run(page, tmp_path):
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    for kind, text in blocks(page):
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-euc", text]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"


@pytest.fixture
def build(monkeypatch, tmp_path):
    """docs/conf.py, with packages and results in `tmp_path`."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def filled(build, page):
    source = [page]
    build.fill(None, "page", source)
    return source[0]


def test_tables_are_those_of_the_results(build, tmp_path):
    page = "<!-- results: digits accuracy -->\n<!-- rows: digits -->"
    assert filled(build, page).count("Nothing is recorded here yet") == 2
    result = {
        "command": "python benchmarks/digits.py",
        "date": "2026-01-01",
        "hardware": {"cpu": "A"},
        "summary": {"accuracy": 0.51239, "other": 1},
        "rows": [{"method": "a|b", "n": 1}, {"method": "c", "best": 2.0}],
    }
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "benchmarks" / "results" / "digits.json").write_text(json.dumps(result))
    lines = filled(build, page).splitlines()
    origin = "*From `python benchmarks/digits.py`, 2026-01-01, on A.*"
    assert lines == [
        *("| figure | value |", "| --- | --- |", "| `accuracy` | 0.5124 |", "", origin),
        *("| method | n | best |", "| --- | --- | --- |", "| a\\|b | 1 |  |", "| c |  | 2 |", "", origin),
    ]


def test_the_reference_names_every_public_module(build, tmp_path):
    for name in ("__init__", "space", "_private", "empty", "families/resnet"):
        path = tmp_path / "supernet" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("" if name == "empty" else '"""Something."""\n')
    text = filled(build, "<!-- reference: supernet -->")
    names = [line.removeprefix(".. automodule:: ") for line in text.splitlines() if line.startswith("..")]
    assert names == ["supernet", "supernet.families.resnet", "supernet.space"]
