"""What a self-supervised start gives subnets of three sizes, when few or all of the images have labels.

    python benchmarks/self_supervised.py [--quick] [--json FILE] [--data ../shared/data --output runs/self_supervised]

A small ResNet learns from 5,000 of CIFAR-10's training images without labels (SimCLR), and is saved as a timm
checkpoint in a folder. Whatever comes then knows this folder, the 5,000 images, and the labels of 1, 10 or 100 % of
them, as many of each class:

supernet      the checkpoint is the largest of a space of widths; all subnets learn its features on the unlabelled
              images (`supernet.training.features.distil_features`), then from the labels by the sandwich rule
students      three networks of the sizes of the smallest, the middle and the largest subnet, with weights of their own,
              learn the same features by the same loss, one after another, then from the labels
labels alone  the three networks from new weights learn from the labels for as much compute as a student had in all

All three students together are trained for as many multiply-accumulates as the supernet, to whole epochs: three times
the forward pass of what learns and once the teacher's. The supernet has further sizes for it, of which nothing is
reported. BatchNorm's statistics are those of 1,000 of the unlabelled images in all arms.

Differences are paired by seed, by which the labels, the order of images and new weights are drawn; the teacher is one.
One that is below two of its standard errors is not distinguishable. `neighbours_...` is the accuracy of the 20 nearest
of the 5,000 images by the cosine of features, whose labels are all known then, and `random` a network as it was drawn.
The teacher's settings were chosen by images of the first half of the training set alone (--choose), all others are
usual ones, the same in every arm; here images are of the second half, and the 5,000 test images judge.

Every cell is kept in OUTPUT and not computed again. Half an hour of a core for three seeds; --quick shows within a
minute that it works, not how well.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
import timm
import torch
import tyro
from cifar10_cnn import images
from contrastive import features, neighbours, pretrain
from digits_mlp import mean_and_error
from report import report
from rich.progress import track
from timm.models import save_for_hf
from torch import Tensor, nn

from supernet import Arch, Family, SearchSpace, Supernet
from supernet.artifacts.atomic import write_json
from supernet.artifacts.weights import read_weights, save_weights
from supernet.calibration import calibrate
from supernet.evaluation import calibrated_subnet
from supernet.families import from_timm
from supernet.training.cohort import train_models
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.features import distil_features
from supernet.training.loop.config import LoopConfig
from supernet.training.step import TrainConfig
from supernet.training.train import train

SIDE = 32  # pixels
SECOND_HALF = 24_500  # of the 49,000 images that are not held out
NETWORK = {"output_stride": 8, "stem_width": 8, "channels": (24, 32, 48, 96)}  # of timm's test_resnet
PARTS = (0.01, 0.1, 1.0)  # of the images have labels
SIZES = ("smallest", "middle", "largest")
ARMS = ("supernet", "students", "labels alone")
EXECUTION = Execution("cpu", eval_epochs=0, log_steps=50, keep_checkpoints=1, workers=0)


@dataclass(frozen=True)
class Budget:
    images: int = 5000
    judges: int = 5000
    teacher_epochs: int = 20
    feature_epochs: int = 5
    label_epochs: tuple[int, int, int] = (60, 20, 5)  # for each of PARTS
    seeds: int = 3


QUICK = Budget(400, 200, 1, 1, (2, 1, 1), 1)


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and cifar10/val.tar."""
    output: Path = Path("runs/self_supervised")
    """Folder for networks and results."""
    seeds: int | None = None
    """Seeds instead of three."""
    choose: bool = False
    """Learn from the first half of the training images, and judge by others of it."""
    quick: bool = False
    """Few images and epochs, in a folder of its own: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


@dataclass(frozen=True)
class Cell:
    """One network that is judged."""

    arm: str
    size: str
    part: float
    seed: int


class Setting(NamedTuple):
    """What all arms have in common."""

    family: Family
    teacher: nn.Module
    data: ImageData
    judges: tuple[Tensor, Tensor]
    budget: Budget
    folder: Path

    @property
    def archs(self) -> dict[str, Arch]:
        space = self.family.space
        middle = {name: choice.values[len(choice.values) // 2] for name, choice in space.choices.items()}
        return dict(zip(SIZES, (space.smallest, space.validate(middle), space.largest)))


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if not arguments.quick:
        return measure(arguments, Budget())
    with tempfile.TemporaryDirectory() as folder:
        measure(dataclasses.replace(arguments, output=Path(folder)), QUICK)


def measure(arguments: Arguments, budget: Budget) -> None:
    if arguments.seeds is not None:
        budget = dataclasses.replace(budget, seeds=arguments.seeds)
    folder = arguments.output / ("choose" if arguments.choose else "judge")
    data = images(arguments.data, budget.images, 0 if arguments.choose else SECOND_HALF)
    others = images(arguments.data, budget.judges, budget.images).train if arguments.choose else data.test
    spread = np.linspace(0, len(others) - 1, budget.judges).astype(int)  # over all classes, which follow one another
    judges = data.images([others[index] for index in spread], SIDE)
    known = data.images(data.train, SIDE)
    worth = checkpoint(known, judges, budget, folder)
    family = from_timm(f"local-dir:{folder / 'teacher'}", pretrained=True, num_classes=10, input_size=SIDE)
    teacher = family.supernet().extract(family.space.largest)
    teacher.reset_classifier(0)
    setting = Setting(family, teacher, data, judges, budget, folder)
    kept = folder / "cells.jsonl"
    lines = map(json.loads, kept.read_text().splitlines() if kept.exists() else [])
    found = {Cell(**line["cell"]): line["accuracy"] for line in lines}
    arms: Mapping[str, Callable[[Setting, float, int], dict[str, float]]] = dict(
        zip(ARMS, (of_supernet, of_students, of_labels_alone))
    )
    plan = [(arm, part, seed) for seed in range(budget.seeds) for arm in ARMS for part in PARTS]
    for arm, part, seed in track(plan, "Learning"):
        cells = {size: Cell(arm, size, part, seed) for size in SIZES}
        if not all(cell in found for cell in cells.values()):
            accuracies = arms[arm](setting, part, seed)
            found |= {cell: accuracies[size] for size, cell in cells.items()}
            with kept.open("a") as file:
                for cell in cells.values():
                    file.write(json.dumps({"cell": dataclasses.asdict(cell), "accuracy": found[cell]}) + "\n")
    rows, summary = table(setting, found)
    supernet, students = compute(setting)
    macs = {
        "supernet": budget.images * budget.feature_epochs * supernet,
        "students": budget.images * student_epochs(setting) * sum(students.values()),
    }
    report(rows, worth | summary, arguments.json, budget=dataclasses.asdict(budget), macs_for_features=macs)


def checkpoint(
    known: tuple[Tensor, Tensor], judges: tuple[Tensor, Tensor], budget: Budget, folder: Path
) -> dict[str, float]:
    """Train the teacher, unless that was done, and save it as timm does; what its features are worth."""
    place = folder / "teacher"
    if not (place / "worth.json").exists():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = timm.create_model("test_resnet", num_classes=0, **NETWORK)
        random = worth(model, known, judges)
        config = LoopConfig(
            epochs=budget.teacher_epochs,
            batch_size=min(250, budget.images),
            opt="adamw",
            lr=2e-3,
            scale_lr=False,
            weight_decay=1e-4,
            warmup_epochs=1,
        )
        pretrain(model, known[0], config, folder / "simclr", EXECUTION)
        save_for_hf(model.to(memory_format=torch.contiguous_format), place, model_args=NETWORK, safe_serialization=True)
        found = {"neighbours_random": random, "neighbours_teacher": worth(model, known, judges)}
        write_json(place / "worth.json", found, indent=None)
    return json.loads((place / "worth.json").read_text())


def worth(model: nn.Module, known: tuple[Tensor, Tensor], judges: tuple[Tensor, Tensor]) -> float:
    """Percent of the judges that are of the class of most of their neighbours."""
    told = neighbours(features(model, known[0]), known[1], features(model, judges[0]))
    return 100 * (told == judges[1]).float().mean().item()


def compute(setting: Setting) -> tuple[float, dict[str, float]]:
    """Multiply-accumulates of learning features, an image: of the supernet, on average, and of each student."""
    macs = {size: setting.family.macs(arch) for size, arch in setting.archs.items()}
    draw = np.random.default_rng(0)
    random = mean(setting.family.macs(setting.family.space.sample(draw)) for _ in range(200))
    teacher = macs["largest"]
    return 3 * (macs["largest"] + random + macs["smallest"]) + teacher, {s: 3 * m + teacher for s, m in macs.items()}


def of_supernet(setting: Setting, part: float, seed: int) -> dict[str, float]:
    net = with_features(setting, setting.family, None, setting.budget.feature_epochs, seed, "supernet")
    data, config = labelled(setting, part, seed), label_config(setting, part, seed)
    folder = setting.folder / f"{seed}-supernet-labels-{part:g}"
    net = train(setting.family, net, data, config, folder, EXECUTION, resume=True).eval()
    calibration = setting.data.calibration_images(SIDE, 1000, seed)
    models = {size: calibrated_subnet(net, arch, SIDE, calibration) for size, arch in setting.archs.items()}
    return {size: accuracy(model, setting.judges) for size, model in models.items()}


def of_students(setting: Setting, part: float, seed: int) -> dict[str, float]:
    found = {}
    for size, arch in setting.archs.items():
        net = with_features(setting, alone(setting.family, arch), setting.teacher, student_epochs(setting), seed, size)
        found[size] = taught(setting, net.extract(arch), part, seed, f"student-{size}")
    return found


def of_labels_alone(setting: Setting, part: float, seed: int) -> dict[str, float]:
    found = {}
    for size, arch in setting.archs.items():
        learning = 3 * setting.family.macs(arch)
        before = student_epochs(setting) * compute(setting)[1][size] / learning  # in epochs of all images
        epochs = label_config(setting, part, seed).epochs + round(before / part)
        model = alone(setting.family, arch).supernet(seed).extract(arch)
        found[size] = taught(setting, model, part, seed, f"alone-{size}", epochs)
    return found


def alone(family: Family, arch: Arch) -> Family:
    """The space of one architecture, without pretrained weights."""
    space = SearchSpace({name: (value,) for name, value in arch.items()})
    return dataclasses.replace(family, space=space, weights=None, weights_classes=None)


def student_epochs(setting: Setting) -> int:
    """Epochs of learning features by which three students cost what the supernet does."""
    supernet, students = compute(setting)
    return max(round(setting.budget.feature_epochs * supernet / sum(students.values())), 1)


def with_features(
    setting: Setting, family: Family, teacher: nn.Module | None, epochs: int, seed: int, name: str
) -> Supernet:
    """A supernet that has learnt the features of `teacher`, or of its largest subnet."""
    folder = setting.folder / f"{seed}-{name}-features"
    kept = folder / "weights.safetensors"
    net = family.supernet(seed, pretrained=not kept.exists())
    if kept.exists():
        net.load_state_dict(read_weights(kept))
        return net
    config = TrainConfig(**settings(setting.budget.images, epochs, seed), random_subnets=1)
    teacher = copy.deepcopy(teacher)  # which moves to the training's memory format
    distil_features(family, net, setting.data, config, folder, EXECUTION, teacher=teacher, resume=True)
    save_weights(kept, net.state_dict())
    return net


def taught(setting: Setting, model: nn.Module, part: float, seed: int, name: str, epochs: int | None = None) -> float:
    """The accuracy of `model` once it has learnt from labels."""
    data, config = labelled(setting, part, seed), label_config(setting, part, seed)
    config = LoopConfig(**settings(len(data.train), epochs or config.epochs, seed))
    folder = setting.folder / f"{seed}-{name}-labels-{part:g}"
    (model,) = train_models([model], [SIDE], data, config, folder, execution=EXECUTION, resume=True)
    calibrate(model.eval(), setting.data.calibration_images(SIDE, 1000, seed).split(250))
    return accuracy(model, setting.judges)


def labelled(setting: Setting, part: float, seed: int) -> ImageData:
    """So many of the images, as many of each class as there are, or `part` of 1 / 10 of all."""
    order = np.random.default_rng(seed).permutation(len(setting.data.train))
    each = max(round(part * len(order) / 10), 1)
    labels = np.array([setting.data.train[index][1] for index in order])
    chosen = np.sort(np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(10)]))
    if part == 1:
        chosen = np.arange(len(order))
    return dataclasses.replace(setting.data, train=[setting.data.train[order[place]] for place in chosen])


def label_config(setting: Setting, part: float, seed: int) -> TrainConfig:
    count = len(labelled(setting, part, seed).train)
    return TrainConfig(**settings(count, setting.budget.label_epochs[PARTS.index(part)], seed), random_subnets=1)


def settings(count: int, epochs: int, seed: int) -> dict[str, object]:
    """Those of all trainings but the teacher's, on `count` images."""
    return {
        "epochs": epochs,
        "batch_size": min(64, count),
        "opt": "adamw",
        "lr": 1e-3,
        "scale_lr": False,
        "weight_decay": 0.05,
        "warmup_epochs": epochs / 10,
        "label_smoothing": 0.0,
        "clip": 1.0,
        "seed": seed,
    }


def accuracy(model: nn.Module, judges: tuple[Tensor, Tensor]) -> float:
    """In percent."""
    return 100 * (features(model, judges[0]).argmax(1) == judges[1]).float().mean().item()


def table(setting: Setting, found: Mapping[Cell, float]) -> tuple[list[dict], dict[str, float]]:
    """A row a part and size, and the differences of arms, in the mean over sizes."""
    seeds = range(setting.budget.seeds)
    rows, summary = [], {}
    for part in PARTS:
        for size, arch in setting.archs.items():
            accuracies = {arm: [found[Cell(arm, size, part, seed)] for seed in seeds] for arm in ARMS}
            for arm in ARMS:
                row: dict[str, object] = {"labels (%)": 100 * part, "network": size}
                row |= {"MACs (M)": setting.family.macs(arch) / 1e6, "arm": arm, "seeds": len(seeds)}
                row |= with_error("accuracy (%)", accuracies[arm])
                if arm != ARMS[0]:
                    row |= with_error("supernet's gain", np.subtract(accuracies[ARMS[0]], accuracies[arm]))
                rows.append(row)
        for arm in ARMS[1:]:
            gains = [
                mean(found[Cell(ARMS[0], size, part, seed)] - found[Cell(arm, size, part, seed)] for size in SIZES)
                for seed in seeds
            ]
            name = f"over_{arm.replace(' ', '_')}_{100 * part:g}"
            summary[name], summary[f"{name}_error"] = mean_and_error(gains)
    return rows, {name: value for name, value in summary.items() if value == value}


def with_error(name: str, values: Sequence[float]) -> dict[str, object]:
    value, error = mean_and_error(values)
    return {name: value, f"{name}: standard error": error if len(values) > 1 else "-"}


if __name__ == "__main__":
    main()
