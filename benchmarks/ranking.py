"""What ranks architectures: scores by supernets, without training, and ensembles of these, against published accuracy.

    python benchmarks/ranking.py [--quick] [--json FILE] [--spaces nasbench_macro] [--methods spos] [--seeds 0 1 2]

The supernets of NAS-Bench-Macro (Su et al., CVPR 2021) and NAS-Bench-201 (Dong & Yang, ICLR 2020) train on CIFAR-10 by
each method, once a seed, and judge random architectures of the table on held-out training images. Every method sees the
same number of images as many times, so that a sandwich step of four subnets costs as much as four of SPOS. Ensembles
(`search.scores.ensemble`) learn from the published accuracy of some of these architectures, which stands for that
of networks that are trained alone and costs nothing here. Kendall's tau is that among all other architectures,
which no ensemble has seen, averaged over --draws choices of the networks to learn from, the same ones for every score;
the standard error is that over seeds. Seeds have the architectures in common. All is kept in --output as it is
computed, and a run with the same settings goes on there; several may share it, each with other --spaces or --seeds.

By default about 5 minutes on one core for each space, method and seed to train, and 3 for the scores; with all images
at 32 pixels and 50 times the epochs, hours on a GPU.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from published import SPACES, Known, cifar10, drawn, published_accuracy
from report import report
from rich.progress import track
from scipy.stats import kendalltau, spearmanr

from search.scores.accuracy import SupernetAccuracy, resized
from search.scores.ensemble import Ensemble
from search.scores.judges import training_batch
from search.scores.untrained import score_architecture
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
UNTRAINED = ("macs", "parameters", "naswot", "synflow")


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
    untrained: tuple[str, ...] = UNTRAINED
    """Scores without training, all of which are members of the ensembles."""
    images: int = 10000
    """Training images."""
    epochs: int = 5
    """Epochs of a method that trains one subnet a step; others get fewer, for the same number of subnets."""
    archs: int = 230
    """Architectures of the table, drawn at random, always the same ones."""
    fitted: tuple[int, ...] = (15, 30)
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
    "untrained": ("macs", "synflow"),
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
    truth: np.ndarray  # [n], published accuracy in percent
    untrained: dict[str, np.ndarray]  # name -> [n]
    supernets: dict[str, dict[int, np.ndarray]]  # method -> seed -> [n]


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        arguments = dataclasses.replace(arguments, output=arguments.output / "quick", **QUICK)
    rows = [row for space in arguments.spaces for row in correlations(space, scored(space, arguments), arguments)]
    summary = {}
    for row in rows:
        name = f"{row['space']}_{row['score']}" + (f"_{row['fitted']}" if row["fitted"] else "")
        summary |= {f"kendall_{name}": row["kendall"], f"standard_error_{name}": row["standard_error"]}
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
    untrained = {score: without_training(name, family, score, archs, arguments) for score in arguments.untrained}
    return Scored(family.space, archs, np.array([table[arch] for arch in archs]), untrained, supernets)


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
    return train(family, family.supernet(seed), data, config, directory, execution, resume=True).eval()


def correlations(name: str, found: Scored, arguments: Arguments) -> Iterator[dict[str, object]]:
    """A row for each score by itself and each ensemble, over the architectures that no ensemble has seen."""
    for score, values in found.untrained.items():
        yield row(name, score, max(arguments.fitted), alone(found, {s: values for s in arguments.seeds}, arguments))
    for method, values in found.supernets.items():
        yield row(name, method, max(arguments.fitted), alone(found, values, arguments))
    for fitted in arguments.fitted:
        yield row(name, "choices", fitted, together(found, {}, None, fitted, arguments), learnt=True)
        yield row(name, "untrained", fitted, together(found, found.untrained, None, fitted, arguments), learnt=True)
        for method, values in found.supernets.items():
            for members, label in (({}, f"{method}+choices"), (found.untrained, f"{method}+untrained")):
                correlated = together(found, members, values, fitted, arguments)
                yield row(name, label, fitted, correlated, learnt=True)


def splits(count: int, fitted: int, seed: int, draws: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices of architectures to learn from, and of all others."""
    for draw in range(draws):
        order = np.random.default_rng([seed, draw]).permutation(count)
        yield order[:fitted], order[fitted:]


def alone(found: Scored, values: Mapping[int, np.ndarray], arguments: Arguments) -> np.ndarray:
    """Correlations [seeds, 2] of a score with the truth, Kendall's and Spearman's, by its values of every seed."""
    fitted = max(arguments.fitted)
    return np.array(
        [
            np.mean(
                [
                    both(values[seed][held_out], found.truth[held_out])
                    for _, held_out in splits(len(found.archs), fitted, seed, arguments.draws)
                ],
                axis=0,
            )
            for seed in arguments.seeds
        ]
    )


def together(
    found: Scored,
    members: Mapping[str, np.ndarray],
    supernets: Mapping[int, np.ndarray] | None,
    fitted: int,
    arguments: Arguments,
) -> np.ndarray:
    """The same of the ensemble of `members` and a supernet, which sees the choices as well."""
    rows = []
    for seed in arguments.seeds:
        own = [*members.values(), *([supernets[seed]] if supernets else [])]
        scores = np.array(own).reshape(len(own), len(found.archs)).T
        draws = []
        for chosen, held_out in splits(len(found.archs), fitted, seed, arguments.draws):
            archs = [found.archs[index] for index in chosen]
            ensemble = Ensemble.fit(found.space, archs, scores[chosen], found.truth[chosen])
            predicted = ensemble([found.archs[index] for index in held_out], scores[held_out])
            draws.append(both(predicted, found.truth[held_out]))
        rows.append(np.mean(draws, axis=0))
    return np.array(rows)


def both(scores: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    return float(kendalltau(scores, truth).statistic), float(spearmanr(scores, truth).statistic)


def row(space: str, score: str, fitted: int, correlated: np.ndarray, learnt: bool = False) -> dict[str, object]:
    """Means over seeds of correlations [seeds, 2]. `fitted` is 0 for a score that learns from no network."""
    seeds = len(correlated)
    return {
        "space": space,
        "score": score,
        "fitted": fitted if learnt else 0,
        "seeds": seeds,
        "kendall": float(correlated[:, 0].mean()),
        "standard_error": float(correlated[:, 0].std(ddof=1) / np.sqrt(seeds)) if seeds > 1 else float("nan"),
        "spearman": float(correlated[:, 1].mean()),
    }


if __name__ == "__main__":
    main()
