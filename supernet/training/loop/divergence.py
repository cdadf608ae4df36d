"""Whether a training still leads anywhere: losses and gradients that are finite, and losses that do not blow up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

ADVICE = "lower lr, lengthen warmup_epochs or set clip, and train into another folder"
FACTOR = 10.0  # how far above the loss of a network that knows nothing a loss has to be
DECADES = 4.0  # of a single step that count, at most
LIMIT = 20.0


class TrainingError(RuntimeError):
    """Training cannot go on: a loss or gradient is not finite, or the losses have blown up."""


class Divergence:
    """Watches the losses of a training, one number a step, by a one-sided cumulative sum (Page, Biometrika 1954):

        s_t = max(0, s_{t-1} + min(log10(loss_t / (10 u)), 4)),  diverged when s_t > 20

    where u is the larger of `uninformed`, the loss of a network that answers the same to everything, and the first
    loss. So 6 steps above 10^5 u stop a training, 20 steps at 100 u and 67 at 20 u, while steps below 10 u make up for
    those above.
    """

    def __init__(self, uninformed: float) -> None:
        self._uninformed = uninformed
        self._first: float | None = None
        self._sum = 0.0
        self._last = 0.0

    def update(self, step: int, loss: float, name: object) -> None:
        """Note the loss of `step`, counted from 0, of what is called `name`; TrainingError if it is not finite or the
        training has diverged."""
        if not math.isfinite(loss):
            raise TrainingError(f"the loss is {loss} in step {step + 1} for {name}; {ADVICE}")
        if self._first is None:
            self._first = loss
        self._last = loss
        self._sum = max(0.0, self._sum + min(self._decades(), DECADES))
        if self._sum > LIMIT:
            raise self._error(step, name)

    def end(self, step: int, name: object) -> None:
        """TrainingError if the last of all steps, `step` counted from 0, has a loss that is far too high."""
        if self._decades() > 0:
            raise self._error(step, name)

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "sum": self._sum}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._sum = state["first"], state["sum"]

    def _decades(self) -> float:
        reference = max(self._uninformed, self._first or 0.0)
        return math.log10(max(self._last, reference / 1e9) / (FACTOR * reference))

    def _error(self, step: int, name: object) -> TrainingError:
        reference = max(self._uninformed, self._first or 0.0)
        return TrainingError(
            f"the training has diverged: the loss is {self._last:.3g} in step {step + 1} for {name}, and that of a "
            f"network that knows nothing about {reference:.3g}; {ADVICE}"
        )


class _Noted(NamedTuple):
    step: int
    values: Tensor  # the losses and the gradient's norm
    names: Sequence[object]
    may_overflow: bool
    is_last: bool
    copied: torch.Event | None  # when the values are on the CPU


class Watch:
    """Looks at the losses and the gradient of every step, at once or, `late`, when it is told to.

    On a GPU, which computes while Python goes on, looking at once would wait for all kernels of the step. So it is done
    after the next step's have been launched, and before anything is kept of the weights that the step led to.
    """

    def __init__(self, divergences: Sequence[Divergence], late: bool) -> None:
        """`divergences` are one, which watches the largest loss of each step, or one for each loss: those of networks
        that train apart from each other."""
        self._divergences, self._late = divergences, late
        self._noted: _Noted | None = None
        self._found: TrainingError | None = None

    def note(
        self, step: int, losses: Tensor, norm: Tensor, names: Sequence[object], may_overflow: bool, is_last: bool
    ) -> None:
        """Those of `step`, counted from 0: `losses` [L], of what `names` [L] say or all of one name, and the `norm` of
        the gradient, which may be infinite if it `may_overflow`. TrainingError as `look` if it looks at once."""
        values, copied = torch.cat([losses, norm[None]]), None
        if values.is_cuda:
            values = values.to("cpu", non_blocking=True)
            copied = torch.cuda.current_stream(losses.device).record_event()
        self._noted = _Noted(step, values, names, may_overflow, is_last, copied)
        if is_last or not self._late:
            self.look()

    def look(self) -> None:
        """At what was noted, unless that is done. TrainingError, naming step and name, if a loss or the gradient is not
        finite, or if the training has diverged."""
        self.is_fine()
        found, self._found = self._found, None
        if found is not None:
            raise found

    def is_fine(self) -> bool:
        """Whether `look` would raise nothing: for a process that asks when the others do not, which would wait for it
        if it ended."""
        try:
            self._examine()
        except TrainingError as error:
            self._found = error
        return self._found is None

    def _examine(self) -> None:
        noted, self._noted = self._noted, None
        if noted is None:
            return
        if noted.copied is not None:
            noted.copied.synchronize()
        *losses, norm = noted.values.tolist()
        watched = [worst(losses, noted.names)] if len(self._divergences) == 1 else [*zip(losses, noted.names)]
        for divergence, (loss, name) in zip(self._divergences, watched):
            divergence.update(noted.step, loss, name)
        if not math.isfinite(norm) and not noted.may_overflow:
            raise TrainingError(
                f"the gradient's norm is {norm} in step {noted.step + 1}, for one of {noted.names}; {ADVICE}"
            )
        if noted.is_last:
            for divergence, (_, name) in zip(self._divergences, watched):
                divergence.end(noted.step, name)

    def state_dict(self) -> dict[str, Any]:
        """Of each divergence."""
        states = [divergence.state_dict() for divergence in self._divergences]
        return states[0] if len(states) == 1 else {"apart": states}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for divergence, own in zip(self._divergences, state.get("apart", [state]), strict=True):
            divergence.load_state_dict(own)


def worst(losses: Sequence[float], names: Sequence[object]) -> tuple[float, object]:
    """The first loss that is not finite, or else the largest, and the name of what it is the loss of; a single name
    stands for all losses."""
    index = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
    if index is None:
        index = max(range(len(losses)), key=losses.__getitem__)
    return losses[index], names[index if len(names) > 1 else 0]
