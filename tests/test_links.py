"""What the documentation and docstrings point to is there: files, modules, papers."""

import pkgutil
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("supernet", "search", "predictors", "distill", "netaug", "compress", "exits", "service", "supernet_cli")
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in page.parts)]
MODULES = [path for folder in (*PACKAGES, "scripts", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
BLOCK = re.compile(r"^ *```.*?^ *```$", flags=re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+)(?:#([^)]+))?\)")
HEADING = re.compile(r"^#+ (.*)$", flags=re.MULTILINE)
FILE = re.compile(rf"(?<![\w/.])(?:{'|'.join(PACKAGES)}|scripts|benchmarks|docs|tests)/[\w/]+\.\w+\b")
NAME = re.compile(rf"`((?:{'|'.join(PACKAGES)})(?:\.(?!(?:py|jsonl?|safetensors)`)\w+)+)(?:\(\))?`")
PAPER = re.compile(r"\barXiv[:\s]\s*([^\s,;:)|\"'`]+)")
IDENTIFIER = re.compile(r"\d\d(0[1-9]|1[0-2])\.\d{4,5}(v\d+)?\.?")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in LINK.findall(BLOCK.sub("", page.read_text())):
        assert "://" in target or (page.parent / target).exists(), target
        if anchor:
            headings = HEADING.findall(BLOCK.sub("", (page.parent / target).read_text()))
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_that_pages_name_are_there(page):
    for name in NAME.findall(page.read_text()):
        assert (ROOT / Path(*name.split("."))).with_suffix(".py").exists() or pkgutil.resolve_name(name), name


def test_files_that_pages_and_docstrings_name_are_there():
    named = {(path.name, name) for path in (*PAGES, *MODULES) for name in FILE.findall(path.read_text())}
    assert ("README.md", "docs/cluster.md") in named
    for path, name in sorted(named):
        result = re.fullmatch(r"benchmarks/results/(\w+?)(_CARD)?\.json", name)  # or what writes it
        writer = result and f"benchmarks/{'gpu/' if result[2] else ''}{result[1]}.py"
        assert (ROOT / name).exists() or (writer and (ROOT / writer).exists()), (path, name)


def test_papers_are_named_by_identifiers_of_arxiv():
    named = {(path.name, found) for path in (*PAGES, *MODULES) for found in PAPER.findall(path.read_text())}
    assert len({found.rstrip(".") for _, found in named}) > 30
    assert [found for found in sorted(named) if not IDENTIFIER.fullmatch(found[1])] == []
