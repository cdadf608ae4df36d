"""Which mixture of a teacher's layers teaches best: the last one, all alike, a random one, or the one DFA searches?

    python benchmarks/aggregation.py [--quick] [--json FILE] [--data ../shared/data --output runs/aggregation]

The ablation of Guan et al. (*Differentiable feature aggregation search for knowledge distillation*, ECCV 2020, arXiv
2008.00506), on CIFAR-10 at 32 pixels: a ResNet of three blocks a resolution, with 16 to 128 channels, teaches one of a
single block each by its features (a hint at each resolution). `labels` has no teacher. All arms of a seed begin with
the same weights. `searched` computes besides what its search takes, which is in the rows as seconds.

Accuracies are of the 5,000 test images, standard errors over seeds; `gain_*` are differences from `last` by seed.
Nothing is chosen by the test images. Goes on where it stopped when started again with the same --output. Half an hour
of one core.
"""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from cifar10_cnn import images
from digits_mlp import mean_and_error
from report import report
from rich.progress import track
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from distill.objective import Objective
from supernet.artifacts.atomic import write_json
from supernet.evaluation import accuracy
from supernet.training.aggregation import aggregated
from supernet.training.cohort import train_models
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

SIDE = 32  # pixels
ARMS = ("labels", "last", "average", "random", "searched")
EXECUTION = Execution("cpu", eval_epochs=0, log_steps=50, keep_checkpoints=1)


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and cifar10/val.tar."""
    output: Path = Path("runs/aggregation")
    """Folder for the runs and their results."""
    seeds: int = 3
    """Seeds."""
    images: int = 10_000
    """Training images."""
    epochs: int = 15
    """Epochs of the teacher and of each student."""
    search_epochs: int = 4
    """Epochs of a search, on half of the images each, for each resolution."""
    hint: float = 1.0
    """Weight of the features beside the labels."""
    quick: bool = False
    """Few images and epochs, one seed: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if arguments.quick:
        few = {"seeds": 1, "images": 256, "epochs": 1, "search_epochs": 1}
        arguments = dataclasses.replace(arguments, output=arguments.output / "quick", **few)
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float)}
    named = "-".join(str(settings[name]) for name in ("images", "epochs", "search_epochs", "hint"))
    output, data = arguments.output / named, images(arguments.data, arguments.images)
    found = {}
    for seed in track(range(arguments.seeds), "Seeds"):
        for arm in ARMS:
            path = output / f"{seed}-{arm}" / "result.json"
            if not path.exists():
                result = trained(arm, seed, data, output, arguments)
                write_json(path, result, indent=None)
            found[arm, seed] = json.loads(path.read_text())
    rows, summary = [], {}
    for arm in ARMS:
        right = [found[arm, seed]["accuracy"] for seed in range(arguments.seeds)]
        gains = [own - found["last", seed]["accuracy"] for seed, own in enumerate(right)]
        value, error = mean_and_error(right)
        rows.append(
            {
                "arm": arm,
                "seeds": arguments.seeds,
                "test accuracy (%)": value,
                "standard error": error,
                "seconds": sum(found[arm, seed]["seconds"] for seed in range(arguments.seeds)) / arguments.seeds,
            }
        )
        summary[f"accuracy_{arm}"] = value
        if arm != "last":
            summary |= zip((f"gain_{arm}", f"gain_{arm}_error"), mean_and_error(gains))
    report(rows, summary, arguments.json, settings=settings, threads=1)


def network(blocks: int, seed: int) -> ResNet:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return ResNet(BasicBlock, (blocks,) * 4, num_classes=10, channels=(16, 32, 64, 128))


def trained(arm: str, seed: int, data: ImageData, output: Path, arguments: Arguments) -> dict[str, float]:
    """The accuracy in percent of a student of this arm, and the seconds that it takes beside the teacher's training."""
    config = LoopConfig(
        epochs=arguments.epochs,
        batch_size=64,
        lr=0.2,
        weight_decay=5e-4,
        warmup_epochs=min(1.0, arguments.epochs / 4),
        label_smoothing=0.0,
        seed=seed,
    )

    def train(model: nn.Module, folder: Path, *teaching: object) -> nn.Module:
        (model,) = train_models([model], [SIDE], data, config, folder, *teaching, execution=EXECUTION, resume=True)
        return model.eval()

    folder, student = output / f"{seed}-{arm}", network(1, seed)
    teaching: tuple[object, ...] = ()
    if arm != "labels":
        teacher = train(network(3, 100 + seed), output / f"{seed}-teacher").requires_grad_(False)
    start = time.perf_counter()
    if arm != "labels":
        mixed = aggregated(teacher, student, data, config, SIDE, arm, arguments.search_epochs, folder, "cpu")
        teaching = (Objective(hint=arguments.hint, layers=mixed.layers), mixed)
    model = train(student, folder, *teaching)
    right = 100 * accuracy(model, data.evaluation_batches(data.test, SIDE))
    return {"accuracy": right, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main()
