"""What recalibrating BatchNorm in chunks of images costs and saves, beside all images at once.

    python benchmarks/calibration_memory.py [--quick] [--json FILE]

Memory: peak resident memory of a process that calibrates ofa_mobilenet_v3's largest subnet on random images of 128
pixels, beyond what it needs for a few of them, at once and within a budget, under MALLOC_ARENA_MAX=1. Without that
variable glibc keeps for each thread what was freed there, which is up to twice as much again.

Error: subnets of a supernet trained on the digits, calibrated on 1,024 images at once, in chunks, and on other images
of the same number. Statistics' errors are root mean squares over all channels: of means in standard deviations of the
layer's input, of variances in their logarithm. `other predictions` is the part of 539 images, those held out and those
for testing, that are told another class than by all images at once.

passes      exact as well, and flat in memory: one pass over the images a BatchNorm layer, each ending at that layer
other       all at once, but other training images: what the choice of images alone makes of it

Ten minutes on two cores; `--quick`, of a shorter training and fewer subnets, one.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from report import report
from torch import Tensor, nn

from supernet.artifacts.runs import Run, run_job
from supernet.calibration import Pooled, calibrate, keeps_statistics
from supernet.evaluation import calibrated
from supernet.families import FAMILIES
from supernet.training.execution import Execution
from supernet.training.recipes import RECIPES

BATCH = 64
CALIBRATION = 1024  # images of digits


@dataclass(frozen=True)
class Arguments:
    epochs: int = 20
    """Of the supernet's training on the digits."""
    subnets: int = 6
    """Random subnets whose errors are averaged."""
    chunks: tuple[int, ...] = (16, 32, 64, 128, 256, 512)
    """Images in a chunk."""
    budget_mb: int = 400
    """Budget of the memory measured, in MB."""
    images: tuple[int, ...] = (128, 512, 2048)
    """Numbers of images of the memory measured within the budget."""
    at_once: tuple[int, ...] = (128, 512)
    """The same of all images at once."""
    quick: bool = False
    """A shorter training, two subnets, a smaller budget and fewer images."""
    json: Path | None = None
    """File for the result."""


QUICK = {"epochs": 1, "subnets": 2, "chunks": (64, 256), "budget_mb": 200, "images": (64, 256), "at_once": (64,)}


Way = Callable[[nn.Module, Tensor, Tensor], object]  # calibrates a model on the first images, or on others


class Result(NamedTuple):
    statistics: list[tuple[Tensor, Tensor, float]]  # mean, variance and eps of each layer
    classes: Tensor
    seconds: float


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    memory = list(memory_rows(arguments))
    with tempfile.TemporaryDirectory() as folder:
        errors = list(error_rows(arguments, trained(arguments, Path(folder))))
    summary = {f"peak_mb_{row['calibration']}_{row['images']}": row["peak memory (MB)"] for row in memory}
    for row in errors:
        name = str(row["calibration"]).replace(" ", "_")
        summary[f"variance_error_{name}"] = row["error of variances"]
        summary[f"other_predictions_{name}"] = row["other predictions (%)"]
    settings = {name: value for name, value in vars(arguments).items() if name != "json"}
    report(memory, {}, None)
    report(errors, summary, arguments.json, settings=settings, threads=torch.get_num_threads(), memory=memory)


# Memory


def memory_rows(arguments: Arguments) -> Iterator[dict[str, object]]:
    budget = arguments.budget_mb * 2**20
    for name, limit, numbers in (
        ("at_once", sys.maxsize, arguments.at_once),
        ("budget", budget, arguments.images),
    ):
        for images in numbers:
            peak_mb, seconds = in_process_of_its_own(images, limit)
            yield {"calibration": name, "images": images, "peak memory (MB)": peak_mb, "seconds": seconds}


def in_process_of_its_own(images: int, limit_bytes: int) -> tuple[float, float]:
    code = f"import calibration_memory as it; print(*it.calibrate_random_images({images}, {limit_bytes}))"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "MALLOC_ARENA_MAX": "1"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    peak_mb, seconds = map(float, found.stdout.split())
    return peak_mb, seconds


def calibrate_random_images(count: int, limit_bytes: int) -> tuple[float, float]:
    """Peak memory in MB beyond that of a few images, and seconds."""
    torch.set_num_threads(1)
    family = FAMILIES["ofa_mobilenet_v3"]()
    net = family.supernet()
    images = partial(random_images, generator=torch.Generator().manual_seed(0))
    calibrated(net, family.space.largest, images(8))
    before = peak_bytes()
    start = time.perf_counter()
    calibrated(net, family.space.largest, images(count), limit_bytes)
    return (peak_bytes() - before) / 2**20, time.perf_counter() - start


def random_images(count: int, generator: torch.Generator) -> Iterator[Tensor]:
    for start in range(0, count, BATCH):
        yield torch.randn(min(BATCH, count - start), 3, 128, 128, generator=generator)


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# Error


def trained(arguments: Arguments, directory: Path) -> Run:
    job = RECIPES["digits"]()
    job = dataclasses.replace(
        job,
        train=dataclasses.replace(job.train, epochs=arguments.epochs, warmup_epochs=1),
        execution=Execution(workers=0, eval_epochs=0),
    )
    return run_job(job, directory / "run")


def error_rows(arguments: Arguments, run: Run) -> Iterator[dict[str, object]]:
    space, draw = run.family.space, np.random.default_rng(0)
    ways: dict[str, Way] = {"at once": at_once, "passes": in_passes, "other": on_others}
    ways |= {f"chunks of {size}": partial(in_chunks, size=size) for size in arguments.chunks}
    found: dict[str, list[tuple[float, ...]]] = {}
    for arch in (space.sample(draw) for _ in range(arguments.subnets)):
        size = run.family.resolution(arch)
        images, others = (run.data.calibration_images(size, CALIBRATION, seed) for seed in (0, 1))
        parts = [run.data.images(part, size) for part in (run.data.holdout, run.data.test)]
        judges, labels = (torch.cat(tensors) for tensors in zip(*parts))
        results = {
            name: result(run.net.extract(arch).eval(), way, images, others, judges) for name, way in ways.items()
        }
        exact = results["at once"]
        for name, one in results.items():
            right = 100 * (one.classes == labels).double().mean().item()
            other = 100 * (one.classes != exact.classes).double().mean().item()
            found.setdefault(name, []).append((*errors(one, exact), right, other, one.seconds))
    columns = ("error of means", "error of variances", "accuracy (%)", "other predictions (%)", "seconds")
    for name, rows in found.items():
        yield {"calibration": name, **dict(zip(columns, np.mean(rows, axis=0).tolist()))}


def result(model: nn.Module, way: Way, images: Tensor, others: Tensor, judges: Tensor) -> Result:
    start = time.perf_counter()
    way(model, images, others)
    seconds = time.perf_counter() - start
    statistics = [
        (layer.running_mean, layer.running_var, layer.eps) for layer in filter(keeps_statistics, model.modules())
    ]
    with torch.inference_mode():
        classes = torch.cat([model(batch).argmax(1) for batch in judges.split(BATCH)])
    return Result(statistics, classes, seconds)


def at_once(model: nn.Module, images: Tensor, others: Tensor) -> None:
    calibrate(model, images.split(BATCH))


def on_others(model: nn.Module, images: Tensor, others: Tensor) -> None:
    calibrate(model, others.split(BATCH))


def in_chunks(model: nn.Module, images: Tensor, others: Tensor, size: int) -> None:
    pooled = Pooled()
    for chunk in images.split(size):
        pooled.add(calibrate(model, chunk.split(BATCH)).statistics)
    pooled.put()


class Reached(Exception):
    """The layer of a pass."""


def in_passes(model: nn.Module, images: Tensor, others: Tensor) -> None:
    """Exact, layer by layer in the order in which they run."""
    order: list[nn.Module] = []
    counts: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, _: order.append(layer))
        for layer in filter(keeps_statistics, model.modules())
    ]
    with torch.no_grad():
        model(images[:1])
        for hook in hooks:
            hook.remove()
        for layer in order:
            sums = Sums()
            hook = layer.register_forward_pre_hook(sums)
            for batch in images.split(BATCH):
                with suppress(Reached):
                    model(batch)
            hook.remove()
            layer.running_mean.copy_(sums.values / sums.count)
            layer.running_var.copy_(sums.squares / sums.count - (sums.values / sums.count).square())
            counts.append(sums.count)
        for layer, count in zip(order, counts):
            layer.running_var.mul_(count / (count - 1))


class Sums:
    """Of a layer's input, with which its pass ends, in double precision."""

    def __init__(self) -> None:
        self.values, self.squares, self.count = torch.zeros(1), torch.zeros(1), 0

    def __call__(self, layer: nn.Module, args: tuple[Tensor]) -> None:
        values = args[0].double().transpose(0, 1).flatten(1)
        self.values, self.squares = self.values + values.sum(1), self.squares + values.square().sum(1)
        self.count += values.shape[1]
        raise Reached


def errors(one: Result, exact: Result) -> tuple[float, float]:
    """Of means and of variances."""
    pairs = list(zip(one.statistics, exact.statistics))
    means = [(mean - there) / (variance + eps).sqrt() for (mean, _, _), (there, variance, eps) in pairs]
    variances = [((own + eps) / (there + eps)).log() for (_, own, _), (_, there, eps) in pairs]
    return tuple(torch.cat(parts).square().mean().sqrt().item() for parts in (means, variances))


if __name__ == "__main__":
    main()
