"""How fast a GPU judges the candidates of a search, beside two CPU cores.

    python benchmarks/gpu/candidates.py --json benchmarks/results/candidates_CARD.json    # two minutes

Random subnets of `ofa_mobilenet_v3` at 128 pixels are scored as a search scores them, in single precision: BatchNorm is
recalibrated on 2,000 images, and 2,000 others judge; the images are noise. On the GPU, twice in each memory format: the
first time with what a GPU does once for every new shape; then some of the same subnets on two CPU threads, which takes
most of the time, and what is known before is written by then. Nothing is remembered from one time to the next. A search
has channels last.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import report, save

from search.scores.accuracy import SupernetAccuracy, resized
from supernet import Arch
from supernet.families import FAMILIES
from supernet.training.execution import pick_device, tf32

RESOLUTION, CLASSES, THREADS = 128, 10, 2
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Arguments:
    device: str = "cuda"
    """cuda, or cpu to try the script out."""
    candidates: int = 4
    """Subnets that are scored, in one population."""
    on_cpu: int = 2
    """The first of them, that are scored on the CPU as well."""
    images: int = 2000
    """Images to recalibrate by, and as many to judge by."""
    batch_size: int = 500
    """Images that a subnet runs on at a time."""
    seed: int = 0
    """Subnets, weights and images follow from it."""
    quick: bool = False
    """Two subnets, one of them on the CPU, 20 + 20 images."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, candidates=2, on_cpu=1, images=20)
    device = pick_device(arguments.device)
    torch.set_num_threads(THREADS)
    score, archs = prepared(arguments)
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | str)}
    rows, values = [], []
    runs = [(device, name, archs) for name in FORMATS] + [("cpu", "channels_last", archs[: arguments.on_cpu])]
    with tf32(False):
        for place, name, chosen in runs:
            score.to("cpu").net.to(memory_format=FORMATS[name])
            times = [timed(score, chosen, place) for _ in range(1 if place == "cpu" else 2)]
            values.append(times[-1][0])
            seconds = [s / len(chosen) for _, s in times]
            rows.append({"device": str(place), "format": name, "first (s)": seconds[0], "again (s)": seconds[-1]})
            save(rows, summary(rows, values), arguments.json, settings=settings, threads=THREADS)
    found = summary(rows, values)
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    report(rows, found, arguments.json, settings=settings, threads=THREADS)


def summary(rows: list[dict], values: list[list[float]]) -> dict[str, float]:
    """What is known so far; the last of three rows is the CPU's."""
    found = {"candidate_ms": 1e3 * rows[0]["again (s)"], "candidate_ms_new_shapes": 1e3 * rows[0]["first (s)"]}
    if len(rows) == 3:
        found["speedup_over_2_cores"] = rows[2]["again (s)"] / rows[0]["again (s)"]
        found["speedup_over_2_cores_new_shapes"] = rows[2]["again (s)"] / rows[0]["first (s)"]
        differences = [abs(a - b) for others in values[:2] for a, b in zip(others, values[2])]
        found["largest_difference_of_an_accuracy"] = max(differences)
    return found


def prepared(arguments: Arguments) -> tuple[SupernetAccuracy, list[Arch]]:
    """The score and the subnets that it is asked for."""
    family = FAMILIES["ofa_mobilenet_v3"](num_classes=CLASSES)
    draw = np.random.default_rng(arguments.seed)
    space = family.space.restrict({"resolution": [RESOLUTION]})
    archs = [space.sample(draw) for _ in range(arguments.candidates)]
    generator = torch.Generator().manual_seed(arguments.seed)
    noise = torch.randn(2 * arguments.images, 3, RESOLUTION, RESOLUTION, generator=generator)
    labels = torch.randint(CLASSES, (arguments.images,), generator=generator)
    images = resized(noise[: arguments.images], noise[arguments.images :], labels)
    net = family.supernet(arguments.seed).eval()
    return SupernetAccuracy(net, images, family.resolution, arguments.batch_size), archs


def timed(score: SupernetAccuracy, archs: list[Arch], device: torch.device | str) -> tuple[list[float], float]:
    """The accuracies on `device`, with nothing remembered, and the seconds that they took."""
    score.to(device)
    begun = time.perf_counter()
    values = score(archs)
    return values, time.perf_counter() - begun


if __name__ == "__main__":
    main()
