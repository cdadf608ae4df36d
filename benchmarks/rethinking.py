"""Whether a pruned network needs the weights that it was pruned from: fine-tuned, trained from scratch, and searched.

    python benchmarks/rethinking.py [--quick] [--json FILE] [--data ../shared/data --output runs/rethinking]

The question of Liu et al. (ICLR 2019, arXiv 1810.05270), on CIFAR-10 at 16 pixels with a network of six convolutions.
For each seed the large network is trained, and pruned to half its multiply-accumulates by the L1 norms of its filters,
one threshold for all layers. Of these widths, `finetuned` goes on from the weights that are left, for a quarter of the
epochs at a tenth of the learning rate; `scratch_e` begins anew for the same epochs as the large network had, and
`scratch_b` for twice as many, the large network's compute. `recipe` is this framework's way: the large network's
weights become a supernet, which is trained for half the epochs, searched within the same multiply-accumulates on 500
held-out training images, and the subnet taken out and fine-tuned as the pruned one was. Reported are the accuracies on
the 5,000 test images with standard errors over seeds, the differences by seed, and what each arm computed in training,
in that of the large network (its own training is in that of all that go on from it).

Goes on where it stopped when started again with the same --output. Ten minutes a seed on a loaded core; --quick
shows within a minute that it works, not how well.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from cifar10_cnn import EXAMPLE, SIDE, images, network
from digits_mlp import mean_and_error
from report import report
from rich.progress import track
from torch import Tensor, nn

from compress.pruning import above_threshold, global_threshold, prune_channels
from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.strategies.evolution import Evolution, EvolutionConfig
from supernet.artifacts.atomic import write_json
from supernet.channels import trace
from supernet.channels.importance import channel_scores
from supernet.costs import count_macs
from supernet.evaluation import accuracy, calibrated_subnet
from supernet.families.traced.models import from_model
from supernet.skeleton import copy_to
from supernet.training.cohort import train_models
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig
from supernet.training.step import TrainConfig
from supernet.training.train import train

SIZE = (3, SIDE, SIDE)
PART = 0.5  # of the MACs
ARMS = ("large", "finetuned", "scratch_e", "scratch_b", "recipe")
FRACTIONS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)  # widths of the supernet
EXECUTION = Execution("cpu", eval_epochs=0, log_steps=50, keep_checkpoints=1)


@dataclass(frozen=True)
class Budget:
    images: int
    held_out: int
    epochs: int
    seeds: int
    evaluations: int


FULL, QUICK = Budget(3000, 500, 16, 3, 60), Budget(256, 64, 2, 1, 4)


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with cifar10/train.tar and cifar10/val.tar."""
    output: Path = Path("runs/rethinking")
    """Folder for the runs and their results."""
    seeds: int | None = None
    """Seeds instead of three."""
    quick: bool = False
    """Few images and epochs: shows that it works, not how well."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    budget = QUICK if arguments.quick else FULL
    if arguments.seeds is not None:
        budget = dataclasses.replace(budget, seeds=arguments.seeds)
    output = arguments.output / ("quick" if arguments.quick else "full")
    data = images_of(arguments.data, budget)
    results = []
    for seed in track(range(budget.seeds), "Seeds"):
        path = output / str(seed) / "result.json"
        if not path.exists():
            result = result_of(seed, data, budget, path.parent)
            write_json(path, result, indent=None)
        results.append(json.loads(path.read_text()))
    rows, summary = rows_of(results), {}
    for row in rows:
        summary[f"accuracy_{row['arm']}"] = row["test accuracy (%)"]
    for arm in ("scratch_e", "scratch_b", "recipe"):
        gains = [100 * (result[arm]["accuracy"] - result["finetuned"]["accuracy"]) for result in results]
        summary[f"{arm}_over_finetuned"], error = mean_and_error(gains)
        if len(gains) > 1:
            summary[f"{arm}_over_finetuned_error"] = error
    report(rows, summary, arguments.json, budget=dataclasses.asdict(budget))


def result_of(seed: int, data: ImageData, budget: Budget, folder: Path) -> dict[str, dict[str, float]]:
    """For each arm the accuracy on test images, its MACs as a part of the large network's, and its training compute in
    that of the large network."""
    models: dict[str, nn.Module] = {}
    compute = dict.fromkeys(ARMS, 1.0)
    large = models["large"] = trained(network(seed), "large", seed, data, budget, folder)
    macs = count_macs(large, SIZE)
    keep = widths_of(large, PART * macs)
    pruned = prune_channels(copy_to(large, torch.device("cpu")), EXAMPLE, keep)
    part = count_macs(pruned, SIZE) / macs
    tuning = {"epochs": max(budget.epochs // 4, 1), "lr": 0.04}
    models["finetuned"] = trained(pruned, "finetuned", seed, data, budget, folder, **tuning)
    compute["finetuned"] += part * tuning["epochs"] / budget.epochs
    for arm, epochs in (("scratch_e", budget.epochs), ("scratch_b", round(budget.epochs / part))):
        fresh = network(seed + 1000)
        fresh = prune_channels(fresh, EXAMPLE, keep, {})  # leading channels of a fresh network: as drawn
        models[arm] = trained(fresh, arm, seed, data, budget, folder, epochs=epochs)
        compute[arm] = part * epochs / budget.epochs
    subnet, spent = searched(large, PART * macs, seed, data, budget, folder)
    models["recipe"] = trained(subnet, "recipe", seed, data, budget, folder, **tuning)
    own = count_macs(subnet, SIZE) / macs
    compute["recipe"] += spent / (budget.epochs * macs) + own * tuning["epochs"] / budget.epochs
    batches = list(data.evaluation_batches(data.test, SIDE))
    return {
        arm: {
            "accuracy": accuracy(models[arm].eval(), batches),
            "macs_part": count_macs(models[arm], SIZE) / macs,
            "compute": compute[arm],
        }
        for arm in ARMS
    }


def widths_of(model: nn.Module, limit: float) -> dict[str, int]:
    """How many channels of each layer are above the lowest threshold of L1 norms, each divided by its layer's mean, at
    which the network keeps within `limit` MACs."""
    scores: dict[str, Tensor] = channel_scores(model, trace(model, EXAMPLE).channels, "l1")

    def is_admissible(threshold: float) -> bool:
        with torch.device("meta"):
            smaller = copy_to(model, torch.device("meta"))
            smaller = prune_channels(smaller, EXAMPLE, above_threshold(scores, threshold), {})
        return count_macs(smaller, SIZE) <= limit

    threshold = global_threshold(scores, is_admissible)
    assert threshold is not None
    return above_threshold(scores, threshold)


def searched(
    large: nn.Module, limit: float, seed: int, data: ImageData, budget: Budget, folder: Path
) -> tuple[nn.Module, float]:
    """The best subnet within the limit of the supernet that the large network is the largest subnet of; and the MACs an
    image that its training took, over all epochs, by those of the largest and the smallest and twice the mean of
    random subnets."""

    def weights() -> nn.Module:
        return copy_to(large, torch.device("cpu"))

    family = from_model(lambda: network(0), EXAMPLE, FRACTIONS, pretrained=weights)
    epochs = max(budget.epochs // 2, 1)
    config = TrainConfig(**vars(settings(seed, epochs, 0.08)))
    net = train(family, family.supernet(), data, config, folder / "supernet", EXECUTION, resume=True).eval()
    calibration = data.calibration_images(SIDE, min(budget.images, 1000), seed)
    held_out = list(data.evaluation_batches(data.holdout, SIDE))

    def score(archs):
        return [accuracy(calibrated_subnet(net, arch, SIDE, calibration), held_out) for arch in archs]

    costs = {"macs": lambda archs: [family.macs(arch) for arch in archs]}
    problem = Problem(family.space, ["accuracy"], costs, {"macs": limit})
    strategy = Evolution(problem, seed, EvolutionConfig(max(budget.evaluations // 4, 2)))
    found = ask_and_tell(problem, strategy, evaluate_here({"accuracy": score}), budget.evaluations)
    best = max(found.front, key=lambda evaluation: evaluation.scores["accuracy"])
    draw = np.random.default_rng(seed)
    random = np.mean([family.macs(family.space.sample(draw)) for _ in range(100)])
    a_step = family.macs(family.space.largest) + family.macs(family.space.smallest) + config.random_subnets * random
    return net.extract(best.arch), epochs * a_step


def trained(
    model: nn.Module,
    arm: str,
    seed: int,
    data: ImageData,
    budget: Budget,
    folder: Path,
    epochs: int | None = None,
    lr: float = 0.4,
) -> nn.Module:
    config = settings(seed, epochs or budget.epochs, lr)
    (result,) = train_models([model], [SIDE], data, config, folder / arm, execution=EXECUTION, resume=True)
    return result.eval()


def settings(seed: int, epochs: int, lr: float) -> LoopConfig:
    return LoopConfig(
        epochs=epochs,
        batch_size=64,
        lr=lr,
        weight_decay=5e-4,
        warmup_epochs=min(1.0, epochs / 8),
        label_smoothing=0.0,
        seed=seed,
    )


def images_of(folder: Path, budget: Budget) -> ImageData:
    """So many for training and others, of the training images too, to search by."""
    data = images(folder, budget.images)
    held_out = [data.holdout[index] for index in range(min(budget.held_out, len(data.holdout)))]
    return dataclasses.replace(data, holdout=held_out)


def rows_of(results: list[dict[str, dict[str, float]]]) -> list[dict[str, object]]:
    rows = []
    for arm in ARMS:
        mean, error = mean_and_error([100 * result[arm]["accuracy"] for result in results])
        rows.append(
            {
                "arm": arm,
                "seeds": len(results),
                "test accuracy (%)": mean,
                "standard error": error if len(results) > 1 else "-",
                "MACs of the large": float(np.mean([result[arm]["macs_part"] for result in results])),
                "training compute": float(np.mean([result[arm]["compute"] for result in results])),
            }
        )
    return rows


if __name__ == "__main__":
    main()
