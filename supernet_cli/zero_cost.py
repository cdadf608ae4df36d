"""Score random architectures of a space without training them.

    supernet zero-cost --space nasbench201 --scores ntk,regions,synflow
    supernet zero-cost --space mobilenet_v3_micro --scores synflow,naswot,macs --archs 50 --output scores.jsonl
    supernet zero-cost --space nasbench201 --scores vote --data.dataset folder --data.root images/

Prints the architectures by the mean rank of their scores (or by the ensemble `vote` or `te_nas`), the best first; every
score is signed so that higher is better, `ntk` is the negative condition number. 20 architectures of NAS-Bench-201 take
2 minutes on 2 cores with `ntk`, half a minute with the other scores above.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from rich.table import Table

from search.scores.judges import training_batch
from search.scores.untrained import ENSEMBLES, check_names, score_architecture
from search.untrained.ensemble import mean_rank
from search.untrained.proxies import PROXIES
from search.untrained.te_nas import TeNasConfig
from supernet.artifacts.atomic import write_atomically
from supernet.conditions import only_where
from supernet.families.named import make_family
from supernet.training.data import DataConfig, load_data
from supernet.training.data.named import only_images
from supernet.training.execution import Execution, pick_device, tf32
from supernet_cli.command_line import DeviceFlag, console, progress_bar
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    space: str = "nasbench201"
    """One of supernet.families.FAMILIES, or code of your own: package.module:function or path/to/file.py:function."""
    space_options: str = "{}"
    """Options of the space as a JSON object, such as {\"name\": \"resnet18\"} for from_timm."""
    scores: str = "synflow,naswot,jacob_cov"
    """Names with commas between them, of search.scores.untrained.NAMES, or vote or te_nas by itself."""
    archs: int = 20
    """Architectures to sample."""
    batch_size: int = 64
    """Images that the scores see at a time; ntk and regions draw from eight times as many."""
    te_nas: Annotated[TeNasConfig, only_where(scores=("te_nas",))] = field(default_factory=TeNasConfig)
    data: DataConfig = field(default_factory=DataConfig)
    workers: Annotated[int | None, tyro.conf.arg(name="data.workers")] = Execution.workers
    """Processes that load images; 0 loads in this one, None is as many as seem right."""
    device: DeviceFlag = Execution.device
    seed: int = 0
    """Architectures, weights and images follow from it."""
    output: Path | None = None
    """JSON lines with each architecture and its scores."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    for name in ("archs", "batch_size"):
        if getattr(arguments, name) < 2:
            raise ValueError(f"{name} is at least 2, not {getattr(arguments, name)}")
    device = pick_device(arguments.device)
    data = load_data(arguments.data, workers=arguments.workers)
    data = only_images(data, "a score without training", "train a supernet of this task, and search it")
    family = make_family(arguments.space, arguments.space_options, data.family_arguments)
    proxies = PROXIES[arguments.space](data.num_classes, family.in_chans) if arguments.space in PROXIES else None
    combine, names = ENSEMBLES.get(arguments.scores, (mean_rank, tuple(arguments.scores.split(","))))
    check_names(names, proxies)
    resolution = family.resolution(family.space.largest)
    batch = training_batch(data, resolution, arguments.batch_size, arguments.seed).to(device)
    generator = np.random.default_rng(arguments.seed)
    archs = [family.space.sample(generator) for _ in range(arguments.archs)]
    rows = []
    with progress_bar() as progress, tf32(False):
        task = progress.add_task("Scoring", total=len(archs), note="")
        for arch in archs:
            scores = score_architecture(family, names, arch, batch, arguments.seed, proxies, arguments.te_nas)
            rows.append(scores)
            progress.advance(task)
    combined = combine([[row[name] for row in rows] for name in names])
    order = np.argsort(-combined, kind="stable")
    table = Table("rank", *names, "architecture")
    for index in order:
        arch = ", ".join(map(str, archs[index].values()))
        table.add_row(f"{combined[index]:.3f}", *(f"{rows[index][name]:.5g}" for name in names), arch)
    console.print(table)
    if arguments.output:
        lines = [{"arch": dict(archs[i]), "rank": combined[i], **rows[i]} for i in order]
        with write_atomically(arguments.output) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))
        console.print(f"All scores are in {arguments.output}.")
