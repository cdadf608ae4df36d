"""Does leaving early pay? Fixed depth, patience, entropy and confidence at equal expected latency.

    python benchmarks/exits.py [--quick] [--json FILE] [--seeds 3 --output runs/exits]

A vision transformer of six blocks learns scikit-learn's digits at 32 pixels, with an exit after each block, weighed by
depth. For each limit of the expected latency, a part of the latency of the whole network as it is without exits, each
kind of policy gets the exits and the threshold that are best on the held-out images; "fixed" is a network that ends
early. What was chosen is judged on the test images. Latencies are medians of the network's parts in torch on one
thread, of one image at a time; standard errors of accuracies are over the seeds. Two minutes of one core
for three seeds; --quick, which has one seed and a quarter of the epochs, ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import timm
import torch
import tyro
from report import report

from exits import Confidence, Entropy, ExitTask, Patience, candidates, choose, cumulative_ms, measure_parts, tradeoff
from exits.network import with_exits
from supernet.tasks import Classification
from supernet.training.cohort import train_models
from supernet.training.data import DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

SIZE, BLOCKS = 32, 6
PARTS = (0.4, 0.55, 0.7, 0.85)  # of the latency of the whole network
KINDS = {"fixed": (), "patience": (Patience,), "entropy": (Entropy,), "confidence": (Confidence,)}
DATA = DataConfig("digits", holdout=0.3, scale=(0.7, 1.0), hflip=0.0, color_jitter=0.0, crop_pct=1.0)


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Trainings with other seeds."""
    epochs: int = 20
    """Passes over the training images."""
    output: Path = Path("runs/exits")
    """Folder for the trainings."""
    quick: bool = False
    """One seed and a quarter of the epochs."""
    json: Path | None = None
    """File for the results."""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    seeds, epochs = (1, arguments.epochs // 4) if arguments.quick else (arguments.seeds, arguments.epochs)
    found = [judged(seed, epochs, arguments.output / f"{epochs}-{seed}") for seed in range(seeds)]
    rows = []
    for part in PARTS:
        for kind in KINDS:
            own = [by[part, kind] for by in found]
            accuracies = [tested.accuracy for tested in own]
            rows.append(
                {
                    "part of latency": part,
                    "policy": kind,
                    "accuracy": round(mean(accuracies), 4),
                    "standard error": round(stdev(accuracies) / seeds**0.5, 4) if seeds > 1 else "",
                    "mean ms": round(mean(tested.latency_ms for tested in own), 3),
                    "p95 ms": round(mean(tested.latency_p95_ms for tested in own), 3),
                }
            )
    summary = {
        f"accuracy_{row['policy']}_at_{row['part of latency']}": row["accuracy"]
        for row in rows
        if row["part of latency"] in (0.4, 0.55)
    }
    summary["accuracy_whole"] = round(mean(by["whole"].accuracy for by in found), 4)
    summary["latency_whole_ms"] = round(mean(by["whole"].latency_ms for by in found), 3)
    report(rows, summary, arguments.json, seeds=seeds, epochs=epochs)


def judged(seed: int, epochs: int, folder: Path) -> dict:
    """What each kind of policy gives on the test images within each part of the latency."""
    data = load_data(DATA, seed)
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, embed_dim=96, depth=BLOCKS, num_heads=3, num_classes=10
    )
    example = (torch.zeros(1, 3, SIZE, SIZE),)
    network = with_exits(model, [f"blocks.{index}" for index in range(BLOCKS - 1)], 10, example)
    config = LoopConfig(epochs=epochs, batch_size=64, opt="adamw", lr=4e-3, weight_decay=0.05, seed=seed)
    execution, task = Execution("cpu", eval_epochs=0), ExitTask(Classification(10))
    (network,) = train_models(
        [network], [SIZE], data, config, folder, task=task, execution=execution, resume=folder.exists()
    )
    latencies = measure_parts(network.eval(), example)
    held_out, labels = logits_of(network, data, data.holdout)
    tested, test_labels = logits_of(network, data, data.test)
    whole_ms = cumulative_ms(latencies, (BLOCKS - 1,))[0]
    by = {"whole": tradeoff(None, tested[:, -1:], test_labels, [whole_ms])}
    for part in PARTS:
        for kind, classes in KINDS.items():
            policies = [policy for policy in candidates(held_out) if isinstance(policy, classes)]
            chosen = choose(held_out, labels, latencies, part * whole_ms, policies)
            latency_ms = cumulative_ms(latencies, chosen.kept)
            by[part, kind] = tradeoff(chosen.found.policy, tested[:, chosen.kept], test_labels, latency_ms)
    return by


def logits_of(network: torch.nn.Module, data, part) -> tuple[np.ndarray, np.ndarray]:
    """The logits [N, E, K] and labels [N] of a part of the data."""
    images, labels = data.images(part, SIZE)
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in images.split(250)]).numpy(), labels.numpy()


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
