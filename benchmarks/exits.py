"""Does leaving early pay? Fixed depth, patience, entropy and confidence at equal expected latency.

    python benchmarks/exits.py [--quick] [--json FILE] [--seeds 3 --output runs/exits]
    python benchmarks/exits.py --what news --data ../shared/data --epochs 8 [--quick] [--json FILE]

A vision transformer of six blocks learns scikit-learn's digits at 32 pixels, or a text encoder of four AG's news, with
an exit after each block, weighed by depth. For each limit of the expected latency, a part of the latency of the whole
network as it is without exits, each kind of policy gets the exits and the threshold that are best on the held-out
examples; "fixed" is a network that ends early. What was chosen is judged on the test examples. Latencies are medians of
the network's parts in torch on one thread, of one example at a time, a text of 48 tokens; standard errors of accuracies
are over the seeds. Two minutes of one core for three seeds of digits; --quick, which has one seed and a quarter of the
epochs, ten seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Literal

import timm
import torch
import tyro
from news import LENGTH, VOCABULARY, news, training
from report import report

from exits import Exits, ExitTask, compare, cumulative_ms, measure_parts, tradeoff, with_exits
from exits.comparing import KINDS, answers
from supernet.families import FAMILIES
from supernet.tasks import Classification
from supernet.training.cohort import train_models
from supernet.training.data import Data, DataConfig, load_data
from supernet.training.execution import Execution
from supernet.training.loop.config import LoopConfig

SIZE, BLOCKS = 32, 6
PARTS = (0.4, 0.55, 0.7, 0.85)  # of the latency of the whole network
DATA = DataConfig("digits", holdout=0.3, scale=(0.7, 1.0), hflip=0.0, color_jitter=0.0, crop_pct=1.0)


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Trainings with other seeds."""
    epochs: int = 20
    """Passes over the training images."""
    output: Path = Path("runs/exits")
    """Folder for the trainings."""
    what: Literal["digits", "news"] = "digits"
    """What is learnt."""
    data: Path = Path("../shared/data")
    """Folder with text/ag_news.csv.gz."""
    quick: bool = False
    """One seed and a quarter of the epochs."""
    json: Path | None = None
    """File for the results."""


def main(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    seeds, epochs = (1, arguments.epochs // 4) if arguments.quick else (arguments.seeds, arguments.epochs)
    learn = digits if arguments.what == "digits" else partial(news_texts, arguments.data)
    name = "" if arguments.what == "digits" else f"{arguments.what}-"
    found = [judged(*learn(seed, epochs, arguments.output / f"{name}{epochs}-{seed}")) for seed in range(seeds)]
    rows = []
    for part, kind in product(PARTS, KINDS):
        own = [by[part, kind] for by in found if (part, kind) in by]
        if own:
            accuracies = [tested.accuracy for tested in own]
            rows.append(
                {
                    "part of latency": part,
                    "policy": kind,
                    "accuracy": round(mean(accuracies), 4),
                    "standard error": round(stdev(accuracies) / len(own) ** 0.5, 4) if len(own) > 1 else "",
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


def digits(seed: int, epochs: int, folder: Path) -> tuple[Exits, Classification, Data, int | None]:
    """A vision transformer with exits that has learnt digits, its task, its data and their size in pixels."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=SIZE, patch_size=8, embed_dim=96, depth=BLOCKS, num_heads=3, num_classes=10
    )
    after = [f"blocks.{index}" for index in range(BLOCKS - 1)]
    network = with_exits(model, after, 10, (torch.zeros(1, 3, SIZE, SIZE),))
    config = LoopConfig(epochs=epochs, batch_size=64, opt="adamw", lr=4e-3, weight_decay=0.05, seed=seed)
    return trained(network, Classification(10), load_data(DATA, seed), SIZE, config, folder)


def news_texts(place: Path, seed: int, epochs: int, folder: Path) -> tuple[Exits, Classification, Data, int | None]:
    """A text encoder likewise."""
    family = FAMILIES["text_encoder"](
        num_classes=4, vocabulary=VOCABULARY, length=LENGTH, embed_dim=[64], depth=[4], num_heads=[2], mlp_ratio=[2]
    )
    torch.manual_seed(seed)
    model = family.build(family.space.largest, drop_rate=0.1)
    network = with_exits(model, [f"blocks.{index}" for index in range(3)], 4, family.example(family.space.largest))
    return trained(network, family.task, load_data(news(place, seed), seed), None, training(epochs, seed), folder)


def trained(
    network: Exits, task: Classification, data: Data, size: int | None, config: LoopConfig, folder: Path
) -> tuple[Exits, Classification, Data, int | None]:
    (network,) = train_models(
        [network], [size], data, config, folder, task=ExitTask(task), execution=Execution("cpu", eval_epochs=0),
        resume=folder.exists(),
    )  # fmt: skip
    return network.eval(), task, data, size


def judged(network: Exits, task: Classification, data: Data, size: int | None) -> dict:
    """What each kind of policy gives on the test examples within each part of the latency."""
    example = torch.zeros(1, 3, size, size) if size else torch.zeros(1, LENGTH, dtype=torch.int64)
    latencies = measure_parts(network, (example,))
    parts = (data.holdout, data.test)
    held_out, tested = (answers(network, task, data.evaluation_batches(part, size)) for part in parts)
    whole_ms = cumulative_ms(latencies, (len(network.after),))[0]
    compared = compare(held_out, tested, latencies, [part * whole_ms for part in PARTS])
    by = {(round(one.limit_ms / whole_ms, 4), one.kind): one.judged for one in compared}
    return {"whole": tradeoff(None, tested[0][:, -1:], tested[1], [whole_ms]), **by}


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
