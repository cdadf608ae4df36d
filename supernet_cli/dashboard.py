"""Follow a search or a training in a browser while it runs.

    supernet dashboard runs/mine                   # opens at http://127.0.0.1:8501
    supernet dashboard runs/mine/sweep --port 9000

The report (`supernet report`) of the folders as they are now, which appears anew whenever something was evaluated or
trained. It reads files and writes none, and is seen from this machine alone; of another machine, forward the port:
`ssh -L 8501:127.0.0.1:8501 NAME`. Until Ctrl-C; needs the extra `report`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from search.report.live import HOST, LiveReport, serve
from supernet_cli.command_line import console
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of searches, sweeps and training runs."""
    predictors: tuple[Path, ...] = ()
    """Folders of latency predictors of more devices than the searches are for."""
    port: int = 8501
    """Of this machine; 0 for any that is free."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    if not arguments.runs:
        raise ValueError("name at least one folder of a search, a sweep or a training run")
    for folder in arguments.runs:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: start the search or the training first")
    with serve(LiveReport(arguments.runs, arguments.predictors), arguments.port) as server:
        address = f"http://{HOST}:{server.server_address[1]}"
        console.print(f"Open {address} in a browser; Ctrl-C ends it.", highlight=False, markup=False)
        server.serve_forever()
