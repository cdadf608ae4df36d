"""Ending a training by a signal, Ctrl-C or a scheduler's SIGTERM, without losing a step."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from supernet.training import distributed

ENDING = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A training was ended by a signal, with a checkpoint of the last step that was done."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.number = number  # of the signal


class Signals:
    """Within the context, SIGINT and SIGTERM are noted, so that a training ends after its step; a second one ends the
    process at once, as it did before.

    Of processes that train together the first one decides, and the others go on until it has ended. Outside of a
    process's main thread, where Python hears of no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in ENDING}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._restore()
        if self.received is not None and isinstance(error, distributed.LostProcess):
            raise self.stopped("with that of the first process") from error

    def stopped(self, when: str) -> Stopped:
        """The error that ends the training; `when` says after what."""
        assert self.received is not None
        return Stopped(f"{self.received.name} has ended the training {when}", int(self.received))

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()
        # not by the log, which the signal may have come in the middle of
        os.write(2, f"\n{self.received.name}: the training ends after this step, once more ends it at once\n".encode())

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}
