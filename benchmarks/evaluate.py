"""How much faster a search evaluates a population than a loop that takes one architecture after the other.

    python benchmarks/evaluate.py [--quick] [--json FILE] [--data ../shared/data]

Trains a small supernet of `mobilenet_v3_micro` on a part of CIFAR-10 and lets evolution search it, for accuracy and
MACs (NSGA-II). All populations that it asks for are evaluated again in their order, as a search does, which remembers
activations of generations before; no architecture comes twice. Those of the 1st, 5th and 20th generation are also
evaluated by a loop that takes every architecture by itself: build and extract, recalibrate, evaluate. Both run on the
same supernet, in channels last, on the same batches, in one process, one after the other; the largest difference of any
logit is reported. For comparison, the loop is also timed with torch's `update_bn`, which averages the statistics that
batches have in train mode: faster, but not those of all images.

What populations without repetition have in common bounds the speed-up. By the processor time of every block, one
thread, it is 1.5, 2.0 and 2.5 in the three generations of this search with 2 GiB to remember; 2.2 and 3.1 in the later
two if the output of every block was kept, which takes 100 GB. BatchNorm is not folded into convolutions here, which
moves logits by 3e-6 to 1e-5; whole searches fold it.

Then whole searches of every seed take turns, generation by generation: evolution by the loop with `update_bn`, as
users write it, and others with races, recalibration on few images, and bfloat16 where the CPU has instructions for it
(`paired_searches.py`). These are evolution again, which tells what cheaper evaluations gain alone, and `bayesian`,
which evaluates less. `speedup_to_hypervolume` is how many times longer the loop took to the hypervolume that it has in
the end than evolution did, `speedup_to_hypervolume_bayesian` than `bayesian`: of the architectures
that each took for its front, by exact accuracies, of all images that judge and in single precision, which no time is
counted for. What strategies think about is counted. Networks are in channels last in all of them.

A quarter of an hour on 2 cores for the generations, and some ten minutes of processor time for each seed of the
searches; `--parts` measures one part alone. The supernet, the populations and the searches are kept in
OUTPUT, and go on there if they were stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from paired_searches import Searches, paired
from report import report
from rich.progress import track
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from search.evaluator import evaluate_here
from search.history import History
from search.loop import ask_and_tell
from search.prefix import trie
from search.run import ACCURACY, make_problem
from search.scores.accuracy import SupernetAccuracy
from search.scores.judges import RunBatches
from search.settings import SearchJob
from search.strategies import make_strategy
from supernet import Arch, Supernet
from supernet.artifacts.runs import Run, load_run, run_job
from supernet.artifacts.settings import note_settings
from supernet.calibration import calibrate
from supernet.training.data.batch import on, split
from supernet.training.execution import Execution
from supernet.training.recipes import cifar10

GENERATIONS = (1, 5, 20)
Recalibrate = Callable[[nn.Module, Sequence[Tensor]], object]
MEMORY_BYTES = 2**31  # for what is remembered, as in a search


@dataclass(frozen=True)
class Arguments:
    population: int = 100
    """Architectures in a generation."""
    images: int = 2000
    """Images for calibration, and as many for evaluation."""
    search_images: int = 250
    """The same for the search that leads to the populations."""
    batch_size: int = 500
    """Images that a subnet runs on at a time."""
    strategy: str = "evolution"
    """One of search.strategies.STRATEGIES. A single-objective one searches for accuracy with half the most MACs."""
    epochs: int = 3
    """Passes over 5,000 images."""
    parts: tuple[Literal["generations", "hypervolume"], ...] = ("generations", "hypervolume")
    """What is measured."""
    searches: Searches = field(default_factory=Searches)
    seeds: int = 3
    """Of the searches."""
    seed: int = 0
    """All that is random follows from it."""
    data: Path = Path("../shared/data")
    """Folder with cifar10/."""
    output: Path = Path("runs/evaluate")
    """Folder for the supernet and the populations."""
    quick: bool = False
    """20 architectures, 250 images, and two generations of a single seed, in a folder of its own."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    searches = Searches(population=16, generations=2, judges=500, calibration=250, few=100)
    quick = dataclasses.replace(
        arguments, population=20, images=250, search_images=100, epochs=1, searches=searches, seeds=1
    )
    with tempfile.TemporaryDirectory() as folder:
        measure(dataclasses.replace(quick, output=Path(folder)))


def measure(arguments: Arguments) -> None:
    trained = train(arguments)
    rows: list[dict[str, float]] = []
    summary: dict[str, float] = {}
    if "generations" in arguments.parts:
        rows += compare(trained, populations(trained, arguments), arguments)
        summary |= {f"speedup_generation_{row['generation']}": row["speed-up"] for row in rows}
        summary["max_logit_difference"] = max(row["largest difference of a logit"] for row in rows)
    searched = []
    if "hypervolume" in arguments.parts:
        for seed in range(arguments.seed, arguments.seed + arguments.seeds):
            searched += paired(trained, arguments.searches, seed, searches_folder(arguments, seed))
        summary |= speedups(searched, arguments.searches)
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | str)}
    settings |= {"parts": arguments.parts, "searches": dataclasses.asdict(arguments.searches)}
    report(searched, {})
    report(rows, summary, arguments.json, settings=settings, threads=torch.get_num_threads(), searches=searched)


def searches_folder(arguments: Arguments, seed: int) -> Path:
    """Where the searches with a seed are kept; ValueError if it holds searches with other settings."""
    folder = arguments.output / "searches" / str(seed)
    note_settings(folder / "settings.json", arguments.searches)
    return folder


def speedups(rows: Sequence[dict[str, float]], searches: Searches) -> dict[str, float]:
    """How many times longer the loop takes to the hypervolume that it has in the end than each strategy, evolution
    without its name, with the standard error over seeds, and by processor time. 0 where that was not reached."""
    last = [row for row in rows if row["generation"] == searches.generations]
    summary: dict[str, float] = {}
    for name in searches.strategies:
        suffix = "" if name == "evolution" else f"_{name}"
        for clock, unit in (("s", ""), ("CPU s", "_cpu")):
            found = np.array([row[f"loop ({clock})"] / (row[f"{name} ({clock})"] or np.inf) for row in last])
            summary[f"speedup_to_hypervolume{suffix}{unit}"] = float(found.mean())
            if len(found) > 1:
                error = found.std(ddof=1) / len(found) ** 0.5
                summary[f"speedup_to_hypervolume{suffix}{unit}_standard_error"] = float(error)
    return summary


def train(arguments: Arguments) -> Run:
    job = cifar10()
    images = arguments.data / "cifar10"
    data = dataclasses.replace(
        job.data,
        root=str(images / "train.tar"),
        test_root=str(images / "val.tar"),
        holdout=0.9,
        num_classes=10,
    )
    settings = dataclasses.replace(
        job.train, epochs=arguments.epochs, warmup_epochs=0.5, batch_size=64, lr=0.4, ema_decay=None
    )
    execution = Execution(workers=0, eval_epochs=0)
    directory = arguments.output / "run"
    if (directory / "supernet.safetensors").exists():
        return load_run(directory)
    job = dataclasses.replace(job, data=data, train=settings, execution=execution)
    return run_job(job, directory, resume=directory.exists())


def populations(trained: Run, arguments: Arguments) -> list[list[Arch]]:
    """What the strategy asks for, generation by generation."""
    limits = (
        {} if arguments.strategy == "evolution" else {"macs": trained.family.macs(trained.family.space.largest) / 2}
    )
    job = SearchJob(arguments.strategy, limits=limits, population=arguments.population, seed=arguments.seed)
    problem = make_problem(job, trained.family, {})
    images = RunBatches(trained.data, arguments.search_images, arguments.seed, arguments.search_images).images
    score = SupernetAccuracy(trained.net, images, trained.family.resolution, arguments.batch_size)
    strategy = make_strategy(job.strategy, problem, job.seed, job.generation_size)
    count = GENERATIONS[-1] * job.generation_size
    with History(arguments.output / f"{job.strategy}.jsonl", problem.describe(), resume=True) as history:
        found = ask_and_tell(problem, strategy, evaluate_here({ACCURACY: score}), count, history=history).evaluations
    return [[e.arch for e in found if e.generation == index] for index in range(GENERATIONS[-1])]


def compare(trained: Run, asked: Sequence[Sequence[Arch]], arguments: Arguments) -> Iterator[dict[str, float]]:
    net = trained.net.to(memory_format=torch.channels_last)
    images = RunBatches(trained.data, arguments.images, arguments.seed, arguments.images).images
    batches = {}
    for size in {trained.family.resolution(arch) for arch in itertools.chain(*asked)}:
        parts = (split(part, arguments.batch_size) for part in images(size)[:2])
        batches[size] = trie.Batches(*([on(torch.device("cpu"), batch) for batch in part] for part in parts))
    remembered = trie.Remembered(MEMORY_BYTES)

    def in_search(archs: Sequence[Arch]) -> dict[int, Tensor]:
        return dict(trie.outputs(net, archs, batches.__getitem__, trained.family.resolution, remembered))

    def one_by_one(archs: Sequence[Arch], recalibrate: Recalibrate = calibrate) -> dict[int, Tensor]:
        own = (batches[trained.family.resolution(arch)] for arch in archs)
        return {i: naive(net, arch, images, recalibrate) for i, (arch, images) in enumerate(zip(archs, own))}

    def in_train_mode(archs: Sequence[Arch]) -> dict[int, Tensor]:
        return one_by_one(archs, lambda model, images: update_bn(images, model))

    for generation, archs in enumerate(track(asked, "Evaluating generations"), start=1):
        searched, searched_s = timed(in_search, archs)
        if generation not in GENERATIONS:
            continue
        alone, alone_s = timed(one_by_one, archs)
        _, in_train_mode_s = timed(in_train_mode, archs)
        yield {
            "generation": generation,
            "architectures": len(archs),
            "one by one (s)": alone_s,
            "one by one, update_bn (s)": in_train_mode_s,
            "in a search (s)": searched_s,
            "speed-up": alone_s / searched_s,
            "largest difference of a logit": max(float((alone[i] - searched[i]).abs().max()) for i in alone),
            "largest logit": max(float(logits.abs().max()) for logits in alone.values()),
        }


def naive(net: Supernet, arch: Arch, batches: trie.Batches, recalibrate: Recalibrate) -> Tensor:
    model = net.extract(arch).eval()
    recalibrate(model, batches.calibration)
    with torch.inference_mode():
        return torch.cat([model(batch) for batch in batches.evaluation])


def timed(
    evaluate: Callable[[Sequence[Arch]], dict[int, Tensor]], archs: Sequence[Arch]
) -> tuple[dict[int, Tensor], float]:
    """The logits, and the seconds it took."""
    begun = time.perf_counter()
    result = evaluate(archs)
    return result, time.perf_counter() - begun


if __name__ == "__main__":
    main()
