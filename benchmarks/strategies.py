"""Search strategies side by side, on a space whose networks have all been trained: what each chooses for a device.

    python benchmarks/strategies.py [--quick] [--json FILE]               # an hour on 2 cores
    python benchmarks/strategies.py --device cuda --images 45000 --epochs 120 --teacher-epochs 60 --dna-epochs 20 \
        --judges 5000 --calibration 2000 --evaluations 400                # some hours on a GPU

NAS-Bench-Macro (Su et al., CVPR 2021) on CIFAR-10. A teacher (the largest network, by itself), a supernet of single
paths and blocks that imitate the teacher are trained on the same images. Then every strategy scores the same random
architectures, for the rank correlation with their published accuracy, and goes on by evolution from where it likes best
(DNA has a traversal of its own, and random needs none). What it chooses under three latency limits, of a predictor
fitted to this machine, is compared with the best that the table has under that limit: the regret, in percentage points
of published accuracy. Strategies choose among networks of the table alone. Seconds are those of one score; rating all
paths of the blocks counts as training. Latency is measured first, so let nothing else run then. Everything is kept in
--output as it is done, and found there by a run with the same settings.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from matplotlib.figure import Figure
from published import Known, cifar10, drawn, published_accuracy
from report import report
from rich.progress import track
from scipy.stats import kendalltau, spearmanr

from distill.blockwise import Teacher
from predictors import LatencyPredictor, measure, prepare, stratified, this_device
from predictors.transfer import family_costs
from search.blockwise.dna import BlockRating, DnaConfig
from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem, Score
from search.scores.accuracy import EvaluationImages, resized
from search.scores.judges import training_batch
from search.scores.teacher_guided import FromSupernet, GuidanceConfig, TeacherGuided, TrainedBriefly
from search.scores.untrained import score_architecture
from search.strategies.evolution import Evolution, EvolutionConfig
from search.untrained.ensemble import mean_rank
from search.untrained.proxies import PROXIES
from search.untrained.te_nas import PUBLISHED
from supernet import Arch, Supernet
from supernet.artifacts.atomic import write_atomically
from supernet.families import FAMILIES, Family
from supernet.families.nas_bench_macro import to_string
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

# n architectures, s scores

POINTS = ("blocks.1", "blocks.4", "blocks.7")  # the ends of the stages, in teacher and subnets
QUANTILES = (0.25, 0.5, 0.75)  # of the latencies in the table: the limits
POPULATION = 20
KERNEL_IMAGES = 16  # of the tangent kernel, which is that of the whole network in this space


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar, cifar10/val.tar and accuracy/nasbench_macro_cifar10.csv.gz."""
    images: int = 5000
    """Training images."""
    epochs: int = 30
    """Epochs of the supernet, a random path a step."""
    teacher_epochs: int = 10
    """Epochs of the teacher."""
    dna_epochs: int = 10
    """Epochs of the blocks."""
    archs: int = 200
    """Random architectures that every strategy scores."""
    evaluations: int = 80
    """Architectures that a strategy may score beyond those, in its search."""
    judges: int = 500
    """Held-out images that judge an architecture."""
    calibration: int = 250
    """Training images that BatchNorm is calibrated on."""
    measured: int = 40
    """Architectures whose latency on this machine is measured."""
    predictors: tuple[Path, ...] = ()
    """Folders of latency predictors of other devices."""
    weight: float = 1.0
    """Of the teacher's guidance in P+TG."""
    resolution: int = 32
    """Pixels a side."""
    device: str = "auto"
    """Where networks train and run: cpu, cuda or auto."""
    seed: int = 0
    """All that is random follows from it."""
    output: Path = Path("runs/strategies")
    """Folder for all that is computed, and for strategies.svg."""
    quick: bool = False
    """Few images, epochs and architectures at 16 pixels: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


QUICK = {
    "images": 256,
    "epochs": 1,
    "teacher_epochs": 1,
    "dna_epochs": 1,
    "archs": 10,
    "evaluations": 4,
    "judges": 60,
    "calibration": 40,
    "measured": 8,
    "resolution": 16,
}


class Bench(NamedTuple):
    """What all strategies share."""

    arguments: Arguments
    family: Family
    data: ImageData
    images: Callable[[int], EvaluationImages]
    table: dict[Arch, float]  # published accuracy in percent
    archs: list[Arch]  # that all score
    known: Known


class Strategy(NamedTuple):
    """A way to judge architectures, from the numbers that `Known` keeps."""

    score: Score
    parts: tuple[str, ...]  # the numbers, whose seconds add up
    training: tuple[str, ...] = ()  # what was trained for it


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, output=arguments.output / "quick", **QUICK)
    bench = prepare_bench(arguments)
    devices = latency_predictors(bench)
    strategies, rating = make_strategies(bench)
    rows = []
    truth = [bench.table[arch] for arch in bench.archs]
    for name, strategy in strategies.items():
        scores = [strategy.score([arch])[0] for arch in track(bench.archs, f"Scoring by {name}")]
        row = {
            "strategy": name,
            "kendall": float(kendalltau(scores, truth).statistic),
            "spearman": float(spearmanr(scores, truth).statistic),
            "seconds": sum(bench.known.seconds(part) for part in strategy.parts),
            "training_minutes": sum(read_seconds(bench, what) for what in strategy.training) / 60,
        }
        for device, predictor in devices.items():
            limits = limits_of(bench, predictor)
            if name == "dna":
                chosen = [first_in_table(rating, bench, predictor, limit) for limit in limits]
            else:
                chosen = choose(bench, strategy, predictor, limits)
            rows.append(row | outcome(bench, device, predictor, [bench.table[arch] for arch in chosen]))
    rows += [random_choice(bench, device, predictor) for device, predictor in devices.items()]
    rows = rank(rows)
    summary = {f"kendall_{row['strategy']}": row["kendall"] for row in rows}
    for name in dict.fromkeys(row["strategy"] for row in rows):
        summary[f"regret_{name}"] = float(np.mean([row["regret"] for row in rows if row["strategy"] == name]))
    plot(arguments.output / "strategies.svg", rows)
    limits_ms = {device: limits_of(bench, predictor) for device, predictor in devices.items()}
    report(
        rows, summary, arguments.json, limits_ms=limits_ms, budget=json.loads(json.dumps(vars(arguments), default=str))
    )


def prepare_bench(arguments: Arguments) -> Bench:
    """Images, table and sample; ValueError if the output folder is one of other settings."""
    settings = {n: v for n, v in vars(arguments).items() if n not in ("json", "output", "data", "device", "predictors")}
    path = arguments.output / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(f"{arguments.output} holds a run with other settings: {path.read_text()}; name another")
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(settings))
    data = cifar10(arguments.data, arguments.images, arguments.seed, 0 if arguments.quick else 2)
    family = dataclasses.replace(FAMILIES["nasbench_macro"](num_classes=10), input_size=arguments.resolution)
    calibration = data.calibration_images(arguments.resolution, arguments.calibration, arguments.seed)
    images = resized(calibration, *data.images(data.holdout, arguments.resolution, arguments.judges))
    table = published_accuracy("nasbench_macro", arguments.data)
    archs = drawn(table, arguments.archs, arguments.seed)
    return Bench(arguments, family, data, images, table, archs, Known(arguments.output / "scores.jsonl"))


def latency_predictors(bench: Bench) -> dict[str, LatencyPredictor]:
    """A predictor of this machine, and those that were given, by the names of their devices."""
    arguments, family = bench.arguments, bench.family
    device = this_device("onnxruntime", "fp32", 1, 1)
    size = (family.in_chans, family.input_size, family.input_size)
    archs = stratified(family.space, family.macs, arguments.measured, np.random.default_rng(arguments.seed))
    rows = measure(
        archs, lambda arch: prepare(family.build(arch), device, size), arguments.output / "latency.csv", seed=0
    )
    good = [row for row in rows if not row.error]
    predictor = LatencyPredictor.fit(
        family.space, [r.arch for r in good], [r.latency_ms for r in good], family_costs(family), device
    )
    print(f"expected error of a predicted latency: {predictor.error_percent:.2f} %")
    others = [LatencyPredictor.load(folder, family.space) for folder in arguments.predictors]
    return {p.device.name if p.device else f"device {i}": p for i, p in enumerate([predictor, *others])}


def make_strategies(bench: Bench) -> tuple[dict[str, Strategy], BlockRating]:
    """Train what has to be trained, from where it was stopped; all strategies but random, which needs no score."""
    arguments, family, known = bench.arguments, bench.family, bench.known
    config = TrainConfig(
        epochs=arguments.epochs,
        batch_size=min(128, arguments.images // 4),
        lr=0.1,
        weight_decay=1e-4,
        warmup_epochs=1,
        clip=5.0,
        method="spos",
        random_subnets=1,
        seed=arguments.seed,
    )
    execution = Execution(arguments.device, eval_epochs=0, checkpoint_steps=50, keep_checkpoints=1)
    with timed(bench, "teacher"):
        alone = dataclasses.replace(config, epochs=arguments.teacher_epochs)
        briefly = TrainedBriefly(family, bench.data, alone, arguments.output / "teacher", execution)
        model = briefly(family.space.largest, bench.images(family.input_size).calibration.split(250))
    teacher = Teacher(model, POINTS)
    with timed(bench, "supernet"):
        start, folder = family.supernet(arguments.seed), arguments.output / "supernet"
        net: Supernet = train(family, start, bench.data, config, folder, execution, resume=True).eval()
    blocks = DnaConfig(epochs=arguments.dna_epochs, batch_size=config.batch_size, cuts=POINTS)
    rating = BlockRating(family, bench.data, bench.images, teacher, blocks, arguments.seed, arguments.output / "dna")
    with timed(bench, "dna"):
        rating.prepare()
    guided = TeacherGuided(
        FromSupernet(net),
        bench.images,
        family.resolution,
        teacher,
        family.input_size,
        GuidanceConfig(weight=arguments.weight, images=100 if arguments.judges > 100 else arguments.judges),
    )
    batch = training_batch(bench.data, family.input_size, 64, arguments.seed)
    settings = dataclasses.replace(PUBLISHED, ntk_images=KERNEL_IMAGES, batch_norm="frozen")
    proxies = PROXIES["nasbench_macro"](10, 3)

    def numbers(name: str, compute: Callable[[Arch], float]) -> Score:
        return lambda archs: [known.value(name, to_string(arch), lambda a=arch: compute(a)) for arch in archs]

    def untrained(name: str) -> Score:
        return numbers(
            name, lambda arch: score_architecture(family, [name], arch, batch, arguments.seed, proxies, settings)[name]
        )

    calibrated = lru_cache(maxsize=1)(guided.calibrated)  # once for both numbers, so rdm comes before evolution
    accuracy = numbers("accuracy", lambda arch: guided.performance(calibrated(arch), arch))
    guidance = numbers("guidance", lambda arch: guided.guidance(calibrated(arch), arch))

    def performance_and_guidance(archs: Sequence[Arch]) -> list[float]:
        return [accuracy([arch])[0] + arguments.weight * guidance([arch])[0] for arch in archs]

    kernel, regions = untrained("ntk"), untrained("regions")
    free = {name: Strategy(untrained(name), (name,)) for name in ("synflow", "macs")}
    strategies = {
        "rdm": Strategy(performance_and_guidance, ("accuracy", "guidance"), ("teacher", "supernet")),
        "evolution": Strategy(accuracy, ("accuracy",), ("supernet",)),
        "dna": Strategy(numbers("dna", lambda arch: rating([arch])[0]), ("dna",), ("teacher", "dna")),
        "te_nas": Strategy(
            lambda archs: mean_rank(
                [kernel(archs), regions(archs)], [kernel(bench.archs), regions(bench.archs)]
            ).tolist(),
            ("ntk", "regions"),
        ),
        **free,
    }
    return strategies, rating


@contextmanager
def timed(bench: Bench, name: str) -> Iterator[None]:
    """Note how long a training took, over all attempts that came to an end or were interrupted by Ctrl-C."""
    path = bench.arguments.output / f"{name}_seconds.json"
    before = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "done": False}
    begun, done = time.monotonic(), False
    try:
        yield
        done = True
    finally:
        if not before["done"]:
            content = {"seconds": before["seconds"] + time.monotonic() - begun, "done": done}
            with write_atomically(path) as temporary:
                temporary.write_text(json.dumps(content))


def read_seconds(bench: Bench, name: str) -> float:
    return json.loads((bench.arguments.output / f"{name}_seconds.json").read_text())["seconds"]


def choose(bench: Bench, strategy: Strategy, predictor: LatencyPredictor, limits: Sequence[float]) -> list[Arch]:
    """For each limit the architecture of the highest score, among those that all scored and those of an evolution."""
    costs = {
        "latency_ms": predictor.cost,
        "unpublished": lambda archs: [float(arch not in bench.table) for arch in archs],
    }
    problem = Problem(bench.family.space, ["score"], costs, {"unpublished": 0.5}, ["score", "latency_ms"])
    searcher = Evolution(problem, bench.arguments.seed, EvolutionConfig(POPULATION))
    searcher.tell(bench.archs, np.array(strategy.score(bench.archs))[:, None])
    result = ask_and_tell(problem, searcher, evaluate_here({"score": strategy.score}), bench.arguments.evaluations)
    archs = list(dict.fromkeys([*bench.archs, *(evaluation.arch for evaluation in result.evaluations)]))
    latency, scores = predictor.cost(archs), np.array(strategy.score(archs))
    return [archs[int(np.where(latency <= limit, scores, -np.inf).argmax())] for limit in limits]


def first_in_table(rating: BlockRating, bench: Bench, predictor: LatencyPredictor, limit: float) -> Arch:
    """The best rated architecture within the limit that the table has."""
    problem = Problem(bench.family.space, ["dna"], {"latency_ms": predictor.cost}, {"latency_ms": limit})
    return next(arch for arch in rating.best_first(problem) if arch in bench.table)


def random_choice(bench: Bench, device: str, predictor: LatencyPredictor) -> dict[str, object]:
    """What choosing at random comes to: the mean over all architectures within each limit, and over random scores."""
    latency, accuracy = predictor.cost(list(bench.table)), np.array(list(bench.table.values()))
    truth = [bench.table[arch] for arch in bench.archs]
    draws = np.random.default_rng(bench.arguments.seed).random((200, len(truth)))
    return {
        "strategy": "random",
        "kendall": float(np.mean([kendalltau(draw, truth).statistic for draw in draws])),
        "spearman": float(np.mean([spearmanr(draw, truth).statistic for draw in draws])),
        "seconds": 0.0,
        "training_minutes": 0.0,
        **outcome(
            bench, device, predictor, [float(accuracy[latency <= x].mean()) for x in limits_of(bench, predictor)]
        ),
    }


def limits_of(bench: Bench, predictor: LatencyPredictor) -> list[float]:
    """The latency limits in milliseconds."""
    return np.quantile(predictor.cost(list(bench.table)), QUANTILES).tolist()


def outcome(bench: Bench, device: str, predictor: LatencyPredictor, found: Sequence[float]) -> dict[str, object]:
    """The published accuracies that were `found` under the limits, and how far they are from the best, on average."""
    latency, accuracy = predictor.cost(list(bench.table)), np.array(list(bench.table.values()))
    best = [float(accuracy[latency <= limit].max()) for limit in limits_of(bench, predictor)]
    return {
        "regret": float(np.mean(np.array(best) - found)),
        "accuracies": [round(value, 2) for value in found],
        "device": device,
    }


def rank(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """The rows by device and regret, the least first, with their rank on that device."""
    ordered = sorted(rows, key=lambda row: (row["device"], row["regret"]))
    groups = itertools.groupby(ordered, key=lambda row: row["device"])
    return [{"rank": place, **row} for _, group in groups for place, row in enumerate(group, start=1)]


def plot(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write an SVG: the regret of each strategy on each device, and its rank correlation."""
    devices = list(dict.fromkeys(row["device"] for row in rows))
    figure = Figure(figsize=(8, 1.2 + 1.9 * len(devices)), layout="constrained")
    for line, device in zip(figure.subplots(len(devices), 2, squeeze=False), devices):
        own = [row for row in rows if row["device"] == device][::-1]
        for axes, column, label in zip(line, ("regret", "kendall"), ("regret (percentage points)", "Kendall's tau")):
            axes.barh([row["strategy"] for row in own], [row[column] for row in own], color="#0072b2")
            axes.set_xlabel(label)
            axes.grid(alpha=0.3, axis="x")
        line[0].set_title(device, loc="left", fontsize="medium")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
