"""Sphinx: Markdown pages, the API from the docstrings, and tables from benchmarks/results.

In a page, `<!-- results: NAME key key -->` becomes a table of these figures of benchmarks/results/NAME.json, with the
command and the hardware that they are from, and `<!-- rows: NAME -->` one of its rows. While there is no such file, it
says so: no figure is written by hand. `<!-- reference: PACKAGE -->` becomes the documentation of its public modules,
`<!-- commands: all -->` what each command says of itself, and `<!-- spaces: all -->` the options of every search space.
An arXiv identifier becomes a link, on pages and in docstrings; `make links` follows all that lead outside.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import re
import sys
from pathlib import Path
from unittest import mock

from docutils import nodes
from sphinx.transforms import SphinxTransform

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

project = "supernet"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"  # light and dark, and nothing is fetched when a page is opened
html_title = "supernet"
html_static_path = ["_static"]
html_js_files = ["copy.js"]
html_css_files = ["copy.css"]
myst_heading_anchors = 3
default_role = "literal"  # what docstrings put between single backticks
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_typehints = "signature"
# Docstrings are plain text, not all of it valid reStructuredText; links between pages are checked all the same.
suppress_warnings = ["docutils", "autodoc", "ref.python", "sphinx_autodoc_typehints"]
linkcheck_timeout = 20
linkcheck_retries = 3
linkcheck_rate_limit_timeout = 120  # seconds at most until a server that asks for patience is asked again
linkcheck_ignore = [r"https?://(localhost|127\.0\.0\.1)"]

PLACE = re.compile(r"<!-- (results|rows|reference|commands|spaces): (\S+)((?: \S+)*) -->")
PAPER = re.compile(r"(?<=arXiv )(\d{4}\.\d{4,5}(?:v\d+)?)")


def setup(app):
    app.connect("source-read", fill)
    app.add_transform(LinkPapers)


class LinkPapers(SphinxTransform):
    """Make "arXiv 1908.09791" lead there."""

    default_priority = 500

    def apply(self) -> None:
        for text in list(self.document.findall(nodes.Text)):
            parts = PAPER.split(text)  # every second one is an identifier
            if len(parts) > 1 and not isinstance(text.parent, (nodes.reference, nodes.literal, nodes.literal_block)):
                links = [nodes.reference("", part, refuri=f"https://arxiv.org/abs/{part}") for part in parts[1::2]]
                parts = [nodes.Text(part) for part in parts]
                parts[1::2] = links
                text.parent.replace(text, parts)


def fill(app, name: str, source: list[str]) -> None:
    source[0] = PLACE.sub(lambda place: generated(place[1], place[2], place[3].split()), source[0])


def generated(kind: str, name: str, keys: list[str]) -> str:
    made = {"reference": lambda: reference(name), "commands": commands, "spaces": spaces}
    return made[kind]() if kind in made else table(kind, name, keys)


def commands() -> str:
    """The help of every command."""
    from supernet_cli.main import COMMANDS, main

    parts = []
    for name in COMMANDS:
        help_ = io.StringIO()
        with (
            mock.patch.object(sys, "argv", ["supernet", name, "--help"]),
            mock.patch.dict(os.environ, {"COLUMNS": "100", "NO_COLOR": "1"}),
            contextlib.redirect_stdout(help_),
            contextlib.suppress(SystemExit),
        ):
            main()
        parts.append(f"## supernet {name}\n\n```text\n{help_.getvalue().strip()}\n```\n")
    return "\n".join(parts)


def spaces() -> str:
    """A table of the options of every search space, and the first sentence of what it is."""
    from supernet.families import FAMILIES

    parts = []
    for name, function in FAMILIES.items():
        said = inspect.signature(function).parameters.values()
        rows = [
            f"| `{own.name}` | `{cell(own.annotation)}` | {'' if own.default is own.empty else f'`{own.default!r}`'} |"
            for own in said
            if own.name not in ("num_classes", "in_chans") and own.kind is not own.VAR_KEYWORD
        ]
        table_ = ["| option | type | default |", "| --- | --- | --- |", *rows] if rows else ["No options."]
        summary = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
        parts.append("\n".join([f"## {name}", "", summary, "", *table_, ""]))
    return "\n".join(parts)


def reference(package: str) -> str:
    """Every public module of a package that has something to say."""
    directives = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if (parts[-1].startswith("_") and parts[-1] != "__init__") or not path.read_text().strip():
            continue
        if parts[-1] == "__init__":  # what a package offers is described where it is defined
            directives[".".join(parts[:-1])] = "\n   :no-members:"
        else:
            directives[".".join(parts)] = ""
    return "\n".join(
        f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}{options}\n```\n"
        for name, options in sorted(directives.items())
    )


def table(kind: str, name: str, keys: list[str]) -> str:
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists():
        return (
            f"*Nothing is recorded here yet: `benchmarks/results/{name}.json` does not exist. "
            f"`python benchmarks/{name}.py --json benchmarks/results/{name}.json` measures it.*"
        )
    result = json.loads(path.read_text())
    hardware = ", ".join(str(value) for value in result["hardware"].values())
    timm = "".join(f", with timm {version}" for name, version in result.get("versions", {}).items() if name == "timm")
    origin = f"*From `{result['command']}`, {result['date']}{timm}, on {hardware}.*"
    if kind == "rows":
        columns = list(dict.fromkeys(column for row in result["rows"] for column in row))
        lines = [[cell(row.get(column, "")) for column in columns] for row in result["rows"]]
    else:
        columns = ["figure", "value"]
        lines = [[f"`{key}`", cell(result["summary"][key])] for key in keys or result["summary"]]
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines), "", origin])


def cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return re.sub(r"([|*])", r"\\\1", text)
