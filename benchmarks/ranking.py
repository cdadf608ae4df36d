"""How well a supernet ranks architectures: recalibrated accuracy against published stand-alone accuracy.

    python benchmarks/ranking.py [--quick] [--json FILE] [--images 10000 --epochs 6 --resolution 16]

Trains the supernet of NAS-Bench-Macro (Su et al., CVPR 2021) on CIFAR-10 with each method, judges 200 random
architectures by it on held-out training images, and reports Kendall's tau and Spearman's rho with the mean test
accuracy of the published table, beside the same for MACs and parameters, which a method has to beat. Every method sees
the same number of images as many times, so that a sandwich step of four subnets costs as much as four of SPOS. Goes on
where it stopped when started again with the same --output. By default about 20 minutes on one core for each method (two
processes may share the --methods and the --output); with all images at 32 pixels, hours on a GPU.
"""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from report import report
from rich.progress import track
from scipy.stats import kendalltau, spearmanr
from torch.utils.data import Subset

from search.scores.accuracy import SupernetAccuracy, resized
from supernet import Arch
from supernet.artifacts.atomic import write_atomically
from supernet.families import FAMILIES, Family
from supernet.families.nas_bench_macro import from_string
from supernet.training.data import DataConfig, ImageData, open_images
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

METHODS = {
    "sandwich_kl": {"method": "sandwich"},
    "sandwich_alpha": {"method": "sandwich", "distillation": "adaptive_alpha"},
    "spos": {"method": "spos", "random_subnets": 1},
    "fairnas": {"method": "fairnas"},
}
SUBNETS = {"sandwich_kl": 4, "sandwich_alpha": 4, "spos": 1, "fairnas": 3}  # a step


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar, cifar10/val.tar and accuracy/nasbench_macro_cifar10.csv.gz."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Methods to compare."""
    images: int = 10000
    """Training images."""
    epochs: int = 6
    """Epochs of a method that trains four subnets a step; others get more, for the same number of subnets."""
    archs: int = 200
    """Architectures of the table, drawn at random, that are ranked."""
    judges: int = 2000
    """Held-out images that judge them."""
    resolution: int = 16
    """Pixels a side."""
    device: str = "auto"
    """cpu, cuda or auto."""
    seed: int = 0
    """All that is random follows from it."""
    output: Path = Path("runs/ranking")
    """Folder for checkpoints and scores."""
    quick: bool = False
    """Few images, one epoch: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(
            arguments,
            images=512,
            epochs=1,
            archs=20,
            judges=200,
            methods=arguments.methods[:2],
            output=arguments.output / "quick",
        )
    family = FAMILIES["nasbench_macro"](num_classes=10)
    table = published(arguments.data / "accuracy" / "nasbench_macro_cifar10.csv.gz")
    chosen = np.random.default_rng(arguments.seed).choice(len(table), arguments.archs, replace=False)
    archs = [list(table)[index] for index in chosen]
    truth = [table[arch] for arch in archs]
    rows = [
        row("macs", [family.macs(arch) for arch in archs], truth),
        row("parameters", [family.parameters(arch) for arch in archs], truth),
    ]
    config = DataConfig(
        "folder",
        str(arguments.data / "cifar10" / "train.tar"),
        str(arguments.data / "cifar10" / "val.tar"),
        scale=(0.6, 1.0),
        color_jitter=0.0,
        crop_pct=1.0,
    )
    data = open_images(config, arguments.seed, workers=2)
    data = dataclasses.replace(data, train=Subset(data.train, range(arguments.images)))
    for name in arguments.methods:
        rows.append(row(name, judged(name, family, data, archs, arguments), truth))
    summary = {f"kendall_{row['method']}": row["kendall"] for row in rows}
    report(rows, summary, arguments.json, budget=json.loads(json.dumps(vars(arguments), default=str)))


def published(path: Path) -> dict[Arch, float]:
    """Mean test accuracy in percent of every architecture of the table."""
    with gzip.open(path, "rt") as file:
        return {
            from_string(line["arch"]): float(np.mean([float(line[f"accuracy_{i}"]) for i in (1, 2, 3)]))
            for line in csv.DictReader(file)
        }


def row(method: str, scores: list[float], truth: list[float]) -> dict[str, object]:
    return {
        "method": method,
        "kendall": float(kendalltau(scores, truth).statistic),
        "spearman": float(spearmanr(scores, truth).statistic),
    }


def judged(name: str, family: Family, data: ImageData, archs: list[Arch], arguments: Arguments) -> list[float]:
    """Accuracy of each architecture by a supernet trained with the method `name`."""
    directory = (
        arguments.output / f"{name}-{arguments.images}-{arguments.epochs}-{arguments.resolution}px-{arguments.seed}"
    )
    path = directory / f"scores-{arguments.archs}-{arguments.judges}.json"
    if path.exists():
        return json.loads(path.read_text())
    config = TrainConfig(
        epochs=arguments.epochs * 4 // SUBNETS[name],
        batch_size=64,
        lr=0.1,
        weight_decay=1e-4,
        warmup_epochs=1,
        clip=5.0,
        seed=arguments.seed,
        **METHODS[name],
    )
    family = dataclasses.replace(family, input_size=arguments.resolution)
    execution = Execution(arguments.device, eval_epochs=0)
    net = train(family, family.supernet(arguments.seed), data, config, directory, execution, resume=True).eval()
    calibration = data.calibration_images(arguments.resolution, 1000, arguments.seed)
    images = resized(calibration, *data.images(data.holdout, arguments.resolution, arguments.judges))
    score = SupernetAccuracy(net, images, family.resolution)
    known = dict(track(score.each(archs), f"Judging by {name}", len(archs)))
    scores = [known[index] for index in range(len(archs))]
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(scores))
    return scores


if __name__ == "__main__":
    main()
