"""What network augmentation gains for a tiny model, and what it costs: beside plain training, dropout and a teacher.

    python benchmarks/netaug.py [--quick] [--json FILE] [--budget gpu --data ../shared/data --output runs/netaug]
    python benchmarks/netaug.py --budget gpu --only netaug --seeds 1    # a part, for several processes; then all again

Trains a tiny network on CIFAR-10 for the same number of epochs and several seeds: as it is (baseline), with dropout
before the classifier, with a teacher (kd), with auxiliary classifiers that learn from the labels (aux) and from the
network itself (aux_self), with a second task (multi_task: animal or vehicle, which follows from the class), with NetAug
(Cai et al., arXiv 2110.08890), and with NetAug and the teacher. The teacher is a larger network from the same budget,
on which NetAug should not help: the paper's own control. All begin with the same weights, a seed at a time, and see the
same images. Reported are the accuracy on the 5,000 test images with the standard error over seeds, that on training
images without augmentation (a tiny model underfits: it is hardly higher), the gain over the baseline by seed, and the
time of a training step over the baseline's, measured in turn, with where it goes.

Goes on where it stopped when started again with the same --output. The budget cpu is meant for 2 cores and two hours,
shared out between two processes of one thread (OMP_NUM_THREADS=1), of which one is told --only netaug; gpu for a GPU
and a few hours. --quick shows within a minute that it works, not how well.
"""

from __future__ import annotations

import dataclasses
import fcntl
import itertools
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors.torch
import torch
import tyro
from report import report
from rich.progress import track
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Subset

from distill.objective import Objective, objective_losses
from netaug.augmentation import Augmentation, augment
from netaug.method import NetAug
from netaug.training import NetAugConfig, initial_supernet, train_netaug
from supernet.artifacts.atomic import write_atomically, write_json
from supernet.evaluation import accuracy
from supernet.families import FAMILIES, Family
from supernet.space import Arch
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, ImageData, open_images
from supernet.training.data.batch import on
from supernet.training.data.second_labels import SecondLabels
from supernet.training.execution import Execution, pick_device
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.optimizer import make_optimizer
from supernet.training.methods.sampling import Learner
from supernet.training.step import TrainConfig, TrainStep, task_of


@dataclass(frozen=True)
class Network:
    """An end of a search space; `timm` is that of a single model of timm's."""

    space: str
    end: Literal["smallest", "largest"] = "smallest"
    options: Mapping[str, object] = field(default_factory=dict)  # of the space

    def open(self, resolution: int) -> tuple[Family, Arch]:
        """The space, and the network for images of `resolution` pixels a side."""
        options = {**self.options, "input_size": resolution} if self.space == "timm" else self.options
        family = FAMILIES[self.space](num_classes=10, **options)
        arch = getattr(family.space, self.end)
        return family, family.space.validate({**arch, "resolution": resolution})


@dataclass(frozen=True)
class Budget:
    """What is trained, and how much."""

    tiny: Network
    large: Network  # the teacher and the control
    resolution: int  # pixels a side
    images: int | None  # for training; None for all
    epochs: int
    batch_size: int
    seeds: int
    control_seeds: int
    workers: int
    timed_steps: int
    amp: str = "none"


SMALLEST, LARGEST = Network("mobilenet_v3_micro"), Network("mobilenet_v3_micro", "largest")
V2_035, V2_140 = (Network("timm", options={"name": f"mobilenetv2_{width}"}) for width in ("035", "140"))
BUDGETS = {
    "quick": Budget(SMALLEST, LARGEST, 24, 512, 2, 64, 1, 1, 0, 3),
    "cpu": Budget(SMALLEST, LARGEST, 24, 20000, 25, 128, 3, 1, 0, 40),
    "gpu": Budget(V2_035, V2_140, 96, None, 60, 256, 5, 3, 12, 50, "bf16"),
}
TINY = ("baseline", "dropout", "kd", "aux", "aux_self", "multi_task", "netaug", "netaug_kd")
CONTROL = ("baseline", "netaug")
AUTHORS = NetAugConfig(widths=(1.0, 1.8, 2.6), expansions=(1.0, 1.6, 2.2, 2.8))
KD = Objective(labels=0.5, kl=0.5, temperature=4.0)
OBJECTIVES = {
    "aux": Objective(auxiliary=0.3),
    "aux_self": Objective(auxiliary=0.3, self_distillation=0.3, temperature=4.0),
    "multi_task": Objective(second_task=0.3),
}
VEHICLES = ("airplane", "automobile", "ship", "truck")


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and cifar10/val.tar."""
    budget: str = "cpu"
    """cpu or gpu."""
    only: tuple[str, ...] = TINY
    """Methods to train."""
    seeds: tuple[int, ...] = ()
    """Seeds to train; by default as many as the budget says."""
    epochs: int | None = None
    """Epochs instead of the budget's."""
    images: int | None = None
    """Training images instead of the budget's."""
    device: str = "auto"
    """cpu, cuda, cuda:N or auto."""
    output: Path = Path("runs/netaug")
    """Folder for the runs and their results."""
    quick: bool = False
    """Few images and epochs: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


@dataclass(frozen=True)
class Run:
    """One training."""

    model: Literal["tiny", "large"]
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.method}-{self.seed}"


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    name = "quick" if arguments.quick else arguments.budget
    if name not in BUDGETS:
        raise SystemExit(f"error: there is no budget {name!r}; the budgets are {', '.join(BUDGETS)}")
    changes = {option: value for option in ("epochs", "images") if (value := getattr(arguments, option)) is not None}
    budget, output = dataclasses.replace(BUDGETS[name], **changes), arguments.output / name
    same_budget(budget, output)
    runs = [
        Run(model, method, seed)
        for model, methods, count in (
            ("tiny", TINY, budget.seeds),
            ("large", CONTROL, budget.control_seeds),
        )
        for seed, method in itertools.product(range(count), methods)
        if method in arguments.only and (not arguments.seeds or seed in arguments.seeds)
    ]
    teacher = Run("large", "baseline", 0)
    if any(run.method.endswith("kd") for run in runs):
        runs = [teacher, *(run for run in runs if run != teacher)]
    results = {run: result_of(run, teacher, budget, output, arguments) for run in track(runs, "Training")}
    augmentation = augmentation_of(budget.tiny, budget)
    step_ms, macs_ratio = step_times(budget, augmentation, arguments), macs_ratios(augmentation)
    summary = summary_of(results) | time_ratios(step_ms)
    device = pick_device(arguments.device)
    details = {"budget": {"name": name, **dataclasses.asdict(budget)}, "step_ms": step_ms, "macs_ratio": macs_ratio}
    if device.type == "cuda":
        details["gpu"] = torch.cuda.get_device_name(device)
    report(rows_of(results), summary, arguments.json, **details)
    print(f"A step of the tiny model in ms: {json.dumps(step_ms)}")
    print(f"MACs of the network beside it over its own: {json.dumps(macs_ratio)}")


def same_budget(budget: Budget, output: Path) -> None:
    """Write the budget beside the results, or end the program if those that are there were made with another."""
    path, content = output / "budget.json", json.dumps(dataclasses.asdict(budget)) + "\n"
    if path.exists() and path.read_text() != content:
        raise SystemExit(f"error: {output} holds results of another budget: {path.read_text().strip()}")
    with write_atomically(path) as temporary:
        temporary.write_text(content)


def result_of(run: Run, teacher: Run, budget: Budget, output: Path, arguments: Arguments) -> dict[str, float]:
    """Accuracies of `run`, which is trained if it is not there yet; kept in result.json.

    Waits for another process that trains it.
    """
    directory = output / run.name
    directory.mkdir(exist_ok=True)
    path = directory / "result.json"
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            result = trained_and_judged(run, teacher, budget, output, arguments)
            write_json(path, result, indent=None)
    return json.loads(path.read_text())


def trained_and_judged(run: Run, teacher: Run, budget: Budget, output: Path, arguments: Arguments) -> dict[str, float]:
    directory = output / run.name
    data = images_of(budget, arguments)
    taught = None
    if run.method.endswith("kd"):
        taught = create(budget.large, budget)
        taught.load_state_dict(safetensors.torch.load_file(output / teacher.name / "model.safetensors"))
    model = trained(run, taught, budget, data, directory, arguments.device).cpu()
    with write_atomically(directory / "model.safetensors") as temporary:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        temporary.write_bytes(safetensors.torch.save(state))
    model = model.to(pick_device(arguments.device))
    parts = {"test": data.test, "train": Subset(data.train, range(min(5000, len(data.train))))}
    return {
        f"{name}_accuracy": accuracy(model, data.evaluation_batches(part, budget.resolution))
        for name, part in parts.items()
    }


def images_of(budget: Budget, arguments: Arguments) -> ImageData:
    folder = arguments.data / "cifar10"
    config = DataConfig(
        dataset="folder",
        root=str(folder / "train.tar"),
        test_root=str(folder / "val.tar"),
        holdout=0.02,  # unused: nothing is chosen by looking
        scale=(0.4, 1.0),
        color_jitter=0.0,
        crop_pct=1.0,
    )
    data = open_images(config, workers=budget.workers)
    if arguments.quick:
        data = dataclasses.replace(data, test=Subset(data.test, range(0, len(data.test), 10)))
    if budget.images:  # so few that they may stay decoded in memory
        data = dataclasses.replace(data, train=[data.train[index] for index in range(budget.images)])
    return data


def with_kinds(data: ImageData) -> ImageData:
    """`data` with whether each training image is of a vehicle as the labels of a second task."""
    kinds = np.array([int(name in VEHICLES) for name in data.classes])
    labels = kinds[[label for _, label in data.train]]
    return dataclasses.replace(data, second=SecondLabels(labels, ("animal", "vehicle")))


def create(network: Network, budget: Budget, seed: int = 0, drop_rate: float = 0.0) -> nn.Module:
    family, arch = network.open(budget.resolution)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return family.build(arch, drop_rate=drop_rate)


def trained(
    run: Run,
    teacher: nn.Module | None,
    budget: Budget,
    data: ImageData,
    directory: Path,
    device: str,
) -> nn.Module:
    config, executed = settings(budget, run.seed), execution(budget, device)
    network = getattr(budget, run.model)
    model = create(network, budget, run.seed, 0.2 if run.method == "dropout" else 0.0)
    objective = KD if teacher is not None else OBJECTIVES.get(run.method, Objective())
    if objective.second_task:
        data = with_kinds(data)
    if not run.method.startswith("netaug"):
        sizes = [budget.resolution]
        (trained,) = train_models(
            [model], sizes, data, config, directory, objective, teacher, execution=executed, resume=True
        )
        return trained
    return train_netaug(
        augmentation_of(network, budget),
        model,
        data,
        config,
        directory,
        AUTHORS,
        objective=objective,
        teacher=teacher,
        execution=executed,
        resume=True,
    )


def augmentation_of(network: Network, budget: Budget) -> Augmentation:
    family, arch = network.open(budget.resolution)
    return augment(family, arch=arch, widths=AUTHORS.widths, expansions=AUTHORS.expansions)


def settings(budget: Budget, seed: int) -> LoopConfig:
    return LoopConfig(
        epochs=budget.epochs,
        batch_size=budget.batch_size,
        lr=0.2,
        weight_decay=4e-5,
        warmup_epochs=budget.epochs / 30,
        seed=seed,
    )


def execution(budget: Budget, device: str) -> Execution:
    return Execution(device, budget.amp, eval_epochs=0, log_steps=50, keep_checkpoints=1)


def rows_of(results: dict[Run, dict[str, float]]) -> list[dict[str, object]]:
    rows = []
    for model, method in dict.fromkeys((run.model, run.method) for run in results):
        those = [result for run, result in results.items() if (run.model, run.method) == (model, method)]
        mean, *error = mean_and_error([100 * result["test_accuracy"] for result in those])
        rows.append(
            {
                "model": model,
                "method": method,
                "seeds": len(those),
                "test_accuracy": mean,
                "standard_error": error[0] if error else "-",
                "train_accuracy": float(np.mean([100 * result["train_accuracy"] for result in those])),
            }
        )
    return rows


def summary_of(results: dict[Run, dict[str, float]]) -> dict[str, float]:
    """Accuracies in percent, and the means over seeds of what they gain over the baseline's, with standard errors."""
    summary = {f"accuracy_{row['method']}": row["test_accuracy"] for row in rows_of(results) if row["model"] == "tiny"}
    for model, suffix, methods in (("tiny", "", TINY[1:]), ("large", "_control", CONTROL[1:])):
        for method in methods:
            gains = [
                100 * (result["test_accuracy"] - results[base]["test_accuracy"])
                for run, result in results.items()
                if (run.model, run.method) == (model, method)
                and (base := dataclasses.replace(run, method="baseline")) in results
            ]
            if gains:
                summary |= zip((f"gain_{method}{suffix}", f"gain_{method}{suffix}_error"), mean_and_error(gains))
    return summary


def mean_and_error(values: list[float]) -> tuple[float, ...]:
    """The mean and, of several values, its standard error."""
    mean = float(np.mean(values))
    return (mean, float(np.std(values, ddof=1) / np.sqrt(len(values)))) if len(values) > 1 else (mean,)


def time_ratios(step_ms: dict[str, float]) -> dict[str, float]:
    """A step's time over a plain one's, the images being there; of NetAug the mean of both halves of the training, and
    also where the same process loads them."""
    netaug = (step_ms["netaug_wide"] + step_ms["netaug_narrow"]) / 2
    return {
        "time_ratio_kd": step_ms["kd"] / step_ms["plain"],
        "time_ratio_netaug": netaug / step_ms["plain"],
        "time_ratio_netaug_with_loading": (step_ms["loading"] + netaug) / (step_ms["loading"] + step_ms["plain"]),
    }


def step_times(budget: Budget, augmentation: Augmentation, arguments: Arguments) -> dict[str, float]:
    """Where the time of a training goes: medians in ms of steps of the tiny model in turn, on random images.

    loading          a batch of training images, by one process
    plain            the stock model
    kd               it with a teacher
    tiny_in_supernet it alone, on views of the wider weights
    netaug_wide      both networks, before the middle of the training
    netaug_narrow    both, after it
    sort_channels    once an epoch
    """
    device = pick_device(arguments.device)
    config = TrainConfig(**dataclasses.asdict(settings(budget, 0)))
    plain, teacher = (
        create(network, budget).to(device, memory_format=torch.channels_last) for network in (budget.tiny, budget.large)
    )
    plain.train()
    teacher.eval()
    net = initial_supernet(augmentation, create(budget.tiny, budget), 0)
    net = net.to(device, memory_format=torch.channels_last).train()
    method = NetAug(augmentation.space, [inside.channels for inside in augmentation.inside])
    executed = execution(budget, arguments.device)
    family = augmentation.family
    train_step = TrainStep(net, task_of(family, config), config, execution=executed)
    draw = np.random.default_rng(0)
    for _ in range(10 * budget.timed_steps):  # as in a training, where the layers of most networks have been made
        net._subnet(augmentation.space.sample(draw))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(budget.batch_size, 3, budget.resolution, budget.resolution, generator=generator)
    images = images.to(device, memory_format=torch.channels_last)
    labels = torch.randint(10, (budget.batch_size,), generator=generator).to(device)
    optimizers = {id(network): make_optimizer(network, config, 100)[0] for network in (plain, net)}

    def step(network: nn.Module, backward: Callable[[], object]) -> None:
        optimizers[id(network)].zero_grad()
        backward()
        optimizers[id(network)].step()

    loss = partial(F.cross_entropy, target=labels, label_smoothing=config.label_smoothing)

    def alone(objective: Objective, teacher: nn.Module | None) -> Callable[[], None]:
        def backward() -> None:
            with executed.autocast(device):
                losses = objective_losses(objective, plain, (images,), loss, teacher)
            losses.total.backward()

        return lambda: step(plain, backward)

    def in_supernet(*archs: Arch) -> Callable[[], None]:
        learners = [Learner(arch, regularised=True) for arch in archs]
        return lambda: step(net, lambda: train_step((images, labels), learners))

    data = images_of(dataclasses.replace(budget, workers=0), arguments)
    batches = data.training_batches(budget.resolution, budget.batch_size, 0, range(budget.timed_steps + 1))
    times: dict[str, list[float]] = {}
    for _ in range(budget.timed_steps + 1):
        turns = {
            "loading": lambda: on(torch.device("cpu"), next(batches)),
            "plain": alone(Objective(), None),
            "kd": alone(KD, teacher),
            "tiny_in_supernet": in_supernet(method.tiny),
            "netaug_wide": in_supernet(method.tiny, method.space.sample(draw)),
            "netaug_narrow": in_supernet(method.tiny, method.narrow.sample(draw)),
            "sort_channels": lambda: method.start_epoch(net, [], 0.0),
        }
        for name, run in turns.items():
            times.setdefault(name, []).append(milliseconds(run, device))
    return {name: float(np.median(those[1:])) for name, those in times.items()}


def macs_ratios(augmentation: Augmentation) -> dict[str, float]:
    """Mean MACs of the network that a step trains beside the tiny one, over the tiny one's, in both halves."""
    method, macs, draw = NetAug(augmentation.space), augmentation.family.macs, np.random.default_rng(0)
    return {
        name: float(np.mean([macs(space.sample(draw)) for _ in range(20)])) / macs(method.tiny)
        for name, space in (("wide", method.space), ("narrow", method.narrow))
    }


def milliseconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - begun) * 1e3


if __name__ == "__main__":
    main()
