"""A report that follows a search or a training while it runs, in a browser on this machine."""

from __future__ import annotations

import html
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from search.report.content import make_content
from search.report.page import make_page, plotly_script
from search.report.sources import ORIGIN, read_sources

HOST = "127.0.0.1"  # nobody else sees it
WATCHED = ("*.jsonl", "*/*.jsonl", "front.csv", "strategies.csv", "diagnosis.json", "config.json", ORIGIN)


class LiveReport:
    """The page of what is in `folders` as it is now, made anew only where a file has changed."""

    def __init__(self, folders: Sequence[Path], predictors: Sequence[Path] = ()) -> None:
        self._folders, self._predictors, self._plotly = folders, predictors, plotly_script()
        self._lock = threading.Lock()
        self._made: tuple[str, str] | None = None  # the version, and its page

    def version(self) -> str:
        """What differs whenever a file has changed that the page is made from."""
        return ",".join(sorted(f"{path.name}{stat.st_size}.{stat.st_mtime_ns}" for path, stat in self._files()))

    def page(self) -> str:
        """HTML; a page that says why, where there is nothing to show yet."""
        with self._lock:
            version = self.version()
            if self._made is None or self._made[0] != version:
                self._made = version, self._page(version)
            return self._made[1]

    def _page(self, version: str) -> str:
        try:
            sources = read_sources(self._folders, self._predictors, trainings_alone=True)
            return make_page({**make_content(sources), "live": version}, self._plotly)
        except ValueError as error:
            return (
                '<!doctype html><html lang="en"><meta charset="utf-8"><link rel="icon" href="data:,">'
                '<meta http-equiv="refresh" content="2">'
                f"<title>Waiting</title><p>Nothing to show yet: {html.escape(str(error))}</p></html>"
            )

    def _files(self) -> Iterator[tuple[Path, object]]:
        for folder in self._folders:
            for pattern in WATCHED:
                for path in folder.glob(pattern):
                    try:
                        yield path, path.stat()
                    except FileNotFoundError:  # replaced just now
                        continue


def serve(report: LiveReport, port: int = 0) -> ThreadingHTTPServer:
    """A server of `report` at 127.0.0.1 and `port`, 0 for any that is free; `serve_forever` starts it.

    It answers GET of the page and of its version, reads files and writes none. Requests under another host's name,
    which a page from elsewhere could make a browser send, are refused. OSError if the port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.headers.get("Host", "").rpartition(":")[0]
            if name not in (HOST, "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._answer(report.page(), "text/html")
            elif self.path == "/version":
                self._answer(report.version(), "text/plain")
            else:
                self.send_error(404)

        def _answer(self, text: str, kind: str) -> None:
            content = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: the terminal is for what matters."""

    return ThreadingHTTPServer((HOST, port), Handler)
