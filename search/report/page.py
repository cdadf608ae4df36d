"""The report as one HTML file: the template, style and scripts beside this module, plotly, and the data."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from search.report.content import Content, make_content
from search.report.sources import read_sources
from supernet.artifacts.atomic import write_atomically
from supernet.imports import require

SCRIPTS = ("drawing.js", "charts.js", "parallel.js", "certainty.js", "answers.js", "page.js")


def write_report(path: Path, folders: Sequence[Path], predictors: Sequence[Path] = (), title: str = "") -> Content:
    """Write the report of the searches and sweeps in `folders` to `path`, an HTML file of some 5 MB that needs no
    network, and return what it shows.

    `predictors` are folders of latency predictors of more devices than the searches were for. ValueError if a folder
    holds no search, ModuleNotFoundError without plotly.
    """
    plotly = plotly_script()
    content = make_content(read_sources(folders, predictors), title)
    with write_atomically(path) as temporary:
        temporary.write_text(make_page(content, plotly), encoding="utf-8")
    return content


def plotly_script() -> str:
    """Plotly, as a script; ModuleNotFoundError, naming the extra, without it."""
    return require("plotly.offline").get_plotlyjs()


def make_page(content: Content, plotly: str) -> str:
    """The page's HTML. What comes from runs is escaped, as text in HTML and as data in the script."""
    assets = resources.files("search.report") / "assets"
    parts = {
        "title": html.escape(str(content["title"])),
        "style": (assets / "page.css").read_text(encoding="utf-8"),
        "data": embedded(content),
        "plotly": plotly,
        "scripts": "\n".join((assets / name).read_text(encoding="utf-8") for name in SCRIPTS),
    }
    before, *rest = (assets / "page.html").read_text(encoding="utf-8").split("{{")
    return before + "".join(parts[name] + text for name, text in (piece.split("}}", 1) for piece in rest))


def embedded(content: Content) -> str:
    """JSON that may stand within a script element: no `<`, which could end it, and no bare line separators."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
