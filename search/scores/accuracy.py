"""Scoring architectures by the supernet: the metric of the subnet with BatchNorm statistics of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from distill.untouched import untouched
from search.evaluator import in_order
from search.prefix import trie
from search.prefix.pieces import carried
from supernet.evaluation import CALIBRATION_BYTES, calibrated
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.tasks import Classification, Task
from supernet.tasks.task import Output, in_float32
from supernet.training.data import Data, resize
from supernet.training.data.batch import Batch, chosen, device_of, dropped, is_pixels, joined, on, split, take
from supernet.training.data.pixels import Pixels
from supernet.training.execution import computes_bf16

# N images or other examples, C channels, R resolution in pixels, K classes

Found = TypeVar("Found")


class EvaluationBatches(NamedTuple):
    """What subnets are calibrated and judged on, at one resolution: a batch with all calibration examples, and one with
    all that judge. Networks take what `supernet.training.data.batch.on` makes of them."""

    calibration: Batch  # of which the inputs alone matter
    evaluation: Batch


class EvaluationImages(NamedTuple):
    """The same of images with labels."""

    calibration: Tensor | Pixels  # [N, C, R, R]
    images: Tensor | Pixels  # [N, C, R, R]
    labels: Tensor  # [N]


def resized(calibration: Tensor, images: Tensor, labels: Tensor) -> Callable[[int], EvaluationImages]:
    """The same images at any resolution."""

    def at(resolution: int) -> EvaluationImages:
        return EvaluationImages(resize(calibration, resolution), resize(images, resolution), labels)

    return at


def labelled(images: Callable[[int], EvaluationImages]) -> Callable[[int], EvaluationBatches]:
    """Images with labels as batches."""
    return partial(_as_batches, images)


class Judged(NamedTuple):
    """What a subnet is worth: its score, and what it makes of each example, if the score is the mean of that."""

    score: float
    per_example: np.ndarray | None  # [N], as `Task.per_example` gives it


def held_out(
    data: Data, calibration: int, seed: int, count: int | None, resolution: int | None, first: int = 0
) -> EvaluationBatches:
    """Of `data`, `calibration` training examples to calibrate by, and `count` held-out examples to judge by, all if
    None, from the example `first` on, in their compact form."""
    kept = data.compact()
    judges = dropped(kept.evaluation_batches(kept.holdout, resolution), first)
    return EvaluationBatches(
        joined(list(kept.calibration_batches(resolution, calibration, seed))), joined(list(take(judges, count)))
    )


class SupernetScore:
    """The score "the first metric of `task` of the subnet, with BatchNorm statistics of its own", higher is better.

    In single precision, with BatchNorm folded into convolutions where images judge (`search.prefix.folding`); NaN if an
    output is not finite. With `bf16`, networks compute in bfloat16 where torch's autocast says so, when they are
    calibrated and when they are judged, and statistics are in float32: faster where the device has instructions for it,
    and a little other values. Where it has none, it would be slower: ValueError.

    `batches(resolution)` gives the batches to calibrate and to judge by, `resolution(arch)` the resolution of an
    architecture. The value of an architecture does not depend on which others it is evaluated with; on `batch_size` it
    may, by rounding. Memory format and device are those of `net`.

    Within `calibration_bytes`, calibration is exact and all examples run together; beyond it, examples run in shares
    (`supernet.evaluation.calibrated`, `search.prefix.trie.outputs`).

    Subnets that are called with tensors share what their first layers make of the first of them, which is kept for
    later calls, in up to `memory_bytes`, until the weights change. Others run one by one.
    """

    def __init__(
        self,
        net: Supernet,
        task: Task,
        batches: Callable[[int | None], EvaluationBatches],
        resolution: Callable[[Arch], int | None],
        batch_size: int = 500,
        memory_bytes: int = 2**31,
        calibration_bytes: int = CALIBRATION_BYTES,
        bf16: bool = False,
    ) -> None:
        self.net = net
        self.task = task
        self.batches = batches
        self.resolution = resolution
        self.batch_size = batch_size
        self.calibration_bytes = calibration_bytes
        self.bf16 = bf16
        self._remembered = trie.Remembered(memory_bytes, folds=True)
        self._version = -1

    def to(self, device: torch.device | str) -> SupernetScore:
        """Puts the supernet on `device`, where its subnets then run, in place; what was remembered is forgotten."""
        self.net.to(device)
        self._remembered.clear()
        return self

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """The values in the order of `archs`; raises what evaluating one of them raises."""
        return in_order(self.each(archs))

    def each(
        self, archs: Sequence[Arch], examples: np.ndarray | None = None
    ) -> Iterator[tuple[int, float | Exception]]:
        """The index and the value of each architecture, or what evaluating it raised, as soon as it is known.

        With `examples`, indices of those that judge, by these alone. What BatchNorm was calibrated to is remembered, so
        that a subnet is not calibrated again for other examples.
        """
        return self._each(archs, first_metric, examples)

    def judged(
        self, archs: Sequence[Arch], examples: np.ndarray | None = None
    ) -> Iterator[tuple[int, Judged | Exception]]:
        """The same with what each subnet makes of each example."""
        return self._each(archs, judged, examples)

    def _each(
        self, archs: Sequence[Arch], judge: Callable[[Task, Output, Batch], Found], examples: np.ndarray | None
    ) -> Iterator[tuple[int, Found | Exception]]:
        device = next(self.net.parameters()).device
        if self.bf16 and not computes_bf16(device):
            raise ValueError(f"bf16 is slower than float32 on this {device.type}, which lacks instructions for it")
        used = {size: self._batches(size, examples) for size in {self.resolution(arch) for arch in archs}}
        version = sum(tensor._version for tensor in self.net.state_dict(keep_vars=True).values())
        if version != self._version:
            self._remembered.clear()
            self._version = version
        arch_of = {self.resolution(arch): arch for arch in archs}  # of one resolution, all inputs are the same
        if not all(_are_tensors(self._calls(used[size].evaluation, arch)) for size, arch in arch_of.items()):
            yield from self._in_precision(self._one_by_one(archs, judge, used))
            return

        def batches(resolution: int | None) -> trie.Batches:
            inputs = (self._calls(batch, arch_of[resolution]) for batch in used[resolution])
            return trie.Batches(*(_Mapped(lambda call: carried(*call), calls) for calls in inputs))

        found = trie.outputs(
            self.net,
            archs,
            batches,
            self.resolution,
            self._remembered,
            calibration_bytes=self.calibration_bytes,
            judges=None if examples is None else examples.tobytes(),
        )
        for index, output in self._in_precision(found):
            if isinstance(output, Exception):
                yield index, output
            else:
                yield index, judge(self.task, in_float32(output), used[self.resolution(archs[index])].evaluation)

    def _in_precision(self, found: Iterator[Found]) -> Iterator[Found]:
        """`found`, each of which is computed in the precision of the score."""
        device = next(self.net.parameters()).device.type
        while True:
            with torch.autocast(device, torch.bfloat16) if self.bf16 else nullcontext():
                item = next(found, None)
            if item is None:
                return
            yield item

    def _batches(self, size: int | None, examples: np.ndarray | None) -> EvaluationBatches:
        batches = self.batches(size)
        if examples is None:
            return batches
        return batches._replace(evaluation=chosen(batches.evaluation, torch.from_numpy(examples)))

    def _one_by_one(
        self,
        archs: Sequence[Arch],
        judge: Callable[[Task, Output, Batch], Found],
        used: Mapping[int | None, EvaluationBatches],
    ) -> Iterator[tuple[int, Found | Exception]]:
        for index, arch in enumerate(archs):
            batches = used[self.resolution(arch)]
            try:
                calibration, evaluation = (self._calls(batch, arch) for batch in batches)
                model = calibrated(self.net, arch, calibration, self.calibration_bytes)
                with torch.inference_mode():
                    output = joined([untouched(model, *inputs) for inputs in evaluation])
                yield index, judge(self.task, in_float32(output), batches.evaluation)
            except Exception as error:
                yield index, error

    def _calls(self, batch: Batch, arch: Arch) -> Iterable[tuple]:
        """What `arch` is called with, of parts of a batch."""
        device = next(self.net.parameters()).device
        return _Mapped(lambda part: self.task.inputs(on(device, part), arch), split(batch, self.batch_size))


class WithExamples:
    """A score whose values are `Judged`, those of `SupernetScore.judged`, for `search.evaluator.evaluate_here` and Ray
    workers."""

    def __init__(self, score: SupernetScore) -> None:
        self.score = score

    def to(self, device: torch.device | str) -> WithExamples:
        self.score.to(device)
        return self

    def each(
        self, archs: Sequence[Arch], examples: np.ndarray | None = None
    ) -> Iterator[tuple[int, Judged | Exception]]:
        return self.score.judged(archs, examples)


class SupernetAccuracy(SupernetScore):
    """The score by the supernet for images with classes: the accuracy, from 0 to 1."""

    def __init__(
        self,
        net: Supernet,
        images: Callable[[int], EvaluationImages],
        resolution: Callable[[Arch], int],
        batch_size: int = 500,
        memory_bytes: int = 2**31,
    ) -> None:
        super().__init__(net, Classification(), labelled(images), resolution, batch_size, memory_bytes)


@dataclass(frozen=True)
class _Mapped:
    """What `make` makes of each of `parts`, whenever they are gone through; it is not kept."""

    make: Callable[[Any], Any]
    parts: Iterable

    def __iter__(self) -> Iterator:
        return map(self.make, self.parts)


def _are_tensors(calls: Iterable[tuple]) -> bool:
    """Whether the first of them is with tensors alone."""
    return all(isinstance(given, Tensor) for given in next(iter(calls)))


def _as_batches(images: Callable[[int], EvaluationImages], resolution: int) -> EvaluationBatches:
    calibration, *evaluation = images(resolution)
    return EvaluationBatches((calibration,), tuple(evaluation))


def first_metric(task: Task, output: Output, batch: Batch, part: int = 500) -> float:
    """The first metric of an output for a batch, in single precision; NaN if a number in the output is not finite.

    A batch with `Pixels` is normalised in parts of `part` examples.
    """
    if not all(leaf.isfinite().all() for leaf in tree_leaves(output) if isinstance(leaf, Tensor)):
        return float("nan")
    return float(np.float32(next(iter(task.metrics(*_ready(output, batch, part)).values()))))


def judged(task: Task, output: Output, batch: Batch, part: int = 500) -> Judged:
    """The first metric of an output for a batch, and what it is the mean of."""
    own = [task.per_example(*pair) for pair in zip(*_ready(output, batch, part))]
    per_example = None if own[0] is None else torch.cat(own).double().cpu().numpy()
    return Judged(first_metric(task, output, batch, part), per_example)


def _ready(output: Output, batch: Batch, part: int) -> tuple[Iterable[Output], Iterable[Batch]]:
    """Outputs and batches as tasks take them, on the device of the batch, which is larger."""
    output = on(device_of(batch), output)
    if not any(map(is_pixels, tree_leaves(batch, is_leaf=is_pixels))):
        return [output], [batch]
    return split(output, part), (on(device_of(own), own) for own in split(batch, part))
