"""How often a piece of a subnet meets a shape that it knows, by the number of steps for which resolutions stay.

    python benchmarks/graph_reuse.py [--quick] [--json FILE]

A layer is slow the first time that a GPU runs it on a shape, and `--step graphs` records a piece for each shape.
Counted here, on any machine and without running anything: the subnets of a training's first steps by the sandwich rule,
their pieces, and the pixels that each gets. A piece runs as it is the first time that it meets a shape, is recorded the
second time, and replayed from then on unless its graph was dropped, the least recently used first, as more than `kept`
are held.
Half a minute; --quick a tenth of it.

new          calls of pieces on a shape that they have not met, which cuDNN looks for kernels for
recorded     calls that record a graph
replayed     calls that replay one
steady       the same in the last quarter of the steps
new_at_most  the most new calls in one step after the first hundred
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from report import report

from supernet.families import FAMILIES, Family
from supernet.skeleton import build_skeleton
from supernet.training.methods.resolutions import ResolutionRuns
from supernet.training.methods.sampling import Sandwich, Step
from supernet.training.randomness import Stream, generator


@dataclass(frozen=True)
class Arguments:
    space: str = "ofa_mobilenet_v3"
    """Search space."""
    steps: int = 4000
    """Steps of the training."""
    resolution_steps: tuple[int, ...] = (1, 10, 50, 200, 1000)
    """Steps for which resolutions stay."""
    kept: tuple[int, ...] = (1000, 10000)
    """Graphs that are held at a time."""
    random_subnets: int = 2
    """Random subnets a step."""
    quick: bool = False
    """A tenth of the steps."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    family = FAMILIES[arguments.space]()
    steps = arguments.steps // 10 if arguments.quick else arguments.steps
    pixels = {size: pixels_of(family, size) for size in family.space.choices["resolution"].values}
    rows = []
    for resolution_steps in arguments.resolution_steps:
        calls = list(calls_of(family, pixels, resolution_steps, steps, arguments.random_subnets))
        rows += [{"resolution_steps": resolution_steps, "kept": kept} | counted(calls, kept) for kept in arguments.kept]
    summary = {f"replayed_{row['resolution_steps']}_{row['kept']}": row["replayed"] for row in rows}
    report(rows, summary, arguments.json, space=arguments.space, steps=steps, random_subnets=arguments.random_subnets)


def pixels_of(family: Family, size: int) -> dict[str, Hashable]:
    """By the name of a piece, the pixels of what it gets of images of `size`."""
    largest = family.space.largest
    skeleton, found = build_skeleton(family.build, largest).eval(), {}
    for name in family.pieces(largest):
        module = skeleton.get_submodule(name)
        module.register_forward_pre_hook(lambda _, inputs, name=name: found.update({name: inputs[0].shape[2:]}))
    with torch.no_grad():
        skeleton(torch.empty(1, family.in_chans, size, size, device="meta"))
    return found


def calls_of(
    family: Family, pixels: dict, resolution_steps: int, steps: int, random_subnets: int
) -> Iterator[list[Hashable]]:
    """By step, what each call of a piece is determined by: the piece and the pixels that it gets."""
    runs, method = ResolutionRuns(family.space, resolution_steps, 0), Sandwich(family.space, random_subnets)
    for number in range(steps):
        draw = generator(0, Stream.SUBNETS, number)
        step = Step(number, 0, 0.0, draw, None, None, family.task, None, 0.1, part=runs.space_of(number))
        yield [
            (name, piece, pixels[learner.arch["resolution"]][name])
            for learner in method.learners(step)
            for name, piece in family.pieces(learner.arch).items()
        ]


def counted(calls: list[list[Hashable]], kept: int) -> dict[str, float]:
    """What becomes of the calls, as a part of all, where `kept` graphs are held."""
    met: set[Hashable] = set()
    graphs: OrderedDict[Hashable, None] = OrderedDict()
    by_step = []
    for keys in calls:
        new = recorded = 0
        for key in keys:
            if key in graphs:
                graphs.move_to_end(key)
            elif key not in met:
                met.add(key)
                new += 1
            else:
                recorded += 1
                graphs[key] = None
                if len(graphs) > kept:
                    graphs.popitem(last=False)
        by_step.append((new, recorded, len(keys) - new - recorded, len(keys)))
    found = np.array(by_step)
    parts, steady = (rows.sum(0) / rows[:, 3].sum() for rows in (found, found[-len(found) // 4 :]))
    return {
        **dict(zip(("new", "recorded", "replayed"), parts.tolist())),
        **dict(zip(("steady new", "steady recorded", "steady replayed"), steady.tolist())),
        "new_at_most": int(found[100:, 0].max()),
        "shapes": len(met),
    }


if __name__ == "__main__":
    main()
