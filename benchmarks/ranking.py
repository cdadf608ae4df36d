"""What ranks architectures: scores by supernets, without training, and ensembles of these, against published accuracy.

    python benchmarks/ranking.py [--quick] [--json FILE] [--spaces nasbench_macro] [--methods spos] [--seeds 0 1 2]

The supernets of NAS-Bench-Macro (Su et al., CVPR 2021) and NAS-Bench-201 (Dong & Yang, ICLR 2020) train on CIFAR-10 by
each method, once a seed, and judge random architectures of the table on held-out training images. Every method sees the
same number of images as many times, so that a sandwich step of four subnets costs as much as four of SPOS. Ensembles
(`search.scores.ensemble`) learn from the published accuracy of one training of some of these architectures, which
stands for a training alone and costs nothing here. Kendall's tau is that among all other architectures, which no
ensemble has seen, averaged over --draws choices of the networks to learn from; the regret is how far the one of the
highest score is from the best of them, in percentage points, the mean over three limits on MACs. `±` is the standard
error over seeds, which have the architectures in common, and the deviation is that of single choices. All is kept in
--output as it is computed, and a run with the same settings goes on there; several may share it, each with other
--spaces or --seeds. Without any --methods, no supernet is trained.

By default about 3 minutes on one core for each space, method and seed to train, and 2 for its scores; those without
training take 4 minutes once. With all images at 32 pixels and 50 times the epochs, hours on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from published import SPACES, Known, cifar10, drawn, published_accuracy, timed
from report import report
from rich.progress import track
from scipy.stats import kendalltau, spearmanr
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from search.scores.accuracy import SupernetAccuracy, resized
from search.scores.ensemble import Ensemble
from search.scores.judges import training_batch
from search.scores.untrained import score_architecture
from search.untrained.ensemble import mean_rank
from search.untrained.zero_cost import WORST
from supernet import Arch, SearchSpace, Supernet
from supernet.families import FAMILIES, Family
from supernet.training.execution import Execution
from supernet.training.step import TrainConfig
from supernet.training.train import train

# n architectures, s scores

METHODS = {
    "sandwich_kl": {"method": "sandwich"},
    "sandwich_alpha": {"method": "sandwich", "distillation": "adaptive_alpha"},
    "spos": {"method": "spos", "random_subnets": 1},
    "fairnas": {"method": "fairnas"},
}
SUBNETS = {"sandwich_kl": 4, "sandwich_alpha": 4, "spos": 1}  # a step; of fairnas, the operations of the space
UNTRAINED = {  # all of which are members of the ensembles; jacob_cov takes seconds a network of NAS-Bench-Macro
    "nasbench_macro": ("macs", "naswot", "synflow"),
    "nasbench201": ("macs", "naswot", "synflow", "jacob_cov"),
}
SECONDS = "seconds.json"  # in the folder of a supernet: how long it trained
QUANTILES = (0.25, 0.5, 0.75)  # of the architectures' MACs: the limits
Members = Callable[[int], list[np.ndarray]]  # the scores [n] of an ensemble, for a seed


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar, cifar10/val.tar and accuracy/SPACE_cifar10.csv.gz."""
    spaces: tuple[str, ...] = tuple(SPACES)
    """nasbench_macro, nasbench201 or both."""
    methods: tuple[str, ...] = ("spos",)
    """Methods by which supernets train: spos, fairnas, sandwich_kl, sandwich_alpha."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the supernets and of the networks that ensembles learn from."""
    images: int = 10000
    """Training images."""
    epochs: int = 5
    """Epochs of a method that trains one subnet a step; others get fewer, for the same number of subnets."""
    archs: int = 230
    """Architectures of the table, drawn at random, always the same ones."""
    fitted: tuple[int, ...] = (15, 30, 60)
    """How many of them ensembles learn from; the rest is ranked."""
    draws: int = 10
    """Choices of these for each seed."""
    judges: int = 500
    """Held-out images that judge them."""
    calibration: int = 250
    """Training images that BatchNorm is calibrated on."""
    resolution: int = 16
    """Pixels a side in supernets; scores without training see 32."""
    device: str = "auto"
    """cpu, cuda or auto."""
    output: Path = Path("runs/ranking")
    """Folder for checkpoints and scores."""
    quick: bool = False
    """Few images, one epoch: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


QUICK = {
    "spaces": ("nasbench_macro",),
    "seeds": (0,),
    "images": 512,
    "epochs": 2,
    "archs": 24,
    "fitted": (10,),
    "draws": 2,
    "judges": 100,
    "calibration": 100,
}


class Scored(NamedTuple):
    """Architectures of a space with all that is known of them."""

    space: SearchSpace
    archs: list[Arch]
    truth: np.ndarray  # [n], published accuracy in percent, the mean of all trainings
    taught: np.ndarray  # [n], that of one training, from which ensembles learn
    macs: np.ndarray  # [n]
    untrained: dict[str, np.ndarray]  # name -> [n]
    supernets: dict[str, dict[int, np.ndarray]]  # method -> seed -> [n]


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, output=arguments.output / "quick", **QUICK)
    rows = [row for space in arguments.spaces for row in judged(space, scored(space, arguments), arguments)]
    summary = {}
    for row in rows:
        name = f"{row['space']}_{row['score']}" + (f"_{row['fitted']}" if row["fitted"] else "")
        summary |= {f"{what}_{name}": row[what] for what in ("kendall", "regret")}
    report(rows, summary, arguments.json, budget=json.loads(json.dumps(vars(arguments), default=str)))


def scored(name: str, arguments: Arguments) -> Scored:
    """Train and score what is not yet known."""
    table = published_accuracy(name, arguments.data)
    archs = drawn(table, arguments.archs)
    family = FAMILIES[name](num_classes=10)
    supernets = {
        method: {seed: by_supernet(name, family, method, seed, archs, arguments) for seed in arguments.seeds}
        for method in arguments.methods
    }
    untrained = {score: without_training(name, family, score, archs, arguments) for score in UNTRAINED[name]}
    once = published_accuracy(name, arguments.data, trainings=1)
    columns = (np.array([value(arch) for arch in archs], float) for value in (table.get, once.get, family.macs))
    return Scored(family.space, archs, *columns, untrained, supernets)


def without_training(space: str, family: Family, score: str, archs: Sequence[Arch], arguments: Arguments) -> np.ndarray:
    """A score without training of each architecture."""
    known = Known(arguments.output / f"{space}-untrained.jsonl")
    names = {arch: SPACES[space].write(arch) for arch in archs}
    if all((score, names[arch]) in known for arch in archs):
        return np.array([known.value(score, names[arch], float) for arch in archs])
    batch = training_batch(cifar10(arguments.data, 10000, 0, 0), family.input_size, 64, 0)

    def value(arch: Arch) -> float:
        return known.value(score, names[arch], lambda: score_architecture(family, [score], arch, batch)[score])

    return np.array([value(arch) for arch in track(archs, f"Scoring {space} by {score}")])


def by_supernet(
    space: str, family: Family, method: str, seed: int, archs: Sequence[Arch], arguments: Arguments
) -> np.ndarray:
    """Accuracy of each architecture by a supernet trained with `method`."""
    directory = supernet_folder(space, method, seed, arguments)
    known = Known(directory / f"scores-{arguments.judges}-{arguments.calibration}.jsonl")
    names = [SPACES[space].write(arch) for arch in archs]
    missing = [index for index, name in enumerate(names) if ("accuracy", name) not in known]
    if missing:
        data = cifar10(arguments.data, arguments.images, seed, 1)
        family = dataclasses.replace(family, input_size=arguments.resolution)
        net = trained(family, data, method, seed, arguments, directory)
        calibration = data.calibration_images(arguments.resolution, arguments.calibration, seed)
        images = resized(calibration, *data.images(data.holdout, arguments.resolution, arguments.judges))
        score = SupernetAccuracy(net, images, family.resolution)
        each = score.each([archs[index] for index in missing])
        for index, value in track(each, f"Judging {space} by {method}, seed {seed}", len(missing)):
            known.add("accuracy", names[missing[index]], float(value), 0.0)
    return np.array([known.value("accuracy", name, float) for name in names])


def supernet_folder(space: str, method: str, seed: int, arguments: Arguments) -> Path:
    """Where a supernet is kept, by all that it follows from."""
    settings = f"{arguments.images}-{arguments.epochs}-{arguments.resolution}px-{seed}"
    return arguments.output / f"{space}-{method}-{settings}"


def trained(family: Family, data, method: str, seed: int, arguments: Arguments, directory: Path) -> Supernet:
    """The supernet that `method` trains, in eval mode, from where its training was stopped."""
    subnets = SUBNETS.get(method) or max(len(choice.values) for choice in family.space.choices.values())
    config = TrainConfig(
        epochs=max(arguments.epochs // subnets, 1),
        batch_size=64,
        lr=0.1,
        weight_decay=1e-4,
        warmup_epochs=1,
        clip=5.0,
        seed=seed,
        **METHODS[method],
    )
    execution = Execution(arguments.device, eval_epochs=0)
    with timed(directory / SECONDS):
        return train(family, family.supernet(seed), data, config, directory, execution, resume=True).eval()


def judged(name: str, found: Scored, arguments: Arguments) -> Iterator[dict[str, object]]:
    """A row for each score by itself and each ensemble, over the architectures that no ensemble has seen."""
    most = max(arguments.fitted)
    untrained = found.untrained | {"mean_rank": mean_rank(list(found.untrained.values()))}
    by_itself = {score: dict.fromkeys(arguments.seeds, values) for score, values in untrained.items()}
    for score, values in (by_itself | found.supernets).items():
        yield row(name, score, 0, measured(found, partial(as_it_is, values), most, arguments))
    members: dict[str, Members] = {"choices": lambda seed: [], "untrained": lambda seed: [*found.untrained.values()]}
    for method, values in found.supernets.items():
        members[f"{method}+choices"] = lambda seed, own=values: [own[seed]]
        members[f"{method}+untrained"] = lambda seed, own=values: [*found.untrained.values(), own[seed]]
    for fitted in arguments.fitted:
        yield row(name, "linear", fitted, measured(found, partial(weighted, found), fitted, arguments))
        for label, scores in members.items():
            yield row(name, label, fitted, measured(found, partial(learnt, found, scores), fitted, arguments))


def as_it_is(values: Mapping[int, np.ndarray], seed: int, chosen: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """A score of the architectures `held_out`, by its values [n] of every seed."""
    return values[seed][held_out]


def weighted(found: Scored, seed: int, chosen: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The same of a weighted sum of the scores without training, by ridge regression, its penalty by leave-one-out."""
    scores = np.array(list(found.untrained.values())).T
    lowest = np.where(scores > WORST, scores, np.inf).min(axis=0)
    scores = np.arcsinh(np.where(scores > WORST, scores, lowest))
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 16)))
    return model.fit(scores[chosen], found.taught[chosen]).predict(scores[held_out])


def learnt(found: Scored, members: Members, seed: int, chosen: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """The same of an ensemble of scores, learnt from the architectures `chosen`."""
    own = members(seed)
    scores = np.array(own).reshape(len(own), len(found.archs)).T
    ensemble = Ensemble.fit(found.space, [found.archs[i] for i in chosen], scores[chosen], found.taught[chosen])
    return ensemble([found.archs[i] for i in held_out], scores[held_out])


def measured(
    found: Scored, predict: Callable[[int, np.ndarray, np.ndarray], np.ndarray], fitted: int, arguments: Arguments
) -> np.ndarray:
    """Kendall's and Spearman's correlation and the regret [seeds, draws, 3]."""
    limits = np.quantile(found.macs, QUANTILES)
    rows = []
    for seed in arguments.seeds:
        draws = []
        for draw in range(arguments.draws):
            order = np.random.default_rng([seed, draw]).permutation(len(found.archs))
            chosen, held_out = order[:fitted], order[fitted:]
            scores, truth, macs = predict(seed, chosen, held_out), found.truth[held_out], found.macs[held_out]
            regrets = [regret(scores[macs <= limit], truth[macs <= limit]) for limit in limits]
            correlations = (kendalltau(scores, truth).statistic, spearmanr(scores, truth).statistic)
            draws.append([*correlations, np.mean(regrets)])
        rows.append(draws)
    return np.array(rows)


def regret(scores: np.ndarray, truth: np.ndarray) -> float:
    """How much worse the architecture of the highest score is than the best, on average over those that share it."""
    return float(truth.max() - truth[scores == scores.max()].mean())


def row(space: str, score: str, fitted: int, found: np.ndarray) -> dict[str, object]:
    """Means of what was `measured`, with the standard errors over seeds of Kendall's correlation and of the regret, and
    the standard deviation of the former from draw to draw. `fitted` is 0 for a score that learns from no network."""
    seeds = found.mean(axis=1)
    mean = seeds.mean(axis=0)
    error = seeds.std(axis=0, ddof=1) / np.sqrt(len(seeds)) if len(seeds) > 1 else mean
    return {
        "space": space,
        "score": score,
        "fitted": fitted,
        "seeds": len(seeds),
        "kendall": float(mean[0]),
        "kendall ±": float(error[0]) if len(seeds) > 1 else "",
        "kendall, deviation": float(found[:, :, 0].std()),
        "spearman": float(mean[1]),
        "regret": float(mean[2]),
        "regret ±": float(error[2]) if len(seeds) > 1 else "",
    }


if __name__ == "__main__":
    main()
