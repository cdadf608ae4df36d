"""Make one HTML file of searches and sweeps, to look at, to choose from, and to share.

    supernet report runs/mine                             # writes runs/mine/report.html
    supernet report runs/mine/sweep runs/other --output report.html --figures figures
    supernet report runs/mine --predictors runs/latency/* # predicts latency on more devices

Searches, sweeps and the quickstart end by writing it. The file is some 5 MB, needs no network, and shows the Pareto
front on every device with each architecture and the command that takes it out. `--figures` writes the main figures as
SVG and PNG for papers. Seconds; needs the extra `report`, the figures do not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from search.report import write_figures, write_report
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of searches and sweeps."""
    output: Path | None = None
    """The HTML file; by default report.html in the first folder."""
    title: str = ""
    """Heading of the report; by default the folders' names."""
    predictors: tuple[Path, ...] = ()
    """Folders of latency predictors of more devices than the searches were for."""
    figures: Path | None = None
    """Folder for the main figures as SVG and PNG."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    if not arguments.runs:
        raise ValueError("name at least one folder of a search or a sweep")
    output = arguments.output or arguments.runs[0] / "report.html"
    content = write_report(output, arguments.runs, arguments.predictors, arguments.title)
    console.print(f"The report is in {output}.", highlight=False, markup=False, soft_wrap=True)
    if arguments.figures:
        for path in write_figures(content, arguments.figures):
            console.print(f"{path}", highlight=False, markup=False, soft_wrap=True)
