"""How far a training is: a bar on a terminal, and elsewhere, in a log file say, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from supernet.training.loop import StepResult
from supernet.training.loop.metrics import scalars
from supernet_cli.command_line import console, progress_bar

SECONDS = 30.0  # between two lines where there is no terminal


@contextmanager
def training_progress(what: str = "Training", disable: bool = False) -> Iterator[Callable[..., None]]:
    """Shows the steps that it is told of, each with what else is to be said of it, until the context ends."""
    follow = Progress()
    if not console.is_terminal:
        yield (lambda result, also="": None) if disable else Lines(follow, what)
        return
    with progress_bar(disable=disable) as bar:
        task = bar.add_task(what, total=None, note="")

        def show(result: StepResult, also: str = "") -> None:
            follow(result)
            note = ", ".join(filter(None, (also, follow.note())))
            bar.update(task, completed=result.step, total=result.steps, note=note)

        yield show


class Progress:
    """What is known of a training after the steps that it was told of."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, int] | None = None  # when the first step that it hears of was done, and which
        self._losses = self._metric = ""
        self._rate = self.seconds_left = None

    def __call__(self, result: StepResult) -> None:
        now = self._clock()
        if result.losses:
            self._losses = "loss " + " ".join(f"{loss:.3g}" for loss in result.losses[:4])
        if result.metrics:
            name, value = next(scalars(result.metrics))
            self._metric = f"{name.replace('/', ' of ')} {value:.4g}"
        if self._first is None or result.step <= self._first[1]:  # of this training, or of the next one
            self._first = now, result.step
            return
        begin, step = self._first
        if now > begin:
            steps_per_second = (result.step - step) / (now - begin)
            self._rate = steps_per_second * result.batch_size
            self.seconds_left = (result.steps - result.step) / steps_per_second

    def note(self) -> str:
        """Losses, the last evaluation's first metric, and how fast it goes, as far as they are known."""
        rate = "" if self._rate is None else f"{self._rate:.3g} images/s"
        return ", ".join(filter(None, (self._losses, self._metric, rate)))


class Lines:
    """Prints a line for the first step and the last, and after `SECONDS` for the next whose losses are known."""

    def __init__(self, follow: Progress, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._follow, self._what, self._clock = follow, what, clock
        self._printed: float | None = None

    def __call__(self, result: StepResult, also: str = "") -> None:
        self._follow(result)
        now, is_last = self._clock(), result.step == result.steps
        is_due = self._printed is None or (result.losses and now - self._printed >= SECONDS)
        if not (is_due or is_last):
            return
        self._printed = now
        left = self._follow.seconds_left
        parts = [
            f"{self._what}: step {result.step} of {result.steps}",
            also,
            f"epoch {result.epoch:.2f}",
            self._follow.note(),
            "" if left is None or is_last else f"{timedelta(seconds=round(left))} left",
        ]
        console.print(", ".join(filter(None, parts)), highlight=False, markup=False, soft_wrap=True)
