"""How far cheaper ways to judge subnets are from the accuracy after exact recalibration, and whether they rank alike.

    python benchmarks/cheap_scores.py [--quick] [--json FILE] [--data ../shared/data] [--run RUN ...]

Subnets of supernets trained on CIFAR-10 and on the digits: mutants of random parents, as evolution asks for. Exact is
BatchNorm recalibrated on all calibration images, and single precision. Differences are in percentage points of accuracy
on the same held-out images.

N images    recalibrated on the first N images alone
parent, N   recalibrated on the first N images, each layer corrected by control variates (`supernet.calibration`) by the
            parent's, which was recalibrated on all and run on the N: statistics from a neighbour
bf16        judged in bfloat16 after exact recalibration
bf16, both  recalibrated and judged in bfloat16
other       exact, but on as many other training images: what the choice of images alone makes of it

With `--run`, of these finished runs instead. An hour on 2 cores; `--quick`, of few digits and subnets, a minute.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import tyro
from report import report
from rich.progress import track
from scipy.stats import kendalltau
from torch import Tensor, nn

from search.scores.judges import RunBatches
from supernet.artifacts.runs import Run, load_run, run_job
from supernet.calibration import Reference, calibrate, references
from supernet.training.data.batch import on, split
from supernet.training.execution import Execution, channels_last
from supernet.training.recipes import cifar10, digits

BATCH = 250
KEPT = (0.1, 0.5, 0.98)  # largest mean and single difference in points, and lowest Kendall's tau, of a way that holds


@dataclass(frozen=True)
class Arguments:
    subnets: int = 200
    """Of each supernet, three mutants of each random parent."""
    images: int = 2000
    """Images for calibration and to judge by, at most."""
    few: tuple[int, ...] = (125, 250, 500, 1000)
    """Numbers of images for cheaper calibration."""
    epochs: int = 12
    """Passes over 5,000 images of CIFAR-10, and three times as many over half of the digits."""
    run: tuple[Path, ...] = ()
    """Finished runs to take the subnets of."""
    seed: int = 0
    """All that is random follows from it."""
    data: Path = Path("../shared/data")
    """Folder with cifar10/."""
    quick: bool = False
    """The digits alone, 4 passes, 9 subnets."""
    json: Path | None = None
    """File for the result."""


class Images(NamedTuple):
    """At one resolution, in batches."""

    calibration: list[Tensor]
    other: list[Tensor]
    judges: list[Tensor]
    labels: Tensor


class Way(NamedTuple):
    """How a subnet is calibrated and judged."""

    calibrate: Callable[[nn.Module, Images], object]
    bf16: bool = False


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, subnets=9, epochs=1, few=(125,))
    with tempfile.TemporaryDirectory() as folder:
        runs = [load_run(path) for path in arguments.run] or list(train(arguments, Path(folder)))
        rows = [row for run in runs for row in compare(run, arguments)]
    summary = {f"kendall_{row['data']}_{row['way']}": row["kendall"] for row in rows}
    summary |= {f"mean_points_{row['data']}_{row['way']}": row["mean difference"] for row in rows}
    settings = {"subnets": arguments.subnets, "images": arguments.images, "seed": arguments.seed}
    report(rows, summary, arguments.json, settings=settings, threads=torch.get_num_threads())


def train(arguments: Arguments, folder: Path) -> Iterator[Run]:
    execution = Execution(workers=0, eval_epochs=0)
    job = digits()
    data = dataclasses.replace(job.data, holdout=0.5)
    settings = dataclasses.replace(job.train, epochs=3 * arguments.epochs, ema_decay=None)
    yield run_job(dataclasses.replace(job, data=data, train=settings, execution=execution), folder / "digits")
    if arguments.quick:
        return
    job, images = cifar10(), arguments.data / "cifar10"
    data = dataclasses.replace(
        job.data, root=str(images / "train.tar"), test_root=str(images / "val.tar"), holdout=0.9, num_classes=10
    )
    settings = dataclasses.replace(
        job.train, epochs=arguments.epochs, warmup_epochs=0.5, batch_size=64, lr=0.4, ema_decay=None
    )
    yield run_job(dataclasses.replace(job, data=data, train=settings, execution=execution), folder / "cifar10")


def compare(run: Run, arguments: Arguments) -> Iterator[dict[str, object]]:
    """A row for each way."""
    net, space, generator = channels_last(run.net), run.family.space, np.random.default_rng(arguments.seed)
    at: dict[int, Images] = {}
    found: dict[str, list[tuple[float, float, float]]] = {}  # accuracy, CPU seconds to judge, and to calibrate
    for index in track(range(arguments.subnets), f"Judging subnets on {run.data.config.dataset}"):
        if index % 3 == 0:
            parent = space.sample(generator)
            resolution = run.family.resolution(parent)
            if resolution not in at:
                at[resolution] = images_at(run, resolution, arguments)
            images = at[resolution]
            known = parents_references(net.extract(parent).eval(), images, arguments.few)
        arch = space.complete({**space.mutate(parent, generator, 0.1), "resolution": parent["resolution"]})
        calibrated: dict[object, tuple[nn.Module, float]] = {}
        for name, way in ways(arguments.few, known).items():
            if way.calibrate not in calibrated:
                begun, model = time.process_time(), net.extract(arch).eval()
                way.calibrate(model, images)
                calibrated[way.calibrate] = model, time.process_time() - begun
            model, seconds = calibrated[way.calibrate]
            found.setdefault(name, []).append((*judged(model, images, way.bf16), seconds))
    exact = np.array(found["exact"])[:, 0]
    for name, own in found.items():
        accuracy, judging_s, calibration_s = np.array(own).T
        difference = 100 * (accuracy - exact)
        mean, tau = float(difference.mean()), float(kendalltau(accuracy, exact).statistic)
        largest = float(abs(difference).max())
        yield {
            "data": "digits" if run.data.config.dataset == "digits" else "cifar10",
            "way": name,
            "accuracy": float(100 * accuracy.mean()),
            "standard deviation": float(100 * accuracy.std(ddof=1)),
            "mean difference": mean,
            "standard error": float(difference.std(ddof=1) / len(difference) ** 0.5),
            "mean absolute difference": float(abs(difference).mean()),
            "largest difference": largest,
            "kendall": tau,
            "calibration (CPU s)": float(calibration_s.mean()),
            "judging (CPU s)": float(judging_s.mean()),
            "holds": "yes" if abs(mean) <= KEPT[0] and largest <= KEPT[1] and tau >= KEPT[2] else "no",
        }


def ways(few: Sequence[int], known: Mapping[int, Mapping[str, Reference]]) -> dict[str, Way]:
    def exact(model: nn.Module, images: Images) -> object:
        return calibrate(model, images.calibration)

    def on_few(count: int) -> Way:
        return Way(lambda model, images: calibrate(model, first(images.calibration, count)))

    def corrected(count: int) -> Way:
        return Way(
            lambda model, images: calibrate(model, first(images.calibration, count), fitting(model, known[count]))
        )

    def in_bf16(model: nn.Module, images: Images) -> object:
        with torch.autocast("cpu", torch.bfloat16):
            return calibrate(model, images.calibration)

    return {
        "exact": Way(exact),
        **{f"{count} images": on_few(count) for count in few},
        **{f"parent, {count}": corrected(count) for count in few},
        "bf16": Way(exact, bf16=True),
        "bf16, both": Way(in_bf16, bf16=True),
        "other": Way(lambda model, images: calibrate(model, images.other)),
    }


def judged(model: nn.Module, images: Images, bf16: bool) -> tuple[float, float]:
    """The accuracy, and the CPU seconds it took."""
    begun = time.process_time()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        right = torch.cat([model(batch).argmax(1) for batch in images.judges]) == images.labels
    return float(right.double().mean()), time.process_time() - begun


def images_at(run: Run, resolution: int, arguments: Arguments) -> Images:
    calibration, judges, labels = RunBatches(run.data, arguments.images, 0, arguments.images).images(resolution)
    other = RunBatches(run.data, arguments.images, 1, 1).images(resolution).calibration
    parts = (split(images, BATCH) for images in (calibration, other, judges))
    ready = ([on(torch.device("cpu"), batch, torch.channels_last) for batch in part] for part in parts)
    return Images(*ready, labels)


def first(batches: Sequence[Tensor], count: int) -> list[Tensor]:
    return list(torch.cat(list(batches))[:count].split(BATCH))


def parents_references(model: nn.Module, images: Images, few: Sequence[int]) -> dict[int, dict[str, Reference]]:
    calibrate(model, images.calibration)
    return {count: references(model, first(images.calibration, count)) for count in few}


def fitting(model: nn.Module, known: Mapping[str, Reference]) -> dict[nn.Module, Reference]:
    """The references of layers that are as wide as the parent's of the same name."""
    layers = dict(model.named_modules())
    return {
        layers[name]: reference
        for name, reference in known.items()
        if name in layers and len(layers[name].running_mean) == len(reference.mean)
    }


if __name__ == "__main__":
    main()
