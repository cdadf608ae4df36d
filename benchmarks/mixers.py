"""What lets tokens see each other, block by block: accuracy, bytes and measured latency of each mixer.

    python benchmarks/mixers.py [--quick] [--json FILE] [--data ../shared/data --output runs/mixers]

Encoders of four blocks learn AG's news, each alone, from nothing, with other splits for other seeds. The first block
has attention of its own. The others have it as well ("own"), reuse the first one's matrices (SAN), average their tokens
behind a gate (AAN), mix nothing, or, "own, one layer", have one set of weights for all four blocks (ALBERT). Latencies
are medians of ONNX files that take turns on one thread, a text of 48 and one of 192 tokens at a time. Standard errors
are over the seeds. Nothing is chosen.

Twenty minutes of a busy core; trainings are kept in OUTPUT, and go on. --quick has one seed, one epoch and small
networks.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
import tyro
from news import LENGTH, VOCABULARY, news, right, training
from report import report
from rich.progress import track
from torch import nn

from predictors import Device
from predictors.measuring.runtimes import onnx_timer
from supernet.artifacts.export import export_onnx
from supernet.families import FAMILIES, Family
from supernet.families.transformers.mixers import MIXERS
from supernet.space import Arch
from supernet.training.cohort import train_models
from supernet.training.data import Data, load_data
from supernet.training.execution import Execution

DEPTH = 4
VARIANTS = {"own": 4, "reused": 4, "average": 4, "none": 4, "own, one layer": 1}  # with the number of distinct layers
LONG = 192  # tokens of the longer text, of which latencies alone are measured


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Trainings with other splits and other weights."""
    epochs: int = 5
    """Passes over the training news."""
    dim: int = 64
    """Channels of the encoders."""
    rounds: int = 200
    """Turns of each file when it is timed."""
    data: Path = Path("../shared/data")
    """Folder with text/ag_news.csv.gz."""
    output: Path = Path("runs/mixers")
    """Folder for the trainings."""
    quick: bool = False
    """One seed, one epoch, small networks, few turns."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        measure(dataclasses.replace(arguments, seeds=1, epochs=1, dim=32, rounds=20, output=Path(folder)))


def measure(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    short, long = (family_of(arguments.dim, length) for length in (LENGTH, LONG))
    latencies = {length: latencies_ms(family, arguments.rounds) for length, family in ((LENGTH, short), (LONG, long))}
    accuracies: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    cells = [(variant, seed) for seed in range(arguments.seeds) for variant in VARIANTS]
    for variant, seed in track(cells, "Training"):
        model, data = trained(short, variant, seed, arguments)
        accuracies[variant].append(right(short, model, data).mean())
    rows = []
    for variant in VARIANTS:
        arch = arch_of(short, variant)
        drops = [own - other for own, other in zip(accuracies["own"], accuracies[variant])]
        rows.append(
            {
                "mixer": variant,
                "accuracy (%)": 100 * mean(accuracies[variant]),
                "below own": 100 * mean(drops),
                "its standard error": 100 * stdev(drops) / len(drops) ** 0.5 if len(drops) > 1 else 0.0,
                "parameters (M)": short.parameters(arch) / 1e6,
                "blocks (kB)": latencies[LENGTH][variant][1] / 1e3,
                "MACs (M)": short.macs(arch) / 1e6,
                f"ms, {LENGTH} tokens": latencies[LENGTH][variant][0],
                f"MACs (M), {LONG} tokens": long.macs(arch_of(long, variant)) / 1e6,
                f"ms, {LONG} tokens": latencies[LONG][variant][0],
            }
        )
    own = rows[0]
    summary = {
        f"{kind}_{row['mixer'].replace(', ', '_').replace(' ', '_')}": value
        for row in rows
        for kind, value in (
            ("accuracy", row["accuracy (%)"] / 100),
            (f"latency_of_own_at_{LONG}", row[f"ms, {LONG} tokens"] / own[f"ms, {LONG} tokens"]),
            ("bytes_of_own", row["blocks (kB)"] / own["blocks (kB)"]),
        )
    }
    report(rows, summary, arguments.json, seeds=arguments.seeds, epochs=arguments.epochs, dim=arguments.dim)


def family_of(dim: int, length: int) -> Family:
    return FAMILIES["text_encoder"](
        num_classes=4, vocabulary=VOCABULARY, length=length, embed_dim=[dim], depth=[DEPTH], num_heads=[dim // 32],
        mlp_ratio=[2], mixers=MIXERS, distinct_layers=[1, DEPTH],
    )  # fmt: skip


def arch_of(family: Family, variant: str) -> Arch:
    mixers = {f"blocks.{b}.mixer": variant.partition(",")[0] for b in range(1, DEPTH)}
    return family.space.validate({**family.space.largest, **mixers, "distinct_layers": VARIANTS[variant]})


def latencies_ms(family: Family, rounds: int) -> dict[str, tuple[float, int]]:
    """Of each variant the median milliseconds, and the bytes of its blocks' weights, each once."""
    example = tuple(
        torch.ones(1, tensor.shape[1], dtype=torch.int64) for tensor in family.example(family.space.largest)
    )
    with tempfile.TemporaryDirectory() as folder:
        timers, sizes = [], []
        for index, variant in enumerate(VARIANTS):
            model = family.build(arch_of(family, variant)).eval()
            path = Path(folder) / f"{index}.onnx"
            export_onnx(model, path, family.example(arch_of(family, variant)), names=family.task)
            sizes.append(sum(4 * parameter.numel() for parameter in model.blocks.parameters()))
            timers.append(onnx_timer(path, Device("here", "onnxruntime"), example))
        turns = [[timer(2)[1] for timer in timers] for _ in range(rounds)]
    return dict(zip(VARIANTS, zip(np.median(turns, axis=0).tolist(), sizes)))


def trained(family: Family, variant: str, seed: int, arguments: Arguments) -> tuple[nn.Module, Data]:
    """An encoder trained alone, and its data; from its folder if it was before."""
    data = load_data(news(arguments.data, seed), seed)
    torch.manual_seed(seed)
    model = family.build(arch_of(family, variant), drop_rate=0.1)
    folder = arguments.output / f"{variant.replace(', ', '-').replace(' ', '-')}-{arguments.epochs}-{seed}"
    (model,) = train_models(
        [model], [None], data, training(arguments.epochs, seed), folder, task=family.task,
        execution=Execution("cpu", eval_epochs=0), resume=folder.exists(),
    )  # fmt: skip
    return model.eval(), data


if __name__ == "__main__":
    main()
