"""What customers with unequal classes and devices gain from each other without showing their images.

    python benchmarks/federated.py [--quick] [--json FILE] [--data ../shared/data --output runs/federated]

A simulation on CIFAR-10 at 16 pixels: each of ten customers has 300 images of --classes of the ten classes, another
draw for each, and a device that holds the network of six convolutions at its whole width, its half or its quarter.
In a round every customer trains for an epoch on its own images what the server sends, and the server averages.

alone      each trains a network of its device's width by itself, for as many steps
global     FedAvg: one network for all, of the width that the smallest device holds
sliced     HeteroFL (Diao et al., arXiv 2010.01264): each trains the leading slice that its device holds, each entry is
           averaged over those who hold it, and the loss does not see the classes that a customer has not
tickets    LotteryFL (Li et al., arXiv 2008.03371) on the whole width: a customer whose held-out accuracy is above a
           half prunes a fifth of what it has left, until --density is left, and goes on from the beginning's weights;
           its device stores the ticket sparse, and computes it dense

After `global` and `sliced`, `+ own` is what an epoch more on a customer's own images makes of it. BatchNorm follows
every convolution, so that HeteroFL's division by the width in training changes nothing and is left out; its statistics
are of each customer's own images. A round of `sliced` and `tickets` costs as much as one of `alone` for each customer;
`global` costs less for those of larger devices.

Judged by two accuracies on the 5,000 test images, means over customers: of `own` classes, with answers among these, and
of `all` ten classes. Standard errors are over seeds, which draw images, classes and weights. Nothing is chosen by the
test images. Every cell is kept in OUTPUT and not computed again. A quarter of an hour a seed on a loaded core.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import torch
import tyro
from cifar10_cnn import EXAMPLE, SIDE, network
from digits_mlp import mean_and_error
from report import report
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

from compress.tickets import rewound, weights_of
from compress.tickets.masks import density_of, magnitude_mask
from compress.transforms import fold
from supernet.calibration import calibrate
from supernet.families.traced.models import from_model
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.training.data import DataConfig, open_images
from supernet.training.federated import Update, average

CLASSES = 10
WIDTHS = (0.25, 0.5, 1.0)
ARMS = ("alone", "global", "global + own", "sliced", "sliced + own", "tickets")


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and cifar10/val.tar."""
    output: Path = Path("runs/federated")
    """Folder for what was computed before."""
    seeds: int = 3
    """Seeds."""
    customers: int = 10
    """Customers."""
    images: int = 300
    """Training images of each."""
    classes: int = 4
    """Classes of each."""
    rounds: int = 60
    """Rounds, an epoch of each customer's images in each."""
    lr: float = 0.05
    """Learning rate, of SGD with a momentum of 0.9."""
    density: float = 0.3
    """What tickets keep of the weights."""
    quick: bool = False
    """One seed, three customers, two rounds, in a folder of its own."""
    json: Path | None = None
    """File for the result."""


@dataclass(frozen=True)
class Customer:
    """One customer's images and device."""

    images: Tensor  # [N, 3, H, H]
    labels: Tensor  # [N]
    held_out: tuple[Tensor, Tensor]  # more images of its own, which it does not train on
    classes: Tensor  # [K]
    arch: Arch  # that its device holds


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if arguments.quick:
        few = {"seeds": 1, "customers": 3, "images": 64, "rounds": 2}
        arguments = dataclasses.replace(arguments, output=arguments.output / "quick", **few)
    arguments.output.mkdir(parents=True, exist_ok=True)
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float)}
    named = "-".join(str(value) for name, value in settings.items() if name not in ("seeds", "quick"))
    kept = arguments.output / f"cells-{named}.jsonl"
    cells = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    train, test = images_of(arguments.data)
    for seed in track(range(arguments.seeds), "Seeds"):
        done = {cell["arm"] for cell in cells if cell["seed"] == seed}
        if not done.issuperset(ARMS):
            for arm, models in arms_of(seed, train, arguments, done):
                cells.append({"seed": seed, "arm": arm, **judged(models, test)})
                with kept.open("a") as file:
                    file.write(json.dumps(cells[-1]) + "\n")
    report(*table(cells), arguments.json, settings=settings, threads=1)


def images_of(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """All training and test images, [N, 3, H, H], with labels."""
    root = folder / "cifar10"
    config = DataConfig("folder", str(root / "train.tar"), test_root=str(root / "val.tar"), holdout=0.02, crop_pct=1.0)
    data = open_images(config)
    parts = [zip(*data.evaluation_batches(part, SIDE)) for part in (data.train, data.test)]
    return tuple(tuple(map(torch.cat, part)) for part in parts)


def customers_of(seed: int, train: tuple[Tensor, Tensor], net: Supernet, arguments: Arguments) -> list[Customer]:
    """Disjoint draws of images, each of a few classes; the devices take turns."""
    images, labels = train
    generator = torch.Generator().manual_seed(seed)
    free = [
        (labels == label).nonzero().flatten()[torch.randperm(int((labels == label).sum()), generator=generator)]
        for label in range(CLASSES)
    ]
    customers = []
    each = -(-arguments.images * 6 // 5 // arguments.classes)  # a sixth is held out
    for index in range(arguments.customers):
        classes = torch.randperm(CLASSES, generator=generator)[: arguments.classes].sort().values
        own = []
        for label in classes.tolist():
            taken, free[label] = free[label][:each], free[label][each:]
            if len(taken) < each:
                raise SystemExit(f"error: class {label} has no {each} images left: ask for fewer customers or images")
            own.append(taken)
        drawn = torch.cat(own)[torch.randperm(each * arguments.classes, generator=generator)]
        mine, rest = drawn[: arguments.images], drawn[arguments.images :]
        arch = arch_of(net, WIDTHS[index % len(WIDTHS)])
        customers.append(Customer(images[mine], labels[mine], (images[rest], labels[rest]), classes, arch))
    return customers


def arch_of(net: Supernet, width: float) -> Arch:
    """All layers at this width; the choices' values are one for each of `WIDTHS`."""
    return Arch({name: choice.values[WIDTHS.index(width)] for name, choice in net.space.choices.items()})


def arms_of(
    seed: int, train: tuple[Tensor, Tensor], arguments: Arguments, done: set[str]
) -> Iterator[tuple[str, list[tuple[Customer, nn.Module]]]]:
    """For each arm that is not `done`, what it gives every customer."""
    family = from_model(lambda: network(seed), EXAMPLE, WIDTHS)

    def fresh() -> Supernet:
        return family.supernet(seed)

    customers = customers_of(seed, train, fresh(), arguments)
    if "alone" not in done:
        yield "alone", [(customer, alone(customer, fresh(), seed, arguments)) for customer in customers]
    for arm in ("global", "sliced"):
        if not done.issuperset((arm, f"{arm} + own")):
            net = fresh()
            smallest = arch_of(net, WIDTHS[0])
            archs = [smallest if arm == "global" else customer.arch for customer in customers]
            models = federated(net, customers, archs, seed, arguments, masked=arm == "sliced")
            if arm not in done:
                yield arm, list(zip(customers, copy.deepcopy(models)))
            for customer, model in zip(customers, models):
                an_epoch(model, customer, seed, arguments.rounds, arguments, masked=arm == "sliced")
                calibrate(model, [customer.images])
            yield f"{arm} + own", list(zip(customers, models))
    if "tickets" not in done:
        yield "tickets", list(zip(customers, tickets(fresh(), customers, seed, arguments)))


def alone(customer: Customer, net: Supernet, seed: int, arguments: Arguments) -> nn.Module:
    model = net.extract(customer.arch)
    for number in range(arguments.rounds):
        an_epoch(model, customer, seed, number, arguments)
    calibrate(model, [customer.images])
    return model


def federated(
    net: Supernet, customers: list[Customer], archs: list[Arch], seed: int, arguments: Arguments, masked: bool
) -> list[nn.Module]:
    """What the customers have of the network that they train together. With `masked` neither the loss nor the average
    sees classes that a customer has not."""
    for number in range(arguments.rounds):
        updates = []
        for customer, arch in zip(customers, archs):
            model = net.extract(arch)
            an_epoch(model, customer, seed, number, arguments, masked)
            held = rows_held(model, customer) if masked else {}
            updates.append(Update(arch, model, len(customer.labels), held))
        average(net, updates)
    models = [net.extract(arch) for arch in archs]
    for customer, model in zip(customers, models):
        calibrate(model, [customer.images])
    return models


def rows_held(model: nn.Module, customer: Customer) -> dict[str, Tensor]:
    """The classifier's rows of the customer's classes."""
    has = torch.zeros(CLASSES, dtype=torch.bool)
    has[customer.classes] = True
    name, layer = list(model.named_modules())[-1]
    return {
        f"{name}.{key}": has.view(-1, *[1] * (tensor.dim() - 1)).expand_as(tensor)
        for key, tensor in layer.named_parameters()
    }


def tickets(net: Supernet, customers: list[Customer], seed: int, arguments: Arguments) -> list[nn.Module]:
    """Each customer's ticket of the network that they train together."""
    arch = net.space.largest
    start = {name: tensor.clone() for name, tensor in net.extract(arch).state_dict().items()}
    masks = [
        {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in weights_of(net.extract(arch)).items()}
        for _ in customers
    ]
    for number in range(arguments.rounds):
        updates = []
        for index, customer in enumerate(customers):
            model = rewound(net.extract(arch), net.extract(arch).state_dict(), masks[index])
            calibrate(model, [customer.images])
            if hit_rate(model, *customer.held_out) > 0.5 and density_of(masks[index]) > arguments.density:
                left = max(0.8 * density_of(masks[index]), arguments.density)
                masks[index] = magnitude_mask(weights_of(net.extract(arch)), 1 - left, within=masks[index])
                model = rewound(net.extract(arch), start, masks[index])
            an_epoch(model, customer, seed, number, arguments)
            updates.append(Update(arch, fold(model), len(customer.labels), dict(masks[index])))
        average(net, updates)
    models = [fold(rewound(net.extract(arch), net.extract(arch).state_dict(), kept)) for kept in masks]
    for customer, model in zip(customers, models):
        calibrate(model, [customer.images])
    return models


def an_epoch(
    model: nn.Module, customer: Customer, seed: int, number: int, arguments: Arguments, masked: bool = False
) -> None:
    """Train the model in place on the customer's images in batches of 50, half of them mirrored."""
    generator = torch.Generator().manual_seed(1000 * seed + number)
    optimizer = torch.optim.SGD(model.parameters(), arguments.lr, momentum=0.9, weight_decay=5e-4)
    model.train()
    for chosen in torch.randperm(len(customer.labels), generator=generator).split(50):
        images, labels = customer.images[chosen], customer.labels[chosen]
        mirrored = torch.rand(len(chosen), 1, 1, 1, generator=generator) < 0.5
        logits = model(torch.where(mirrored, images.flip(-1), images))
        if masked:
            logits, labels = among(logits, customer.classes), torch.searchsorted(customer.classes, labels)
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    model.eval()


def among(logits: Tensor, classes: Tensor) -> Tensor:
    """The logits of these classes alone."""
    return logits[:, classes]


@torch.inference_mode()
def hit_rate(model: nn.Module, images: Tensor, labels: Tensor, classes: Tensor | None = None) -> float:
    """The part of the images that are told right, from 0 to 1; among `classes` if these are given."""
    logits = torch.cat([model.eval()(part) for part in images.split(500)])
    if classes is not None:
        logits, labels = among(logits, classes), torch.searchsorted(classes, labels)
    return (logits.argmax(1) == labels).float().mean().item()


def judged(models: list[tuple[Customer, nn.Module]], test: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Means over customers, in percent, and by how large their devices are; and the weights that are not 0."""
    images, labels = test
    own, everything, weights = [], [], []
    by_device: dict[str, list[float]] = {}
    for index, (customer, model) in enumerate(models):
        mine = torch.isin(labels, customer.classes)
        own.append(100 * hit_rate(model, images[mine], labels[mine], customer.classes))
        everything.append(100 * hit_rate(model, images, labels))
        weights.append(sum(int((weight != 0).sum()) for weight in weights_of(model).values()))
        by_device.setdefault(f"own_{WIDTHS[index % len(WIDTHS)]:g}", []).append(own[-1])
    found = {"own": mean(own), "all": mean(everything), "weights": mean(weights)}
    return found | {name: mean(values) for name, values in by_device.items()}


def table(cells: list[dict]) -> tuple[list[dict[str, object]], dict[str, float]]:
    """A row an arm, and by how much each is above `alone`, by seed."""
    rows, summary = [], {}
    found = {(cell["arm"], cell["seed"]): cell for cell in cells}
    seeds = sorted({cell["seed"] for cell in cells})
    for arm in ARMS:
        row: dict[str, object] = {"arm": arm, "seeds": len(seeds)}
        for key in ("own", "all"):
            value, error = mean_and_error([found[arm, seed][key] for seed in seeds])
            row |= {f"{key} (%)": value, f"{key} error": error}
        for width in WIDTHS:
            row[f"own at {width:g}"] = mean(found[arm, seed][f"own_{width:g}"] for seed in seeds)
        row["weights"] = mean(found[arm, seed]["weights"] for seed in seeds)
        rows.append(row)
        name = arm.replace(" + ", "_")
        summary[f"own_{name}"] = row["own (%)"]
        if arm != "alone":
            gain, error = mean_and_error([found[arm, seed]["own"] - found["alone", seed]["own"] for seed in seeds])
            summary |= {f"gain_{name}": gain, f"gain_{name}_error": error}
    return rows, summary


if __name__ == "__main__":
    main()
