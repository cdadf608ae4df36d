"""Which way of learning from other networks helps a small one? One table of those that are here.

    python benchmarks/distillation.py [--quick] [--json FILE] [--output runs/distillation]

The student is an MLP 64-12-12-10 on scikit-learn's digits, with 480 images to train on and all 1,317 others to test on,
by which nothing is chosen. In every row but those of ensembles it sees as many training images as by the labels alone:
100 epochs in batches of 60, which are 800 steps of Adam. What else is trained for it is in the column `others`, in
trainings of the same length. Rows:

labels              cross-entropy
distilled           KL from a teacher 64-300-100-10, temperature 4, beside the labels (Hinton et al., arXiv 1503.02531)
assistants          from a 64-40-40-10 that learnt from that teacher (Mirzadeh et al., arXiv 1902.03393)
born_again_1, _2    from a student that learnt from the labels, and from that one (Furlanello et al., arXiv 1805.04770)
mutual              two students, each from the other (Zhang et al., arXiv 1706.00384); the first is judged
hint, vid           the teacher's second hidden layer as well, by a companion (arXiv 1412.6550, arXiv 1904.05835)
aux, aux_self       a head after the first hidden layer; it learns from the last one as well (arXiv 1905.08094)
paths, cream        the student is the smallest subnet of a supernet, one random subnet a step: by labels alone, or
                    taught by the best so far (Cream, arXiv 2010.15821); the supernet has as many steps as a student,
                    all its subnets together
independent, adaptive, born_again_ensemble
                    three students with equal weights: each by labels, by the ensemble so far, or by its last member
                    (AdaNAS, arXiv 1903.06236), one candidate an iteration
wide                one MLP 64-30-30-10, with as many parameters and multiplications as three students

Reported are the mean and standard error over seeds, the gain over `labels` seed by seed, of ensembles that over
`wide` too, and the parameters. With five seeds a gain below 2.8 of its standard errors is not distinguishable from none
(Student's t, 5 %), and 15 rows are compared with the first: about one is beyond that by chance. `ms` is the time of one
image on this machine in turns, for ensembles beside the wide network; on a busy machine it says little. Goes on where
it stopped when started again with the same --output. Ten minutes of one core.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import tyro
from digits_mlp import CONFIG, EXECUTION, accuracy, digits, mean_and_error
from report import report
from rich.progress import track
from torch import nn

from distill.ensemble import Ensemble
from distill.objective import Objective
from search.growing_ensemble import BY_TEACHER
from supernet import Family, SearchSpace
from supernet.artifacts.atomic import write_json
from supernet.space import Arch
from supernet.tasks import Classification
from supernet.training.cohort import LABELS_ALONE, train_models
from supernet.training.data.tensors import TensorData
from supernet.training.loop.config import LoopConfig
from supernet.training.step import TrainConfig
from supernet.training.train import train

TASK = Classification(num_classes=10, label_smoothing=0.0)
STUDENT, ASSISTANT, TEACHER, WIDE = (12, 12), (40, 40), (300, 100), (30, 30)
TAUGHT = Objective(labels=0.5, kl=0.5, temperature=4.0)
ROWS = (
    "labels",
    "distilled",
    "assistants",
    "born_again_1",
    "born_again_2",
    "mutual",
    "hint",
    "vid",
    "aux",
    "aux_self",
    "paths",
    "cream",
    "independent",
    "adaptive",
    "born_again_ensemble",
    "wide",
)
OTHERS = {"distilled": 1, "assistants": 2, "born_again_1": 1, "born_again_2": 2, "mutual": 1, "hint": 1, "vid": 1}
EPOCHS = 100
ENSEMBLES = ("independent", "adaptive", "born_again_ensemble")


@dataclass(frozen=True)
class Arguments:
    output: Path = Path("runs/distillation")
    """Folder for what was trained."""
    seeds: int = 5
    """Seeds."""
    quick: bool = False
    """Two seeds and four epochs, in a folder of its own: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    epochs, seeds, output = EPOCHS, arguments.seeds, arguments.output
    if arguments.quick:
        epochs, seeds, output = 4, 2, output / "quick"
    found: dict[tuple[str, int], float] = {}
    for seed in track(range(seeds), "Seeds"):
        networks = Networks(seed, epochs, output / str(seed))
        for row in ROWS:
            path = output / str(seed) / f"{row}.json"
            if not path.exists():
                result = accuracy(networks.of(row), networks.data.test)
                write_json(path, result, indent=None)
            found[row, seed] = json.loads(path.read_text())
    rows, summary = compared(found, seeds)
    settings = {"epochs": epochs, "seeds": seeds}
    report(rows, summary, arguments.json, settings=settings, threads=1)


def few_digits() -> TensorData:
    """480 digits to train on; the others are for testing. What is held out is looked at by nobody."""
    data = digits()
    images, labels = data.train
    test = tuple(torch.cat([own[480:], other]) for own, other in zip(data.train, data.test))
    return TensorData((images[:480], labels[:480]), (images[480:490], labels[480:490]), test, data.classes)


def mlp(widths: tuple[int, ...], seed: int) -> nn.Sequential:
    """Its hidden layers are modules 1 and 3."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return _mlp(widths)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    sizes = (64, *widths)
    hidden = [layer for i, o in itertools.pairwise(sizes) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(sizes[-1], 10))


@dataclass
class Networks:
    """All networks of one seed; what several rows need is trained once."""

    seed: int
    epochs: int
    folder: Path

    @cached_property
    def data(self) -> TensorData:
        return few_digits()

    def of(self, row: str) -> nn.Module:
        rows: Mapping[str, Callable[[], nn.Module]] = {
            "labels": lambda: self.alone,
            "distilled": lambda: self.train("distilled", STUDENT, TAUGHT, self.teacher),
            "assistants": lambda: self.train("assisted", STUDENT, TAUGHT, self.assistant),
            "born_again_1": lambda: self.reborn,
            "born_again_2": lambda: self.train("reborn_2", STUDENT, TAUGHT, self.reborn),
            "mutual": self.mutual,
            "hint": lambda: self.by_features("hint"),
            "vid": lambda: self.by_features("vid"),
            "aux": lambda: self.train("aux", STUDENT, Objective(auxiliary=0.3, auxiliary_layers=("1",))),
            "aux_self": lambda: self.train(
                "aux_self",
                STUDENT,
                Objective(auxiliary=0.3, self_distillation=0.3, temperature=4.0, auxiliary_layers=("1",)),
            ),
            "paths": lambda: self.subnet("spos"),
            "cream": lambda: self.subnet("cream"),
            "wide": lambda: self.train("wide", WIDE),
        }
        return rows[row]() if row in rows else self.ensemble(row)

    @cached_property
    def alone(self) -> nn.Module:
        return self.train("alone", STUDENT)

    @cached_property
    def teacher(self) -> nn.Module:
        return self.train("teacher", TEACHER)

    @cached_property
    def assistant(self) -> nn.Module:
        return self.train("assistant", ASSISTANT, TAUGHT, self.teacher)

    @cached_property
    def reborn(self) -> nn.Module:
        return self.train("reborn", STUDENT, TAUGHT, self.alone)

    def by_features(self, loss: str) -> nn.Module:
        objective = dataclasses.replace(TAUGHT, layers=(("3", "3"),), **{loss: 0.1})
        return self.train(loss, STUDENT, objective, self.teacher)

    def mutual(self) -> nn.Module:
        students = [mlp(STUDENT, seed) for seed in (self.seed, 500 + self.seed)]
        return self._trained("mutual", students, Objective(mutual=1.0), None)[0]

    def ensemble(self, kind: str) -> Ensemble:
        """The first member is the student of `labels`; the others begin with weights of their own."""
        members = [self.alone]
        while len(members) < 3:
            teacher = {"independent": None, "adaptive": Ensemble(members), "born_again_ensemble": members[-1]}[kind]
            objective = LABELS_ALONE if teacher is None else BY_TEACHER
            name = f"{kind}-{len(members)}"
            members.append(self.train(name, STUDENT, objective, teacher, 1000 * len(members) + self.seed))
        return Ensemble(members).eval()

    def subnet(self, method: str) -> nn.Module:
        """The smallest of a supernet that trains one random subnet a step."""
        space = SearchSpace({"first": (12, 20, 30, 40), "second": (12, 20, 30, 40)})
        family = Family(space, build, num_classes=10, task=TASK, inputs=pixels)
        config = TrainConfig(
            **{name: getattr(self.config, name) for name in self.config.__dataclass_fields__},
            method=method,
            random_subnets=1,
            board_epoch=self.epochs // 4,
            matching_steps=20,
        )
        folder = self.folder / method
        net = train(family, family.supernet(self.seed), self.data, config, folder, EXECUTION, resume=True)
        return net.eval().extract(space.smallest)

    @property
    def config(self) -> LoopConfig:
        return dataclasses.replace(CONFIG, lr=3e-3, epochs=self.epochs, seed=self.seed)

    def train(
        self,
        name: str,
        widths: tuple[int, ...],
        objective: Objective = LABELS_ALONE,
        teacher: nn.Module | None = None,
        seed: int | None = None,
    ) -> nn.Module:
        model = mlp(widths, self.seed if seed is None else seed)
        return self._trained(name, [model], objective, teacher)[0]

    def _trained(
        self, name: str, models: list[nn.Module], objective: Objective, teacher: nn.Module | None
    ) -> list[nn.Module]:
        if teacher is not None:
            teacher = teacher.eval().requires_grad_(False)
        options = {"task": TASK, "execution": EXECUTION, "resume": True}
        sizes = [None] * len(models)
        trained = train_models(models, sizes, self.data, self.config, self.folder / name, objective, teacher, **options)
        return [model.eval() for model in trained]


def build(arch: Arch) -> nn.Module:
    return _mlp((arch["first"], arch["second"]))


def pixels(arch: Arch) -> tuple[torch.Tensor]:
    return (torch.empty(1, 64, device="meta"),)


def compared(found: dict[tuple[str, int], float], seeds: int) -> tuple[list[dict[str, object]], dict[str, float]]:
    kinds = {"student": _mlp(STUDENT), "ensemble": Ensemble(map(_mlp, [STUDENT] * 3)), "wide": _mlp(WIDE)}
    times = milliseconds(kinds)
    parameters = {kind: sum(p.numel() for p in model.parameters()) for kind, model in kinds.items()}
    rows, summary = [], {}
    for row in ROWS:
        right = np.array([found[row, seed] for seed in range(seeds)])
        gain = mean_and_error(right - [found["labels", seed] for seed in range(seeds)])
        over_wide = mean_and_error(right - [found["wide", seed] for seed in range(seeds)])
        is_ensemble = row in ENSEMBLES
        kind = "wide" if row == "wide" else "ensemble" if is_ensemble else "student"
        value, error = mean_and_error(right)
        rows.append(
            {
                "row": row,
                "accuracy (%)": value,
                "standard error": error,
                "gain": gain[0],
                "error of the gain": gain[1],
                "gain over wide": over_wide[0] if is_ensemble else "-",
                "its error": over_wide[1] if is_ensemble else "-",
                "others": OTHERS.get(row, 0),
                "parameters": parameters[kind],
                "ms": times[kind],
            }
        )
        summary[f"accuracy_{row}"] = value
        if row != "labels":
            summary |= zip((f"gain_{row}", f"gain_{row}_error"), gain)
        if is_ensemble:
            summary |= zip((f"gain_{row}_over_wide", f"gain_{row}_over_wide_error"), over_wide)
    return rows, summary


@torch.inference_mode()
def milliseconds(models: Mapping[str, nn.Module], turns: int = 200) -> dict[str, float]:
    """Medians, in turns, of one image."""
    image, times = torch.zeros(1, 64), {name: [] for name in models}
    for _ in range(turns):
        for name, model in models.items():
            begun = time.perf_counter()
            model(image)
            times[name].append(1000 * (time.perf_counter() - begun))
    return {name: float(np.median(those)) for name, those in times.items()}


if __name__ == "__main__":
    main()
