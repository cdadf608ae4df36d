"""Which way of learning from other networks helps a small one? One table of those that are here.

    python benchmarks/distillation.py [--quick] [--json FILE] [--data ../shared/data --output runs/distillation]

The student has six convolutions of 8, 16 and 32 channels. It learns CIFAR-10 at 16 pixels from 5,000 images, and is
tested on the 5,000 of the test, by which nothing is chosen. In every row but those of ensembles it sees as many
training images as by the labels alone, in as many epochs of SGD. What else is trained for it is in the column `others`,
in trainings of the same length. Rows:

labels              cross-entropy
distilled           KL from a teacher four times as wide, temperature 4, beside the labels (Hinton et al., arXiv
                    1503.02531)
assistants          from one twice as wide that learnt from that teacher (Mirzadeh et al., arXiv 1902.03393)
born_again_1, _2    from a student that learnt from the labels, and from that one (Furlanello et al., arXiv 1805.04770)
mutual              two students, each from the other (Zhang et al., arXiv 1706.00384); the first is judged
hint, vid           the teacher's features at the second resolution as well, by a companion (arXiv 1412.6550, arXiv
                    1904.05835)
aux, aux_self       a head at the second resolution; it learns from the last one as well (arXiv 1905.08094)
paths, cream        the student is the smallest subnet of a supernet, one random subnet a step: by labels alone, or
                    taught by the best so far (Cream, arXiv 2010.15821); the supernet has as many steps as a student,
                    all its subnets together
independent, adaptive, born_again_ensemble
                    three students with equal weights: each by labels, by the ensemble so far, or by its last member
                    (AdaNAS, arXiv 1903.06236), one candidate an iteration
wide, as_slow       one network by labels, with as many parameters as three students, and the widest one that takes no
                    longer than they do: file of ONNX, one image, one thread, in turns

Reported are the mean and standard error over seeds, the gain over `labels` seed by seed, of ensembles that over
`wide` and `as_slow` too, parameters, and milliseconds. Of five seeds a gain below 2.8 of its standard errors is not
distinguishable from none (Student's t, 5 %), and 16 rows are compared with the first: about one is beyond that by
chance. Goes on where it stopped when started again with the same --output. Half an hour of one core.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count, takewhile
from pathlib import Path

import numpy as np
import torch
import tyro
from cifar10_cnn import EXAMPLE, SIDE, convolutions, images, network
from digits_mlp import mean_and_error
from report import report
from rich.progress import track
from torch import nn

from distill.ensemble import Ensemble
from distill.objective import Objective
from predictors import Device
from predictors.measuring.runtimes import onnx_timer
from search.growing_ensemble import BY_TEACHER
from supernet import Family, SearchSpace
from supernet.artifacts.atomic import write_json
from supernet.artifacts.export import export_onnx
from supernet.evaluation import accuracy
from supernet.space import Arch
from supernet.training.cohort import LABELS_ALONE, train_models
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.step import TrainConfig
from supernet.training.train import train

Widths = tuple[int, int, int]

STUDENT, WIDE, ASSISTANT, TEACHER = (8, 16, 32), (14, 28, 56), (16, 32, 64), (32, 64, 128)
LAYER = "12"  # the last one of the second resolution
TAUGHT = Objective(labels=0.5, kl=0.5, temperature=4.0)
EXECUTION = Execution("cpu", eval_epochs=0, log_steps=50, keep_checkpoints=1)
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
    "as_slow",
)
OTHERS = {"distilled": 1, "assistants": 2, "born_again_1": 1, "born_again_2": 2, "mutual": 1, "hint": 1, "vid": 1}
ENSEMBLES = ("independent", "adaptive", "born_again_ensemble")


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and cifar10/val.tar."""
    output: Path = Path("runs/distillation")
    """Folder for what was trained."""
    seeds: int = 5
    """Seeds."""
    images: int = 5000
    """Training images."""
    epochs: int = 8
    """Epochs of every network."""
    rounds: int = 300
    """Turns of each file when it is timed."""
    quick: bool = False
    """One seed, one epoch, few images, in a folder of its own: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        few = {"seeds": 1, "images": 256, "epochs": 1, "rounds": 20}
        measure(dataclasses.replace(arguments, output=Path(folder), **few))


def measure(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    output = arguments.output / f"{arguments.images}-{arguments.epochs}"
    output.mkdir(parents=True, exist_ok=True)
    known = output / "as_slow.json"
    if not known.exists():
        write_json(known, widest_as_slow(arguments.rounds))
    as_slow = tuple(json.loads(known.read_text()))
    data = images(arguments.data, arguments.images)
    found: dict[tuple[str, int], float] = {}
    for seed in track(range(arguments.seeds), "Seeds"):
        networks = Networks(seed, arguments.epochs, data, output / str(seed), as_slow)
        for row in ROWS:
            path = output / str(seed) / f"{row}.json"
            if not path.exists():
                right = accuracy(networks.of(row), data.evaluation_batches(data.test, SIDE))
                write_json(path, 100 * right, indent=None)
            found[row, seed] = json.loads(path.read_text())
    settings = {"epochs": arguments.epochs, "images": arguments.images, "as_slow": as_slow}
    rows, summary = compared(found, arguments, as_slow)
    report(rows, summary, arguments.json, settings=settings, threads=1)


def widest_as_slow(rounds: int) -> Widths:
    """The widest network that takes no longer than three students, each in turns with them; of twice their widths at
    least, and then by a channel of the first resolution more at a time."""
    three = Ensemble(map(convolutions, [STUDENT] * 3))

    def is_as_fast(widths: Widths) -> bool:
        own, other = milliseconds([convolutions(widths), three], rounds)
        return own <= other

    return list(takewhile(is_as_fast, ((width, 2 * width, 4 * width) for width in count(STUDENT[0]))))[-1]


def milliseconds(models: Sequence[nn.Module], rounds: int) -> list[float]:
    """Medians of one image as files of ONNX, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        timers = []
        for index, model in enumerate(models):
            path = Path(folder) / f"{index}.onnx"
            export_onnx(model.eval(), path, EXAMPLE.shape[1:])
            timers.append(onnx_timer(path, Device("here", "onnxruntime"), (EXAMPLE,)))
        turns = [[timer(2)[1] for timer in timers] for _ in range(rounds)]
    return np.median(turns, axis=0).tolist()


@dataclass
class Networks:
    """All networks of one seed; what several rows need is trained once."""

    seed: int
    epochs: int
    data: ImageData
    folder: Path
    as_slow: Widths

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
            "aux": lambda: self.train("aux", STUDENT, Objective(auxiliary=0.3, auxiliary_layers=(LAYER,))),
            "aux_self": lambda: self.train(
                "aux_self",
                STUDENT,
                Objective(auxiliary=0.3, self_distillation=0.3, temperature=4.0, auxiliary_layers=(LAYER,)),
            ),
            "paths": lambda: self.subnet("spos"),
            "cream": lambda: self.subnet("cream"),
            "wide": lambda: self.train("wide", WIDE),
            "as_slow": lambda: self.train("as_slow", self.as_slow),
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
        objective = dataclasses.replace(TAUGHT, layers=((LAYER, LAYER),), **{loss: 0.1})
        return self.train(loss, STUDENT, objective, self.teacher)

    def mutual(self) -> nn.Module:
        students = [network(seed, STUDENT) for seed in (self.seed, 500 + self.seed)]
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
        widths = {f"width.{i}": (w, 3 * w // 2, 2 * w) for i, w in enumerate(STUDENT)}
        family = Family(SearchSpace(widths), build, num_classes=10, input_size=SIDE)
        config = TrainConfig(
            **{name: getattr(self.config, name) for name in self.config.__dataclass_fields__},
            method=method,
            random_subnets=1,
            board_epoch=self.epochs // 4,
            matching_steps=20,
        )
        folder = self.folder / method
        net = train(family, family.supernet(self.seed), self.data, config, folder, EXECUTION, resume=True)
        return net.eval().extract(family.space.smallest)

    @property
    def config(self) -> LoopConfig:
        return LoopConfig(
            epochs=self.epochs,
            batch_size=64,
            lr=0.2,
            weight_decay=5e-4,
            warmup_epochs=min(1.0, self.epochs / 4),
            label_smoothing=0.0,
            seed=self.seed,
        )

    def train(
        self,
        name: str,
        widths: Widths,
        objective: Objective = LABELS_ALONE,
        teacher: nn.Module | None = None,
        seed: int | None = None,
    ) -> nn.Module:
        model = network(self.seed if seed is None else seed, widths)
        return self._trained(name, [model], objective, teacher)[0]

    def _trained(
        self, name: str, models: list[nn.Module], objective: Objective, teacher: nn.Module | None
    ) -> list[nn.Module]:
        if teacher is not None:
            teacher = teacher.eval().requires_grad_(False)
        sizes, folder = [SIDE] * len(models), self.folder / name
        options = {"execution": EXECUTION, "resume": True}
        trained = train_models(models, sizes, self.data, self.config, folder, objective, teacher, **options)
        return [model.eval() for model in trained]


def build(arch: Arch) -> nn.Module:
    return convolutions([arch[f"width.{i}"] for i in range(len(STUDENT))])


def compared(
    found: Mapping[tuple[str, int], float], arguments: Arguments, as_slow: Widths
) -> tuple[list[dict[str, object]], dict[str, float]]:
    three = Ensemble(map(convolutions, [STUDENT] * 3))
    kinds = {"student": convolutions(STUDENT), "ensemble": three, "wide": convolutions(WIDE)}
    kinds["as_slow"] = convolutions(as_slow)
    times = dict(zip(kinds, milliseconds(list(kinds.values()), arguments.rounds)))
    parameters = {kind: sum(p.numel() for p in model.parameters()) for kind, model in kinds.items()}

    def gain(row: str, other: str) -> tuple[float, float]:
        return mean_and_error([found[row, seed] - found[other, seed] for seed in range(arguments.seeds)])

    rows, summary = [], {}
    for row in ROWS:
        value, error = mean_and_error([found[row, seed] for seed in range(arguments.seeds)])
        kind = row if row in kinds else "ensemble" if row in ENSEMBLES else "student"
        compared_with = ("labels", "wide", "as_slow") if row in ENSEMBLES else ("labels",)
        gains = {other: gain(row, other) for other in compared_with if other != row}
        own = {"row": row, "accuracy (%)": value, "standard error": error}
        for other in ("labels", "wide", "as_slow"):
            own[f"over {other}"] = "{:.2f} ± {:.2f}".format(*gains[other]) if other in gains else "-"
        rows.append({**own, "others": OTHERS.get(row, 0), "parameters": parameters[kind], "ms": times[kind]})
        summary[f"accuracy_{row}"] = value
        for other, figures in gains.items():
            name = f"gain_{row}" if other == "labels" else f"gain_{row}_over_{other}"
            summary |= zip((name, f"{name}_error"), figures)
    return rows, summary


if __name__ == "__main__":
    main()
