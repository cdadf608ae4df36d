"""What a training step of the supernet does besides the four plain models' work, counted: on any machine.

    python benchmarks/step_overhead.py [--quick] [--json FILE]

Where kernels are short, on a GPU say, the time of a step is that of the operators and the Python that launch them. A
sandwich step (the largest subnet, two random ones, the smallest) is compared with the same four plain models, built
beforehand, on tiny images: `extra_operators_a_step` are the operators that torch dispatches beyond theirs, forward and
backward, `extra_python_us_a_subnet` the processor time beyond theirs on one thread (the median of pairs of steps in
turn), `own_autograd_nodes_a_step` the nodes of autograd functions written in Python, and `grad_allocations_a_step` the
gradients of parameters that begin as none. `host_synchronisations_a_step` counts what would wait for a GPU in a step of
a training that logs nothing, its optimizer included. A minute on 2 cores.
"""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import torch
import tyro
from compared_steps import Step, train_plain
from report import report
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from supernet.training.data.tensors import TensorData
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

WAITING = frozenset({"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"})
"""Functions of tensors that wait until a GPU has computed what they read."""


@dataclass(frozen=True)
class Arguments:
    space: str = "ofa_mobilenet_v3"
    """Search space."""
    resolution: int = 32
    """Pixels a side."""
    batch_size: int = 2
    """Images a step."""
    steps: int = 40
    """Pairs of steps that are timed."""
    quick: bool = False
    """A quarter of them."""
    json: Path | None = None
    """File for the result."""


class Operators(TorchDispatchMode):
    """Counts the operators that are dispatched within, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Synchronisations(TorchFunctionMode):
    """Counts the calls within that would wait for a GPU, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in WAITING and args and isinstance(args[0], Tensor) and not _within("check_batch", "look"):
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def _within(*functions: str) -> bool:
    """Whether a function of one of these names is being called: batches are checked before they are on the GPU, and
    what is looked at of a step was copied while the next one was launched."""
    frame = sys._getframe()
    while frame is not None and frame.f_code.co_name not in functions:
        frame = frame.f_back
    return frame is not None


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    step = Step(arguments.space, arguments.resolution, arguments.batch_size)
    counted, operators = count_operators(step, 0)
    summary = {
        "extra_python_us_a_subnet": extra_python_us(step, arguments.steps // 4 if arguments.quick else arguments.steps),
        "extra_operators_a_step": counted["extra"],
        "own_autograd_nodes_a_step": own_nodes(step, 0),
        "grad_allocations_a_step": gradients_that_begin(step, 0),
        "host_synchronisations_a_step": synchronisations(step, arguments),
    }
    report([{"operator": name, "more": more} for name, more in operators], summary, arguments.json, **counted)


def count_operators(step: Step, index: int) -> tuple[dict[str, int], list[tuple[str, int]]]:
    """The operators of a step of both kinds, and the names of those of which there are more, most first."""
    learners = step.learners(index)
    models = step.plain_models(learners)
    step.shared(learners)  # what is made once
    with Operators() as shared:
        step.shared(learners)
    with Operators() as plain:
        train_plain(models, *step.batch, "fp32")
    more = shared.counts - plain.counts
    counted = {"shared": shared.counts.total(), "plain": plain.counts.total()}
    return counted | {"extra": counted["shared"] - counted["plain"]}, more.most_common(15)


def extra_python_us(step: Step, steps: int) -> float:
    """Microseconds of processor time a subnet beyond the plain models', the median of pairs of steps in turn."""
    extra = []
    for index in range(-3, steps):
        learners = step.learners(index % 1000)
        models = step.plain_models(learners)
        for arch in (learner.arch for learner in learners):
            step.net.skeleton(arch)  # subnets are known, as most are in a long training
        gc.collect()
        runs = [partial(step.shared, learners), partial(train_plain, models, *step.batch, "fp32")]
        times = [processor_seconds(run) for run in (runs if index % 2 else reversed(runs))]
        shared, plain = times if index % 2 else reversed(times)
        if index >= 0:
            extra.append((shared - plain) / len(learners) * 1e6)
    return float(np.median(extra))


def processor_seconds(run: Callable[[], None]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def own_nodes(step: Step, index: int) -> int:
    """Nodes of autograd functions written in Python, in the graphs of a step's subnets."""
    found = 0
    for learner in step.learners(index):
        output = step.net(step.batch[0], arch=learner.arch, accumulate=True)
        seen, waiting = set(), [output.grad_fn]
        while waiting:
            node = waiting.pop()
            if node is not None and node not in seen:
                seen.add(node)
                waiting += [following for following, _ in node.next_functions]
        found += sum(isinstance(node, torch.autograd.function.BackwardCFunction) for node in seen)
    return found


def gradients_that_begin(step: Step, index: int) -> int:
    """Parameters that have no gradient before a step, and one behind it."""
    step.net.zero_grad()
    step.shared(step.learners(index))
    return sum(parameter.grad is not None for parameter in step.net.parameters())


def synchronisations(step: Step, arguments: Arguments) -> float:
    """Those of a step that logs nothing, in a training on random images that goes as on a GPU."""
    count, size = 6, arguments.resolution
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count * arguments.batch_size, 3, size, size, generator=draw)
    labels = torch.randint(step.family.num_classes, (len(images),), generator=draw)
    config = TrainConfig(epochs=1, batch_size=arguments.batch_size, warmup_epochs=0, clip=1.0, ema_decay=0.9)
    execution = Execution("cpu", eval_epochs=0, log_steps=10**6, checkpoint_steps=10**6)
    counts: list[int] = []
    as_on_gpu = patch("supernet.training.loop.loop.computes_ahead", lambda device: True)
    with TemporaryDirectory() as folder, as_on_gpu, Synchronisations() as waits:
        data = TensorData((images, labels), (images[:2], labels[:2]), (images[:2], labels[:2]))
        train(
            step.family, step.net, data, config, Path(folder), execution,
            on_step=lambda result: counts.append(waits.counts.total()),
        )  # fmt: skip
    return float(np.median(np.diff(counts[:-1])))  # the last one logs


if __name__ == "__main__":
    main()
