"""Search strategies side by side, on spaces all of whose networks were trained: what each chooses for a device.

    python benchmarks/strategies.py [--quick] [--json FILE]      # all of it: a day on 2 cores
    python benchmarks/strategies.py --spaces nasbench_macro --seeds 0 --runtimes onnxruntime        # an hour and a half
    python benchmarks/strategies.py --device cuda --images 45000 --teacher-epochs 60 --dna-epochs 20 \
        --supernet-images 45000 --supernet-epochs 120 --judges 5000 --calibration 2000 --evaluations 400

NAS-Bench-Macro (Su et al., CVPR 2021) and NAS-Bench-201 (Dong & Yang, ICLR 2020) on CIFAR-10. A teacher (the largest
network, by itself), blocks that imitate the teacher, and a supernet of single paths, the one of benchmarks/ranking.py,
are trained, each once a seed. Then every strategy scores the same random architectures, for the rank correlation with
their published accuracy, and goes on by evolution from where it likes best (DNA has a traversal of its own, and random
needs none). `ensemble` learns from the published accuracy of --fitted other networks, which costs nothing here. What a
strategy chooses under three latency limits, of a predictor fitted to this machine, is compared with the best that the
table has under that limit: the regret, in percentage points of published accuracy. Strategies choose among networks of
the table alone, and never one that an ensemble has learnt from. `±` is the standard error over seeds. Seconds are those
of one score; rating all paths of the blocks counts as training. DNA is for NAS-Bench-Macro: all blocks of NAS-Bench-201
have the same choices. Latency is measured first, so let nothing else run then. Everything is kept in --output as it is
done, and found there by a run with the same settings; several may share it, each with other --spaces or --seeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import ranking
import tyro
from matplotlib.figure import Figure
from published import SPACES, Known, cifar10, drawn, published_accuracy, seconds_of, timed
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
from search.scores.accuracy import EvaluationImages, SupernetAccuracy, labelled, resized
from search.scores.ensemble import Ensemble
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
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig

# n architectures, s scores

POINTS = {  # the ends of the stages, in teacher and subnets
    "nasbench_macro": ("blocks.1", "blocks.4", "blocks.7"),
    "nasbench201": ("stages.0", "stages.2", "stages.4"),
}
STRATEGIES = ("rdm", "evolution", "dna", "te_nas", "ensemble", "naswot", "synflow", "macs")
MEMBERS = ("macs", "naswot", "synflow")  # of the ensemble, beside the supernet's accuracy
QUANTILES = (0.25, 0.5, 0.75)  # of the latencies in the table: the limits
POPULATION = 20
FREE = {"json", "output", "data", "device", "predictors", "spaces", "seeds", "strategies", "runtimes", "supernets"}
"""Arguments that what is kept for a space and a seed does not follow from."""
NUMBERS = ("kendall", "spearman", "seconds", "training_minutes", "regret")  # that are averaged over seeds
KERNEL_IMAGES = 16  # of the tangent kernel, which is that of the whole network in this space


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar, cifar10/val.tar and accuracy/SPACE_cifar10.csv.gz."""
    spaces: tuple[str, ...] = tuple(SPACES)
    """nasbench_macro, nasbench201 or both."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of all that is random."""
    strategies: tuple[str, ...] = STRATEGIES
    """What to compare, beside a random choice."""
    runtimes: tuple[str, ...] = ("onnxruntime", "torch")
    """Runtimes of this machine, each of which is a device."""
    supernet_images: int = 10000
    """Training images of the supernet."""
    supernet_epochs: int = 24
    """Epochs of the supernet, a random path a step."""
    supernet_resolution: int = 16
    """Pixels a side of the supernet's images, in training and when it judges."""
    supernets: Path = Path("runs/ranking")
    """Folder of the supernets, that of benchmarks/ranking.py."""
    images: int = 5000
    """Training images of the teacher and the blocks."""
    teacher_epochs: int = 10
    """Epochs of the teacher."""
    dna_epochs: int = 10
    """Epochs of the blocks."""
    archs: int = 200
    """Random architectures that every strategy scores."""
    fitted: int = 30
    """Others that an ensemble learns from."""
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
    """Pixels a side, but for the supernet."""
    device: str = "auto"
    """Where networks train and run: cpu, cuda or auto."""
    output: Path = Path("runs/strategies")
    """Folder for all that is computed, and for strategies.svg."""
    quick: bool = False
    """Few images, epochs and architectures at 16 pixels: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


QUICK = {
    "spaces": ("nasbench_macro",),
    "seeds": (0,),
    "runtimes": ("onnxruntime",),
    "supernet_images": 256,
    "supernet_epochs": 1,
    "images": 256,
    "teacher_epochs": 1,
    "dna_epochs": 1,
    "archs": 10,
    "fitted": 8,
    "evaluations": 4,
    "judges": 60,
    "calibration": 40,
    "measured": 8,
    "resolution": 16,
}


class Bench(NamedTuple):
    """What all strategies share: a space and a seed."""

    arguments: Arguments
    space: str
    seed: int
    folder: Path
    family: Family
    data: ImageData
    images: Callable[[int], EvaluationImages]
    table: dict[Arch, float]  # published accuracy in percent
    archs: list[Arch]  # that all score
    fitted: list[Arch]  # that an ensemble learns from, and nothing chooses
    known: Known


class Strategy(NamedTuple):
    """A way to judge architectures, from the numbers that `Known` keeps."""

    score: Score
    parts: tuple[str, ...]  # the numbers, whose seconds add up
    training: tuple[Path, ...] = ()  # the files with the seconds of what was trained for it
    rating: BlockRating | None = None  # of a strategy with a traversal of its own


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        output = arguments.output / "quick"
        arguments = dataclasses.replace(arguments, output=output, supernets=output / "supernets", **QUICK)
    rows, limits_ms = [], {}
    for space in arguments.spaces:
        table = published_accuracy(space, arguments.data)
        devices = latency_predictors(space, arguments)
        limits_ms[space] = {name: limits_of(table, predictor) for name, predictor in devices.items()}
        for seed in arguments.seeds:
            rows += outcomes(prepare_bench(space, seed, table, arguments), devices)
    rows = rank(means(rows))
    summary = {}
    for what in ("kendall", "regret"):
        for key, group in itertools.groupby(sorted(rows, key=named), key=named):
            summary[f"{what}_{key}"] = float(np.mean([row[what] for row in group]))
    plot(arguments.output / "strategies.svg", rows)
    report(
        rows, summary, arguments.json, limits_ms=limits_ms, budget=json.loads(json.dumps(vars(arguments), default=str))
    )


def named(row: Mapping[str, object]) -> str:
    return f"{row['space']}_{row['strategy']}"


def prepare_bench(space: str, seed: int, table: dict[Arch, float], arguments: Arguments) -> Bench:
    """Images and samples; ValueError if the output folder is one of other settings."""
    settings = {name: value for name, value in vars(arguments).items() if name not in FREE}
    folder = arguments.output / space / str(seed)
    path = folder / "settings.json"
    if path.exists() and json.loads(path.read_text()) != settings:
        raise ValueError(f"{folder} holds a run with other settings: {path.read_text()}; name another --output")
    with write_atomically(path) as temporary:
        temporary.write_text(json.dumps(settings))
    data = cifar10(arguments.data, arguments.images, seed, 0 if arguments.quick else 2)
    calibration = data.calibration_images(arguments.resolution, arguments.calibration, seed)
    images = resized(calibration, *data.images(data.holdout, arguments.resolution, arguments.judges))
    family = dataclasses.replace(FAMILIES[space](num_classes=10), input_size=arguments.resolution)
    archs = drawn(table, arguments.archs + arguments.fitted, seed)
    return Bench(
        arguments,
        space,
        seed,
        folder,
        family,
        data,
        images,
        table,
        archs[: arguments.archs],
        archs[arguments.archs :],
        Known(folder / "scores.jsonl"),
    )


def latency_predictors(space: str, arguments: Arguments) -> dict[str, LatencyPredictor]:
    """A predictor of this machine with each runtime, and those that were given, by the names of their devices."""
    family = FAMILIES[space](num_classes=10)
    size = (family.in_chans, arguments.resolution, arguments.resolution)
    archs = stratified(family.space, family.macs, arguments.measured, np.random.default_rng(0))
    predictors = []
    for runtime in arguments.runtimes:
        device = this_device(runtime, "fp32", 1, 1)
        file = arguments.output / space / f"latency-{runtime}.csv"
        rows = measure(archs, lambda arch, device=device: prepare(family.build(arch), device, size), file, seed=0)
        good = [row for row in rows if not row.error]
        predictor = LatencyPredictor.fit(
            family.space, [r.arch for r in good], [r.latency_ms for r in good], family_costs(family), device
        )
        print(f"{device.name}: expected error of a predicted latency {predictor.error_percent:.2f} %")
        predictors.append(predictor)
    predictors += [LatencyPredictor.load(folder, family.space) for folder in arguments.predictors]
    return {p.device.name if p.device else f"device {i}": p for i, p in enumerate(predictors)}


class Trained:
    """What is trained for a bench, when it is first asked for, from where it was stopped."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.teacher_seconds, self.dna_seconds = bench.folder / "teacher.json", bench.folder / "dna.json"
        arguments = bench.arguments
        self._ranking = ranking.Arguments(
            arguments.data,
            images=arguments.supernet_images,
            epochs=arguments.supernet_epochs,
            resolution=arguments.supernet_resolution,
            device=arguments.device,
            output=arguments.supernets,
        )
        self._folder = ranking.supernet_folder(bench.space, "spos", bench.seed, self._ranking)
        self.supernet_seconds = self._folder / ranking.SECONDS

    @cached_property
    def teacher(self) -> Teacher:
        bench, arguments = self._bench, self._bench.arguments
        config = TrainConfig(
            epochs=arguments.teacher_epochs,
            batch_size=self.batch_size,
            lr=0.1,
            weight_decay=1e-4,
            warmup_epochs=1,
            clip=5.0,
            method="spos",
            random_subnets=1,
            seed=bench.seed,
        )
        execution = Execution(arguments.device, eval_epochs=0, checkpoint_steps=50, keep_checkpoints=1)
        with timed(self.teacher_seconds):
            briefly = TrainedBriefly(bench.family, bench.data, config, bench.folder / "teacher", execution)
            model = briefly(bench.family.space.largest, bench.images(arguments.resolution).calibration.split(250))
        return Teacher(model, POINTS[bench.space])

    @cached_property
    def supernet(self) -> Supernet:
        bench = self._bench
        family = dataclasses.replace(bench.family, input_size=self._ranking.resolution)
        data = cifar10(self._ranking.data, self._ranking.images, bench.seed, bench.data.workers)
        return ranking.trained(family, data, "spos", bench.seed, self._ranking, self._folder)

    @cached_property
    def rating(self) -> BlockRating:
        bench = self._bench
        points = POINTS[bench.space]
        blocks = DnaConfig(epochs=bench.arguments.dna_epochs, batch_size=self.batch_size, cuts=points)
        found = BlockRating(
            bench.family, bench.data, labelled(bench.images), self.teacher, blocks, bench.seed, bench.folder / "dna"
        )
        with timed(self.dna_seconds):
            found.prepare()
        return found

    @property
    def batch_size(self) -> int:
        return min(128, self._bench.arguments.images // 4)


def make_strategy(name: str, bench: Bench, trained: Trained) -> Strategy:
    """The strategy of this name, with what has to be trained for it."""
    arguments, family = bench.arguments, bench.family
    size = arguments.supernet_resolution

    def numbers(number: str, compute: Callable[[Arch], float]) -> Score:
        write = SPACES[bench.space].write
        return lambda archs: [bench.known.value(number, write(arch), partial(compute, arch)) for arch in archs]

    if name == "dna":
        rating = trained.rating
        score = numbers("dna", lambda arch: rating([arch])[0])
        return Strategy(score, ("dna",), (trained.teacher_seconds, trained.dna_seconds), rating)
    if name in ("evolution", "rdm", "ensemble"):
        by_supernet = SupernetAccuracy(trained.supernet, bench.images, lambda arch: size)
        accuracy = numbers("accuracy", lambda arch: by_supernet([arch])[0])
    if name == "evolution":
        return Strategy(accuracy, ("accuracy",), (trained.supernet_seconds,))
    if name == "rdm":
        config = GuidanceConfig(weight=arguments.weight, images=min(100, arguments.judges))
        guided = TeacherGuided(
            FromSupernet(trained.supernet),
            labelled(bench.images),
            lambda arch: size,
            trained.teacher,
            family.input_size,
            config,
        )
        guidance = numbers("guidance", lambda arch: guided.guidance(guided.calibrated(arch), arch))

        def performance_and_guidance(archs: Sequence[Arch]) -> list[float]:
            return [a + arguments.weight * g for a, g in zip(accuracy(archs), guidance(archs))]

        training = (trained.teacher_seconds, trained.supernet_seconds)
        return Strategy(performance_and_guidance, ("accuracy", "guidance"), training)
    batch = training_batch(bench.data, family.input_size, 64, bench.seed)
    settings = dataclasses.replace(PUBLISHED, ntk_images=KERNEL_IMAGES, batch_norm="frozen")
    proxies = PROXIES[bench.space](10, 3)

    def untrained(number: str) -> Score:
        def compute(arch: Arch) -> float:
            return score_architecture(family, [number], arch, batch, bench.seed, proxies, settings)[number]

        return numbers(number, compute)

    if name == "te_nas":
        kernel, regions = untrained("ntk"), untrained("regions")
        reference = [kernel(bench.archs), regions(bench.archs)]
        return Strategy(
            lambda archs: mean_rank([kernel(archs), regions(archs)], reference).tolist(), ("ntk", "regions")
        )
    if name == "ensemble":
        members = [*(untrained(member) for member in MEMBERS), accuracy]

        def scores(archs: Sequence[Arch]) -> np.ndarray:
            return np.array([member(archs) for member in members]).T

        worth = [bench.table[arch] for arch in bench.fitted]
        fitted = Ensemble.fit(family.space, bench.fitted, scores(bench.fitted), worth)
        return Strategy(
            lambda archs: fitted(archs, scores(archs)).tolist(), (*MEMBERS, "accuracy"), (trained.supernet_seconds,)
        )
    return Strategy(untrained(name), (name,))


def outcomes(bench: Bench, devices: Mapping[str, LatencyPredictor]) -> list[dict[str, object]]:
    """What each strategy comes to on each device, with one seed."""
    rows = []
    truth = [bench.table[arch] for arch in bench.archs]
    trained = Trained(bench)
    for name in bench.arguments.strategies:
        if name == "dna" and bench.space != "nasbench_macro":
            continue
        strategy = make_strategy(name, bench, trained)
        scores = [strategy.score([arch])[0] for arch in track(bench.archs, f"{bench.space}, {bench.seed}: {name}")]
        row = {
            "space": bench.space,
            "strategy": name,
            "kendall": float(kendalltau(scores, truth).statistic),
            "spearman": float(spearmanr(scores, truth).statistic),
            "seconds": sum(bench.known.seconds(part) for part in strategy.parts),
            "training_minutes": sum(seconds_of(path) for path in strategy.training) / 60,
        }
        for device, predictor in devices.items():
            limits = limits_of(bench.table, predictor)
            if strategy.rating:
                chosen = [first_in_table(strategy.rating, bench, predictor, limit) for limit in limits]
            else:
                chosen = choose(bench, strategy, predictor, limits)
            rows.append(row | outcome(bench.table, device, predictor, [bench.table[arch] for arch in chosen]))
    return rows + [random_choice(bench, device, predictor) for device, predictor in devices.items()]


def means(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """The rows of all seeds as one for each space, device and strategy, with standard errors."""
    groups: dict[tuple, list[Mapping[str, object]]] = {}
    for row in rows:
        groups.setdefault((row["space"], row["device"], row["strategy"]), []).append(row)
    found = []
    for (space, device, strategy), group in groups.items():
        columns = {name: np.array([row[name] for row in group]) for name in NUMBERS}
        count = len(group)
        mean: dict[str, object] = {"space": space, "device": device, "strategy": strategy, "seeds": count}
        for name, values in columns.items():
            mean[name] = float(values.mean())
            if name in ("kendall", "regret"):
                mean[f"{name} ±"] = float(values.std(ddof=1) / np.sqrt(count)) if count > 1 else ""
        found.append(mean | {"accuracies": np.mean([row["accuracies"] for row in group], axis=0).round(2).tolist()})
    return found


def choose(bench: Bench, strategy: Strategy, predictor: LatencyPredictor, limits: Sequence[float]) -> list[Arch]:
    """For each limit the architecture of the highest score, among those that all scored and those of an evolution."""
    costs = {
        "latency_ms": predictor.cost,
        "barred": lambda archs: [float(arch not in bench.table or arch in bench.fitted) for arch in archs],
    }
    problem = Problem(bench.family.space, ["score"], costs, {"barred": 0.5}, ["score", "latency_ms"])
    searcher = Evolution(problem, bench.seed, EvolutionConfig(POPULATION))
    searcher.tell(bench.archs, np.array(strategy.score(bench.archs))[:, None])
    result = ask_and_tell(problem, searcher, evaluate_here({"score": strategy.score}), bench.arguments.evaluations)
    archs = list(dict.fromkeys([*bench.archs, *(evaluation.arch for evaluation in result.evaluations)]))
    latency, scores = predictor.cost(archs), np.array(strategy.score(archs))
    return [archs[int(np.where(latency <= limit, scores, -np.inf).argmax())] for limit in limits]


def first_in_table(rating: BlockRating, bench: Bench, predictor: LatencyPredictor, limit: float) -> Arch:
    """The best rated architecture within the limit that may be chosen."""
    problem = Problem(bench.family.space, ["dna"], {"latency_ms": predictor.cost}, {"latency_ms": limit})
    return next(arch for arch in rating.best_first(problem) if arch in bench.table and arch not in bench.fitted)


def random_choice(bench: Bench, device: str, predictor: LatencyPredictor) -> dict[str, object]:
    """What choosing at random comes to: the mean over all architectures within each limit, and over random scores."""
    latency, accuracy = predictor.cost(list(bench.table)), np.array(list(bench.table.values()))
    truth = [bench.table[arch] for arch in bench.archs]
    draws = np.random.default_rng(bench.seed).random((200, len(truth)))
    return {
        "space": bench.space,
        "strategy": "random",
        "kendall": float(np.mean([kendalltau(draw, truth).statistic for draw in draws])),
        "spearman": float(np.mean([spearmanr(draw, truth).statistic for draw in draws])),
        "seconds": 0.0,
        "training_minutes": 0.0,
        **outcome(
            bench.table,
            device,
            predictor,
            [float(accuracy[latency <= limit].mean()) for limit in limits_of(bench.table, predictor)],
        ),
    }


def limits_of(table: Mapping[Arch, float], predictor: LatencyPredictor) -> list[float]:
    """The latency limits in milliseconds."""
    return np.quantile(predictor.cost(list(table)), QUANTILES).tolist()


def outcome(
    table: Mapping[Arch, float], device: str, predictor: LatencyPredictor, found: Sequence[float]
) -> dict[str, object]:
    """The published accuracies that were `found` under the limits, and how far they are from the best, on average."""
    latency, accuracy = predictor.cost(list(table)), np.array(list(table.values()))
    best = [float(accuracy[latency <= limit].max()) for limit in limits_of(table, predictor)]
    return {
        "regret": float(np.mean(np.array(best) - found)),
        "accuracies": list(found),
        "device": device,
    }


def rank(rows: Sequence[dict[str, object]]) -> list[dict[str, object]]:
    """The rows by space, device and regret, the least first, with their rank there."""

    def place_of(row: Mapping[str, object]) -> tuple[object, object]:
        return row["space"], row["device"]

    ordered = sorted(rows, key=lambda row: (*place_of(row), row["regret"]))
    groups = itertools.groupby(ordered, key=place_of)
    return [{"rank": place, **row} for _, group in groups for place, row in enumerate(group, start=1)]


def plot(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write an SVG: the regret of each strategy in each space on each device, and its rank correlation, with standard
    errors."""
    devices = list(dict.fromkeys((row["space"], row["device"]) for row in rows))
    figure = Figure(figsize=(8, 1.2 + 1.9 * len(devices)), layout="constrained")
    for line, device in zip(figure.subplots(len(devices), 2, squeeze=False), devices):
        own = [row for row in rows if (row["space"], row["device"]) == device][::-1]
        for axes, column, label in zip(line, ("regret", "kendall"), ("regret (percentage points)", "Kendall's tau")):
            errors = [row[f"{column} ±"] or 0.0 for row in own]
            axes.barh([row["strategy"] for row in own], [row[column] for row in own], xerr=errors, color="#0072b2")
            axes.set_xlabel(label)
            axes.grid(alpha=0.3, axis="x")
        line[0].set_title(", ".join(device), loc="left", fontsize="medium")
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
