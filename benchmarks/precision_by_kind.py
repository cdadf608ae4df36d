"""Where may precision be low in a text encoder? What it loses with the weights of one kind of layer in few bits.

    python benchmarks/precision_by_kind.py [--quick] [--json FILE] [--data ../shared/data --output runs/mixers]

The encoders of `mixers.py` with attention of their own in all four blocks, which are read if they are there. Of
each kind alone, queries, keys, values, outputs of attention, MLPs, normalisations, embeddings and the classifier,
weights are rounded to 8, 4, 3 and 2 bits, a step a row; activations and all else stay in float. Points lost are on the
tested news, on which nothing is chosen, with the standard error over the seeds; divergences are in nats.

Three minutes of one core, and a minute more if the encoders are there.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro
from mixers import Arguments, family_of, trained
from news import LENGTH
from report import report

from compress.kinds import KindSensitivity, kind_sensitivities

BITS = (8, 4, 3, 2)


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        measure(dataclasses.replace(arguments, seeds=1, epochs=1, dim=32, output=Path(folder)))


def measure(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    family = family_of(arguments.dim, LENGTH)
    found: dict[tuple[str, int], list[KindSensitivity]] = {}
    for seed in range(arguments.seeds):
        model, data = trained(family, "own", seed, arguments)
        batches = list(data.evaluation_batches(data.test, None))
        for own in kind_sensitivities(model, batches, family.task, BITS):
            found.setdefault((own.kind, own.bits), []).append(own)
    rows, summary = [], {}
    for kind in dict.fromkeys(kind for kind, _ in found):
        row: dict[str, object] = {"kind": kind, "weights": found[kind, BITS[0]][0].weights}
        for bits in BITS:
            own = found[kind, bits]
            points = [one.points for one in own]
            error = f" ± {stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else ""
            row[f"points lost, {bits} bits"] = f"{mean(points):.2f}{error}"
            row[f"nats, {bits} bits"] = mean(one.divergence for one in own)
            summary[f"points_{kind}_{bits}"] = mean(points)
        rows.append(row)
    report(rows, summary, arguments.json, seeds=arguments.seeds, epochs=arguments.epochs, dim=arguments.dim)


if __name__ == "__main__":
    main()
