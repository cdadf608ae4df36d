"""How well training-free scores rank networks whose accuracy after training is known.

    python benchmarks/zero_cost.py                  # 200 architectures a space: an hour on 2 cores
    python benchmarks/zero_cost.py --quick          # 6 of them, smaller batches: less than a minute
    python benchmarks/zero_cost.py --minutes 4      # in pieces: goes on where the last run with the same cache ended

Random architectures of NAS-Bench-201 and NAS-Bench-Macro, as their builders initialise them, are scored on 64 CIFAR-10
images; `ntk` and `regions` are TE-NAS's measurements of small networks in their place. Every score is signed so that
higher is better. The table gives the rank correlations with the published test accuracies (after 200 epochs; the mean
of three networks), beside those of the papers, and the seconds that one architecture takes.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from report import report
from rich.progress import track
from scipy.stats import kendalltau, spearmanr
from timm.data import create_dataset, create_transform
from torch import Tensor

from search import zero_cost
from search.ensemble import majority_vote, mean_rank
from search.ntk import condition_number
from search.proxies import PROXIES
from search.te_nas import PUBLISHED, Proxies, Settings, condition_numbers, region_counts
from search.training_free import build_untrained
from supernet.families import FAMILIES, Family, nas_bench_201, nas_bench_macro
from supernet.space import Arch

# n architectures, N images

CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
SPEARMAN = {  # Abdelfattah et al., arXiv 2101.08134, all of NAS-Bench-201
    "grad_norm": 0.594,
    "snip": 0.596,
    "grasp": 0.514,
    "fisher": 0.360,
    "synflow": 0.737,
    "jacob_cov": 0.731,
    "vote": 0.817,
}
KENDALL = {"ntk": 0.42, "regions": 0.50, "te_nas": 0.64}  # Chen et al., arXiv 2102.11535; for the sign see above


@dataclass(frozen=True)
class Arguments:
    quick: bool = False
    """Fewer architectures and images."""
    json: Path | None = None
    """Write the result here."""
    archs: int = 200
    """Random architectures of each space."""
    timed: int = 3
    """Architectures of NAS-Bench-201 whose scoring is timed."""
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and accuracy/SPACE_cifar10.csv.gz."""
    cache: Path | None = None
    """JSON lines with the scores so far; scores that are there are not computed again."""
    minutes: float = math.inf
    """Stop scoring after this time and report what is there."""


class Task(NamedTuple):
    """One space with everything its scores need."""

    space: str
    family: Family
    from_string: Callable[[str], Arch]
    proxies: Proxies
    settings: Settings
    accuracy: dict[str, float]  # of the sampled architectures by name, in percent


class Images(NamedTuple):
    batch: Tensor  # of the scores that see one batch
    labels: Tensor
    pool: Tensor  # what TE-NAS draws from


Scorer = Callable[[Task, Arch, Images], float]


def of_network(score: Callable[..., float]) -> Scorer:
    return lambda task, arch, images: score(build_untrained(task.family, arch, 0), images.batch, images.labels)


def ntk(task: Task, arch: Arch, images: Images) -> float:
    return -float(condition_numbers(task.proxies.ntk(arch), images.pool, task.settings, 0).mean())


def ntk_frozen(task: Task, arch: Arch, images: Images) -> float:
    return ntk(task._replace(settings=replace(task.settings, batch_norm="frozen")), arch, images)


def regions(task: Task, arch: Arch, images: Images) -> float:
    proxies = task.proxies
    return float(region_counts(proxies.regions(arch), proxies.patch, images.pool, task.settings, 0).mean())


SCORERS: dict[str, Scorer] = {
    "macs": lambda task, arch, images: float(task.family.macs(arch)),
    "parameters": lambda task, arch, images: float(task.family.parameters(arch)),
    "regions": regions,
    "ntk_frozen": ntk_frozen,
    **{name: of_network(score) for name, score in zero_cost.SCORES.items() if name != "grasp"},
    "ntk": ntk,
    "grasp": of_network(zero_cost.grasp),
}
ENSEMBLES: dict[str, tuple[Callable[..., np.ndarray], tuple[str, ...]]] = {
    "vote": (majority_vote, ("synflow", "jacob_cov", "snip")),
    "te_nas": (mean_rank, ("ntk", "regions")),
    "te_nas_frozen": (mean_rank, ("ntk_frozen", "regions")),
}


def main(arguments: Annotated[Arguments, tyro.conf.arg(name="")]) -> None:
    count = 6 if arguments.quick else arguments.archs
    images = read_images(arguments.data, 16 if arguments.quick else 64, 512)
    settings = replace(PUBLISHED, repeats=1, ntk_images=16) if arguments.quick else PUBLISHED
    tasks = [
        read_task("nasbench201", nas_bench_201.from_string, arguments.data, settings, count),
        # large networks: a smaller kernel, and frozen statistics alone
        read_task(
            "nasbench_macro", nas_bench_macro.from_string, arguments.data, replace(settings, ntk_images=16), count
        ),
    ]
    values = read_cache(arguments.cache)
    score_all(tasks, images, values, arguments.cache, arguments.minutes)
    seconds = time_scores(tasks[0], images, 1 if arguments.quick else arguments.timed)
    speedup = frozen_speedup(tasks[0], images.pool[:32], 1 if arguments.quick else arguments.timed)
    rows = [row for task in tasks for row in correlations(task, values, seconds)]
    summary = {"ntk_frozen_speedup": speedup, **agreement(tasks[0], values)}
    for row in rows:
        prefix = "" if row["space"] == "nasbench201" else f"{row['space']}_"
        summary |= {f"{kind}_{prefix}{row['score']}": row[kind] for kind in ("spearman", "kendall")}
    report(rows, summary, arguments.json, images=len(images.batch), settings=vars(settings), notes=NOTES)


def read_task(space: str, from_string: Callable[[str], Arch], data: Path, settings: Settings, count: int) -> Task:
    with gzip.open(data / "accuracy" / f"{space}_cifar10.csv.gz", "rt") as file:
        table = {
            row.pop("arch"): float(np.mean([float(v) for column, v in row.items() if "accuracy" in column]))
            for row in csv.DictReader(file)
        }
    names = sorted(table)
    chosen = np.random.default_rng(0).choice(len(names), min(count, len(names)), replace=False)
    accuracy = {names[index]: table[names[index]] for index in chosen}
    return Task(space, FAMILIES[space](num_classes=10), from_string, PROXIES[space](10, 3), settings, accuracy)


def read_images(data: Path, batch: int, pool: int) -> Images:
    """Random training images as evaluation sees them."""
    dataset = create_dataset("", root=str(data / "cifar10" / "train.tar"))
    dataset.transform = create_transform(32, crop_pct=1.0, mean=CIFAR10_MEAN, std=CIFAR10_STD)

    def draw(count: int) -> tuple[Tensor, Tensor]:
        chosen = np.random.default_rng([0, 1]).choice(len(dataset), count, replace=False)
        images, labels = zip(*(dataset[index] for index in chosen))
        return torch.stack(images), torch.tensor(labels)

    return Images(*draw(batch), draw(pool)[0])


Values = dict[tuple[str, str, str], float]  # of space, score and architecture


def read_cache(path: Path | None) -> Values:
    if path is None or not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["space"], line["score"], line["arch"]): line["value"] for line in lines}


def score_all(tasks: Sequence[Task], images: Images, values: Values, cache: Path | None, minutes: float) -> None:
    """Fill `values` with what is missing, the fast scores first, for at most `minutes`."""
    end = time.monotonic() + 60 * minutes
    missing = [
        (task, name, arch)
        for name in SCORERS
        for task in tasks
        for arch in task.accuracy
        if (task.space, name, arch) not in values and not (name == "ntk" and task.space == "nasbench_macro")
    ]
    for task, name, arch in track(missing, "scoring", disable=not missing):
        if time.monotonic() > end:
            break
        value = SCORERS[name](task, task.from_string(arch), images)
        values[task.space, name, arch] = value
        if cache:
            with cache.open("a") as file:
                file.write(json.dumps({"space": task.space, "score": name, "arch": arch, "value": value}) + "\n")


def correlations(task: Task, values: Values, seconds: dict[str, float]) -> Iterator[dict[str, object]]:
    """One row for each score, over the architectures for which it is known."""
    for name in (*SCORERS, *ENSEMBLES):
        combine, members = ENSEMBLES.get(name, (lambda scores: scores[0], (name,)))
        known = [arch for arch in task.accuracy if all((task.space, m, arch) in values for m in members)]
        if len(known) < 3:
            continue
        scores = combine(np.array([[values[task.space, m, arch] for arch in known] for m in members]))
        accuracy = [task.accuracy[arch] for arch in known]
        published = task.space == "nasbench201"
        yield {
            "space": task.space,
            "score": name,
            "archs": len(known),
            "spearman": float(spearmanr(scores, accuracy).statistic),
            "published_spearman": SPEARMAN.get(name, "") if published else "",
            "kendall": float(kendalltau(scores, accuracy).statistic),
            "published_kendall": KENDALL.get(name, "") if published else "",
            "seconds": sum(seconds[member] for member in members) if published else "",
        }


def agreement(task: Task, values: Values) -> dict[str, float]:
    """Rank agreement of the condition numbers with batch statistics and with frozen ones."""
    both = [
        (values[task.space, "ntk", arch], values[task.space, "ntk_frozen", arch])
        for arch in task.accuracy
        if (task.space, "ntk", arch) in values and (task.space, "ntk_frozen", arch) in values
    ]
    if len(both) < 3:
        return {}
    return {
        "spearman_ntk_batch_and_frozen": float(spearmanr(*zip(*both)).statistic),
        "kendall_ntk_batch_and_frozen": float(kendalltau(*zip(*both)).statistic),
        "archs_ntk_batch_and_frozen": len(both),
    }


def time_scores(task: Task, images: Images, count: int) -> dict[str, float]:
    """Seconds an architecture for each score, building the network included."""
    archs = [task.from_string(name) for name in list(task.accuracy)[:count]]
    return {name: _mean_seconds([lambda a=a, s=s: s(task, a, images) for a in archs]) for name, s in SCORERS.items()}


def frozen_speedup(task: Task, images: Tensor, count: int) -> float:
    """Seconds of the per-sample loop over seconds with frozen statistics, on the spaces' own networks."""
    networks = [build_untrained(task.family, task.from_string(name), 0) for name in list(task.accuracy)[:count]]
    loop, frozen = (
        _mean_seconds([lambda n=n, m=mode: condition_number(n, images, m) for n in networks])
        for mode in ("batch", "frozen")
    )
    return loop / frozen


def _mean_seconds(calls: Sequence[Callable[[], object]]) -> float:
    calls[0]()  # warm up
    start = time.perf_counter()
    for call in calls:
        call()
    return (time.perf_counter() - start) / len(calls)


NOTES: list[str] = []


if __name__ == "__main__":
    tyro.cli(main)
