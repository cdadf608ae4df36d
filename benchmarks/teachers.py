"""Do two teachers prefer other students, or does one draw of the weights prefer others than the next?

    python benchmarks/teachers.py [--quick] [--json FILE] [--data ../shared/data --output runs/teachers]

The claim of AKD ("search to distill", Liu et al., CVPR 2020, arXiv 1911.09074) is that which student is best depends on
the teacher. Here two teachers learn CIFAR-10 at 16 pixels: a convolutional network and one of patches and MLPs, which
has no convolution but the first. The same students, random cells of NAS-Bench-201 in a small network, are trained
briefly by the score akd: by each teacher, and by the labels alone, each with --seeds seeds. Compared are

agreement between seeds      Spearman's correlation of the students' accuracies by one teacher with two seeds: the noise
agreement between teachers   the same by two teachers, with two different seeds
gain of the own teacher      how much better a student is, by teacher A, if it was chosen by A and not by B; it is
                             chosen by all seeds but one and judged by that one, in turn

Agreements have standard errors by bootstrap over students; if the two differ by less, the claim is not to be
distinguished from noise here. Accuracies are of 2,500 test images after --epochs; those of the teachers are in the
summary, since an agreement says little if one of them teaches nothing. Temperature and weights are the score's
defaults. Every cell is kept in OUTPUT and not computed again. Half an hour of one core.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import tyro
from cifar10_cnn import SIDE, images, network
from report import report
from rich.progress import track
from scipy.stats import spearmanr
from timm.models.mlp_mixer import MlpMixer
from torch import nn

from distill.objective import Objective
from predictors.sampling import distinct
from search.scores.trained_alone import AkdConfig, TrainedAlone
from supernet.artifacts.atomic import write_json
from supernet.families import FAMILIES, Family
from supernet.training.cohort import LABELS_ALONE, train_models
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

TEACHERS = ("convolutions", "patches")
EXECUTION = Execution("cpu", eval_epochs=0, keep_checkpoints=1, log_steps=50)


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and cifar10/val.tar."""
    output: Path = Path("runs/teachers")
    """Folder for trainings and results."""
    students: int = 16
    """Students."""
    seeds: int = 3
    """Seeds of each."""
    epochs: int = 3
    """Epochs of a student."""
    teacher_epochs: int = 12
    """Epochs of a teacher."""
    images: int = 5000
    """Training images."""
    quick: bool = False
    """Four students, two seeds, few images, in a folder of its own."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if arguments.quick:
        few = {"students": 4, "seeds": 2, "epochs": 1, "teacher_epochs": 1, "images": 256}
        arguments = dataclasses.replace(arguments, output=arguments.output / "quick", **few)
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int)}
    named = "-".join(str(settings[name]) for name in ("epochs", "teacher_epochs", "images"))
    output = arguments.output / named
    data = images_of(arguments)
    teachers = {name: teacher_of(name, data, output, arguments) for name in TEACHERS}
    family = dataclasses.replace(FAMILIES["nasbench201"](num_classes=10, channels=8, cells=1), input_size=SIDE)
    archs = distinct(family.space, arguments.students, np.random.default_rng(0))
    cells = list(itertools.product((*TEACHERS, "labels"), range(arguments.seeds), range(len(archs))))
    found = {}
    for taught_by, seed, index in track(cells, "Students"):
        path = output / "cells" / f"{taught_by}-{seed}-{index}.json"
        if not path.exists():
            score = score_of(taught_by, teachers.get(taught_by), seed, family, data, output, arguments)
            write_json(path, score([archs[index]])[0], indent=None)
        found[taught_by, seed, index] = 100 * json.loads(path.read_text())
    table = {
        name: np.array([[found[name, seed, i] for i in range(len(archs))] for seed in range(arguments.seeds)])
        for name in (*TEACHERS, "labels")
    }
    summary = {f"accuracy_{name}": accuracy_of(teacher, data) for name, teacher in teachers.items()}
    report(*compared(table, summary), arguments.json, settings=settings, threads=1)


def images_of(arguments: Arguments) -> ImageData:
    """The test images stand where a search would hold out some, to judge students by: nothing is chosen."""
    data = images(arguments.data, arguments.images)
    test = [data.test[index] for index in range(0, len(data.test), 20 if arguments.quick else 2)]
    return dataclasses.replace(data, holdout=test)


def teacher_of(name: str, data: ImageData, output: Path, arguments: Arguments) -> nn.Module:
    """A frozen teacher, trained if it is not there yet."""
    if name == "convolutions":
        model = network(100)
    else:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(100)
            model = MlpMixer(num_classes=10, img_size=SIDE, patch_size=2, num_blocks=4, embed_dim=96)
    config = settings_of(arguments.teacher_epochs, 0)
    if name == "patches":
        config = dataclasses.replace(config, opt="adamw", lr=4e-3, weight_decay=0.05)
    (trained,) = train_models([model], [SIDE], data, config, output / name, execution=EXECUTION, resume=True)
    return trained.eval().requires_grad_(False)


def settings_of(epochs: int, seed: int) -> LoopConfig:
    return LoopConfig(
        epochs=epochs,
        batch_size=64,
        lr=0.2,
        weight_decay=5e-4,
        warmup_epochs=min(1.0, epochs / 4),
        label_smoothing=0.0,
        seed=seed,
    )


def score_of(
    taught_by: str,
    teacher: nn.Module | None,
    seed: int,
    family: Family,
    data: ImageData,
    output: Path,
    arguments: Arguments,
) -> TrainedAlone:
    objective: Objective = LABELS_ALONE if teacher is None else AkdConfig().objective
    folder = output / "students" / f"{taught_by}-{seed}"
    config = settings_of(arguments.epochs, seed)
    return TrainedAlone(family, data, config, folder, EXECUTION, objective, teacher)


@torch.inference_mode()
def accuracy_of(model: nn.Module, data: ImageData) -> float:
    right = [
        (model(images).argmax(1) == labels).float() for images, labels in data.evaluation_batches(data.holdout, SIDE)
    ]
    return 100 * torch.cat(right).mean().item()


def compared(
    table: dict[str, np.ndarray], summary: dict[str, float]
) -> tuple[list[dict[str, object]], dict[str, float]]:
    """Rows "chosen by, taught by" of accuracies, and the agreements. Of `table`: accuracies [seeds, students]."""
    rows = []
    for chosen_by, taught_by in itertools.product(table, TEACHERS):
        values = chosen(table, chosen_by, taught_by)
        own = chosen(table, taught_by, taught_by)
        gains = [a - b for a, b in zip(own, values)]
        rows.append(
            {
                "chosen by": chosen_by,
                "taught by": taught_by,
                "seeds": len(values),
                "accuracy (%)": mean(values),
                "the own teacher's choice is better by": mean(gains),
                "standard error": float(np.std(gains, ddof=1) / len(gains) ** 0.5),
            }
        )
    generator, students = np.random.default_rng(0), table["labels"].shape[1]
    draws = [agreements(table, generator.integers(0, students, students)) for _ in range(1000)]
    for name, value in agreements(table, np.arange(students)).items():
        summary[name] = value
        summary[f"{name}_error"] = float(np.nanstd([draw[name] for draw in draws]))
    return rows, summary


def chosen(table: dict[str, np.ndarray], chosen_by: str, taught_by: str) -> list[float]:
    """The accuracy by `taught_by` of the student that is best by `chosen_by` with all other seeds, for each seed."""
    seeds = range(len(table["labels"]))
    best = [table[chosen_by][[s for s in seeds if s != seed]].mean(0).argmax() for seed in seeds]
    return [float(table[taught_by][seed, student]) for seed, student in zip(seeds, best)]


def agreements(table: dict[str, np.ndarray], students: np.ndarray) -> dict[str, float]:
    """Mean rank correlations of these students over pairs of different seeds."""

    def mean_over_pairs(first: str, second: str) -> float:
        pairs = itertools.permutations(range(len(table["labels"])), 2)
        return mean(spearmanr(table[first][a][students], table[second][b][students]).statistic for a, b in pairs)

    between_seeds = mean(mean_over_pairs(name, name) for name in TEACHERS)
    between_teachers = mean_over_pairs(*TEACHERS)
    with_labels = mean(mean_over_pairs(name, "labels") for name in TEACHERS)
    return {
        "agreement_seeds": between_seeds,
        "agreement_teachers": between_teachers,
        "agreement_labels": with_labels,
        "difference": between_seeds - between_teachers,
    }


if __name__ == "__main__":
    main()
