"""What a server tells those who run it: a line of JSON for each event, and numbers for Prometheus."""

from __future__ import annotations

import json
import logging
import shutil
import threading
import time
from collections import Counter

from service.dispatcher import Dispatcher

OWN = ("job", "state", "deaths", "method", "path", "status", "milliseconds")  # what events may say besides


class JsonLines(logging.Formatter):
    """Each record as one line: time, level, event, and what else it says; a traceback as one string."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{when}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in OWN if hasattr(record, name)}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Requests:
    """Counts answers by method and status."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, int]] = Counter()

    def note(self, method: str, status: int) -> None:
        with self._lock:
            self._counts[method, status] += 1

    def counts(self) -> dict[tuple[str, int], int]:
        with self._lock:
            return dict(self._counts)


def prometheus(dispatcher: Dispatcher, requests: Requests) -> str:
    """The numbers in Prometheus' text format, version 0.0.4."""
    answered = {
        f'method="{method}",status="{status}"': count for (method, status), count in sorted(requests.counts().items())
    }
    jobs = {f'state="{state}"': count for state, count in dispatcher.store.counts().items()}
    metrics = (
        ("supernet_jobs", "gauge", "Jobs by state.", jobs),
        ("supernet_slots", "gauge", "Workers that may run at once.", {"": dispatcher.slots}),
        ("supernet_lost_workers_total", "counter", "Workers that ended by themselves.", {"": dispatcher.lost_workers}),
        ("supernet_requests_total", "counter", "Answered requests.", answered),
        ("supernet_free_bytes", "gauge", "Free on the disk.", {"": shutil.disk_usage(dispatcher.jobs).free}),
    )
    lines = []
    for name, kind, text, values in metrics:
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{{{labels}}} {value}" if labels else f"{name} {value}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"
