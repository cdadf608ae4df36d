"""How much better the best of many looks than it is, by how many were compared and on how many images.

    python benchmarks/overestimation.py [--quick] [--json FILE] [--data ../shared/data]

Candidates are networks of NAS-Bench-Macro (Su et al., CVPR 2021), whose mean test accuracy on CIFAR-10 over three
trainings counts as the true one: drawn from all of the table, or from its best tenth, as those of a search that has
been going on are. Whether a network is right about an image is drawn: an image is as hard for all of them as it is for
one in so far as predictions agree, by a Gaussian copula with one correlation. That is measured where predictions are
real: on subnets of a supernet of the digits. The best on the images is picked, and judged anew on as many fresh ones.

overestimation  its accuracy on the images that it was picked by, less the true one, in percentage points
confirmation    its accuracy on the fresh images, less the true one
regret          the true accuracy of the best candidate, less that of the one that was picked
holds_picked    how often the interval of 95 % of the accuracy that it was picked by holds the true one
holds_fresh     the same of the accuracy on fresh images
marked          how often the candidate that is truly the best is among those that `search.certainty` cannot tell apart
                from the one that was picked
marked_percent  how many of the candidates are

In the rows `digits` nothing is drawn but images and candidates: those subnets are picked from by some images that
training did not see, and what they get right of all others is the truth. Every figure is a mean over trials, with its
standard error. Minutes on one core, most of them for the digits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tyro
from published import published_accuracy
from report import report
from rich.progress import track
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm

from search.certainty import certainty, wilson
from search.scores.accuracy import EvaluationBatches, SupernetScore
from supernet.artifacts.runs import Run, load_run, run_job
from supernet.training.data.batch import joined
from supernet.training.recipes import digits

# n candidates, N images

PERCENT = ("overestimation", "confirmation", "regret")
SHARES = ("holds_picked", "holds_fresh", "marked")


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with accuracy/nasbench_macro_cifar10.csv.gz."""
    images: tuple[int, ...] = (61, 500, 2000, 10000)
    """Images that candidates are picked by."""
    candidates: tuple[int, ...] = (10, 100, 1000)
    """Candidates; from the best tenth those that it has enough for."""
    trials: int = 200
    """Draws of candidates and images, a tenth of them where both are many."""
    run: Path | None = None
    """Folder of a training run of the digits (supernet train --recipe digits); by default one is trained here."""
    epochs: int = 3
    """Epochs of the latter."""
    subnets: int = 60
    """Subnets of the digits' supernet."""
    quick: bool = False
    """Fewer of all."""
    json: Path | None = None
    """File for the result."""


QUICK = {"images": (61, 500), "candidates": (10, 100), "trials": 20, "epochs": 1, "subnets": 12}


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, **QUICK)
    generator = np.random.default_rng(0)
    right = predictions(arguments)
    correlation = tetrachoric(right, generator)
    table = published_accuracy("nasbench_macro", arguments.data)
    true = np.sort(np.array(list(table.values())) / 100)
    rows = list(real_rows(right, arguments.trials, generator))
    for name, pool in (("all", true), ("best tenth", true[-len(true) // 10 :])):
        for count in arguments.candidates:
            if count <= len(pool):
                rows += drawn_rows(name, pool, count, arguments, correlation, generator)
    report(rows, dict(summary(rows, correlation)), arguments.json, subnets=len(right), judging_images=right.shape[1])


def predictions(arguments: Arguments) -> np.ndarray:
    """Whether subnets of a digits' supernet are right [n, N] about held-out and test images, random subnets with
    BatchNorm statistics of their own."""
    with TemporaryDirectory() as folder:
        run = load_run(arguments.run) if arguments.run else trained(arguments.epochs, Path(folder) / "run")
    data, family = run.data, run.family

    def batches(resolution: int) -> EvaluationBatches:
        parts = (data.evaluation_batches(part, resolution) for part in (data.holdout, data.test))
        judging = joined([batch for part in parts for batch in part])
        return EvaluationBatches(joined(list(data.calibration_batches(resolution, 500, 0))), judging)

    known = {size: batches(size) for size in family.space.choices["resolution"].values}
    score = SupernetScore(run.net, family.task, known.__getitem__, family.resolution)
    archs = list(dict.fromkeys(family.space.sample(np.random.default_rng(seed)) for seed in range(arguments.subnets)))
    found = dict(track(score.judged(archs), "Judging subnets of the digits", total=len(archs)))
    return np.stack([found[index].per_example for index in range(len(archs))])


def trained(epochs: int, folder: Path) -> Run:
    job = digits()
    train = dataclasses.replace(job.train, epochs=epochs, warmup_epochs=epochs / 4)
    return run_job(
        dataclasses.replace(job, train=train, execution=dataclasses.replace(job.execution, eval_epochs=0)), folder
    )


def tetrachoric(right: np.ndarray, generator: np.random.Generator, pairs: int = 100) -> float:
    """The correlation of two Gaussian variables that, below a threshold each, are both below as often as two networks
    are both right [n, N]; its mean over random pairs, among those that are neither always right nor wrong."""
    right = right[(right.mean(axis=1) > 0.01) & (right.mean(axis=1) < 0.99)]
    found = []
    for _ in range(pairs):
        first, second = right[generator.choice(len(right), 2, replace=False)]
        ends, both = norm.ppf([first.mean(), second.mean()]), (first * second).mean()

        def excess(correlation: float, ends=ends, both=both) -> float:
            return multivariate_normal.cdf(ends, cov=[[1, correlation], [correlation, 1]]) - both

        inside = excess(-0.99) < 0 < excess(0.99)
        found.append(brentq(excess, -0.99, 0.99, xtol=1e-3) if inside else 0.99)
    return float(np.mean(found))


def draw(true: np.ndarray, images: int, correlation: float, generator: np.random.Generator) -> np.ndarray:
    """Whether networks of these accuracies [n] are right about random images [n, N]."""
    common = generator.standard_normal(images, dtype=np.float32)
    own = generator.standard_normal((len(true), images), dtype=np.float32)
    latent = np.float32(np.sqrt(correlation)) * common + np.float32(np.sqrt(1 - correlation)) * own
    return latent < norm.ppf(true)[:, None].astype(np.float32)


def drawn_rows(
    name: str,
    pool: np.ndarray,
    count: int,
    arguments: Arguments,
    correlation: float,
    generator: np.random.Generator,
) -> Iterator[dict[str, object]]:
    """A row for each number of images that the best of `count` candidates from `pool` is picked by."""
    for images in arguments.images:
        trials = arguments.trials if count * images <= 10**6 else max(arguments.trials // 10, 2)
        found = []
        for _ in track(range(trials), f"{count} of {name}, {images} images"):
            true = generator.permutation(generator.choice(pool, count, replace=False))
            right = draw(true, images, correlation, generator)
            measured = right.mean(axis=1)
            best = int(measured.argmax())
            fresh = draw(true[best : best + 1], images, correlation, generator)[0].mean()
            found.append(outcome(right, measured, true, best, float(fresh), images))
        yield row(f"NAS-Bench-Macro, {name}", count, images, found)


def real_rows(right: np.ndarray, trials: int, generator: np.random.Generator) -> Iterator[dict[str, object]]:
    """The same of subnets whose predictions are known [n, N], for a tenth of the images and for a third: what is right
    about all other images is true, of which as many are fresh; standard errors are those of trials alone."""
    for share in (10, 3):
        images = right.shape[1] // share
        found = []
        for _ in range(trials):
            order = generator.permutation(right.shape[1])
            picking, others = right[:, order[:images]], right[:, order[images:]]
            measured, true = picking.mean(axis=1), others.mean(axis=1)
            best = int(measured.argmax())
            fresh = float(others[best, :images].mean())
            found.append(outcome(picking, measured, true, best, fresh, images))
        yield row("digits, subnets", len(right), images, found)


def outcome(
    right: np.ndarray, measured: np.ndarray, true: np.ndarray, best: int, fresh: float, images: int
) -> dict[str, float]:
    """What one trial shows, of candidates that are `right` [n, N], `best` of which was picked."""
    as_good = certainty(right.astype(float), best, len(true)).as_good
    intervals = [wilson(float(rate), images) for rate in (measured[best], fresh)]
    picked, confirmed = (low <= true[best] <= high for low, high in intervals)
    return {
        "overestimation": 100 * float(measured[best] - true[best]),
        "confirmation": 100 * float(fresh - true[best]),
        "regret": 100 * float(true.max() - true[best]),
        "holds_picked": float(picked),
        "holds_fresh": float(confirmed),
        "marked": float(as_good[int(true.argmax())]),
        "marked_percent": 100 * float(np.mean(as_good)),
    }


def row(source: str, count: int, images: int, found: Sequence[Mapping[str, float]]) -> dict[str, object]:
    means: dict[str, object] = {}
    for name in found[0]:
        values = [each[name] for each in found]
        means[name] = float(np.mean(values))
        if name in PERCENT:
            means[f"{name}_error"] = float(np.std(values, ddof=1) / np.sqrt(len(values)))
    return {"source": source, "candidates": count, "images": images, "trials": len(found), **means}


def summary(rows: Sequence[Mapping], correlation: float) -> Iterator[tuple[str, float]]:
    """The overestimation of each row, the mean confirmation with its standard error over rows, and how often intervals
    hold and marks are right, means over rows."""
    yield "correlation_of_predictions", correlation
    for each in rows:
        name = each["source"].removeprefix("NAS-Bench-Macro, ").replace(", ", "_").replace(" ", "_")
        yield f"overestimation_{name}_{each['candidates']}_{each['images']}", each["overestimation"]
    confirmations = [each["confirmation"] for each in rows]
    yield "confirmation", float(np.mean(confirmations))
    yield "confirmation_error", float(np.sqrt(np.sum([each["confirmation_error"] ** 2 for each in rows])) / len(rows))
    for name in SHARES:
        yield name, float(np.mean([each[name] for each in rows]))


if __name__ == "__main__":
    main()
