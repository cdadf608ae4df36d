"""What the search engine itself costs: 100,000 architectures in a search whose scores and costs are predictors.

    python benchmarks/search.py [--quick] [--json FILE]

Multi-objective evolution in the Once-for-All MobileNetV3 space, with a limit, on one core. Accuracy and latency come
from linear functions of encoded architectures, as a predictor's would, and the time that these take is subtracted. All
in seconds of processor time. The parents of once_for_all are soon so much alike that of 33 children one is new, so it
proposes many at once. A minute; --quick proposes a tenth as many.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from report import report

from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.strategies import make_strategy
from supernet.families import FAMILIES
from supernet.space import Arch, SearchSpace


@dataclass(frozen=True)
class Arguments:
    architectures: int = 100_000
    """Architectures that are scored."""
    population: int = 100
    """Architectures in a generation."""
    strategies: tuple[str, ...] = ("evolution", "once_for_all", "random")
    """Strategies that are timed; the first one is the headline."""
    space: str = "ofa_mobilenet_v3"
    """Search space."""
    quick: bool = False
    """A tenth of the architectures, the first strategy alone."""
    json: Path | None = None
    """File for the result."""


class Linear:
    """A sum over choices of a weight for each value; keeps the time that it took."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        values = max(len(choice.values) for choice in space.choices.values())
        steps = np.random.default_rng(seed).random((len(space.choices), values + 1))
        self._weights = np.cumsum(steps, axis=1)  # more costs more
        self._space = space
        self.seconds = 0.0

    def __call__(self, archs: Sequence[Arch]) -> np.ndarray:
        begun = time.process_time()
        codes = self._space.encode(archs)
        result = self._weights[np.arange(codes.shape[1]), codes + 1].sum(axis=1)
        self.seconds += time.process_time() - begun
        return result


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    count = arguments.architectures // 10 if arguments.quick else arguments.architectures
    space = FAMILIES[arguments.space]().space
    torch.set_num_threads(1)
    rows = []
    for name in arguments.strategies[: 1 if arguments.quick else None]:
        accuracy, latency = Linear(space, 0), Linear(space, 1)
        limit = float(np.median(latency([space.sample(np.random.default_rng(i)) for i in range(100)])))
        latency.seconds = 0.0
        problem = Problem(space, ["accuracy"], {"latency_ms": latency}, {"latency_ms": limit})
        begun = time.process_time()
        result = ask_and_tell(
            problem,
            make_strategy(name, problem, 0, arguments.population),
            evaluate_here({"accuracy": accuracy}),
            count,
        )
        total = time.process_time() - begun
        predictors = accuracy.seconds + latency.seconds
        rows.append(
            {
                "strategy": name,
                "architectures": len(result.evaluations),
                "seconds": total,
                "in predictors (s)": predictors,
                "engine, seconds per 100,000": (total - predictors) * 100_000 / len(result.evaluations),
                "hypervolume": result.generations[-1].hypervolume,
            }
        )
    report(rows, {"seconds_per_100k": rows[0]["engine, seconds per 100,000"]}, arguments.json)


if __name__ == "__main__":
    main()
