"""How few evaluations a search needs, on spaces all of whose networks were trained: regret by strategy.

    python benchmarks/lookup_search.py [--quick] [--json FILE]

Every strategy searches NAS-Bench-Macro (Su et al., CVPR 2021) and NAS-Bench-201 (Dong & Yang, ICLR 2020), an evaluation
being a look into the table of test accuracies on CIFAR-10, its cost the MACs. Two questions: the best network within a
limit on MACs, a quarter, a half and three quarters of the networks being within it, and the front of accuracy and MACs.
The regret within a limit is how far the best found is from the best that the table has, in percentage points, the mean
over the three limits. The regret of a front is the hypervolume that it lacks: the same, averaged over all limits up to
the MACs of the largest network. Means over seeds, with standard errors. Strategies choose among networks of the table
alone. The settings of strategies were chosen on seeds from 1000 on, those reported begin at 0. Every search is kept in
--output as it ends, and not run again. About a quarter of an hour on one core; on a busy one longer.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from published import published_accuracy
from report import report
from rich.progress import track

from search.evaluator import evaluate_here
from search.loop import Result, ask_and_tell
from search.problem import Problem
from search.strategies import STRATEGIES, make_strategy
from supernet import Arch
from supernet.families import FAMILIES
from supernet.space import SearchSpace

QUANTILES = (0.25, 0.5, 0.75)  # of the networks' MACs: the limits
TABLES = {"macro": "nasbench_macro", "201": "nasbench201"}
COUNTS = (25, 50, 100, 200)  # evaluations after which regret is reported
BAYESIAN_COUNTS = COUNTS[:-1]  # it is to do with half as many what others do


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with accuracy/nasbench_macro_cifar10.csv.gz and accuracy/nasbench201_cifar10.csv.gz."""
    strategies: tuple[str, ...] = tuple(STRATEGIES)
    """Strategies to compare."""
    seeds: int = 20
    """Searches of each question by each strategy."""
    first_seed: int = 0
    """The seeds begin here."""
    population: int = 20
    """Architectures in a generation."""
    output: Path = Path("runs/lookup_search.jsonl")
    """File of the searches that have ended."""
    quick: bool = False
    """Two seeds of NAS-Bench-Macro, and 50 evaluations."""
    json: Path | None = None
    """File for the result."""


class Table(NamedTuple):
    """What is known of a space's networks."""

    space: SearchSpace
    accuracy: Mapping[Arch, float]  # percent
    macs: Mapping[Arch, float]

    def problem(self, limit: float | None) -> Problem:
        """Networks within `limit` or, without one, the front; those that are not in the table cost too much."""
        largest = max(self.macs.values())
        costs = {"macs": lambda archs: [self.macs.get(arch, np.inf) for arch in archs]}
        if limit is None:
            return Problem(self.space, ["accuracy"], costs, {"macs": largest})
        return Problem(self.space, ["accuracy"], costs, {"macs": limit}, objectives=["accuracy"])

    def scores(self, archs: Sequence[Arch]) -> list[float]:
        return [self.accuracy[arch] for arch in archs]

    def values(self, problem: Problem) -> np.ndarray:
        """The objectives of all networks within the problem's limit."""
        archs = [arch for arch, macs in self.macs.items() if macs <= problem.limits["macs"]]
        return problem.values(np.array([self.scores(archs)]).T, problem.price(archs))


class Key(NamedTuple):
    """What the outcome of a search follows from."""

    table: str
    limit: float | None
    strategy: str
    seed: int
    population: int
    counts: tuple[int, ...]


class Outcome(NamedTuple):
    regrets: tuple[float, ...]  # after each of the counts
    seconds: float  # of the processor


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    tables, counts = TABLES, COUNTS
    if arguments.quick:
        tables, counts = {"macro": TABLES["macro"]}, COUNTS[:2]
        output = arguments.output.with_name(f"quick_{arguments.output.name}")
        arguments = dataclasses.replace(arguments, seeds=2, output=output)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    known = read(arguments.output)
    rows, summary = [], {}
    for table_name, space in tables.items():
        table = read_table(space, arguments.data)
        quantiles = np.quantile(list(table.macs.values()), QUANTILES).tolist()
        for question, limits in {"limit": quantiles, "front": [None]}.items():
            for name in arguments.strategies:
                found = []
                own_counts = tuple(count for count in counts if name != "bayesian" or count in BAYESIAN_COUNTS)
                for seed in track(range(arguments.seeds), f"{table_name}, {question}, {name}"):
                    for limit in limits:
                        key = Key(
                            table_name, limit, name, arguments.first_seed + seed, arguments.population, own_counts
                        )
                        if key not in known:
                            known[key] = search(table, key)
                            with arguments.output.open("a") as file:
                                file.write(json.dumps([key, known[key]]) + "\n")
                        found.append(known[key])
                regrets = np.array([outcome.regrets for outcome in found])
                regrets = regrets.reshape(arguments.seeds, len(limits), len(own_counts)).mean(axis=1)
                row: dict[str, object] = {"table": table_name, "question": question, "strategy": name}
                row |= {f"{what} at {count}": "" for count in counts for what in ("regret", "±")}
                for count, column in zip(own_counts, regrets.T):
                    row[f"regret at {count}"] = float(column.mean())
                    row[f"± at {count}"] = float(column.std(ddof=1) / len(column) ** 0.5)
                    summary[f"regret_{table_name}_{question}_{name}_{count}"] = float(column.mean())
                rows.append(row | {"seconds": float(np.mean([outcome.seconds for outcome in found]))})
    report(rows, summary, arguments.json, seeds=arguments.seeds, population=arguments.population)


def search(table: Table, key: Key) -> Outcome:
    problem = table.problem(key.limit)
    best = problem.hypervolume(table.values(problem))
    begun = time.process_time()
    strategy = make_strategy(key.strategy, problem, key.seed, key.population)
    result = ask_and_tell(problem, strategy, evaluate_here({"accuracy": table.scores}), key.counts[-1])
    seconds = time.process_time() - begun
    return Outcome(tuple(best - reached(result, count) for count in key.counts), seconds)


def read(path: Path) -> dict[Key, Outcome]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {Key(*key[:-1], tuple(key[-1])): Outcome(tuple(regrets), seconds) for key, (regrets, seconds) in lines}


def reached(result: Result, count: int) -> float:
    """The hypervolume of the first `count` evaluations; with one objective, the best accuracy."""
    return result.problem.hypervolume(result.values()[:count])


def read_table(name: str, data: Path) -> Table:
    family, accuracy = FAMILIES[name](), published_accuracy(name, data)
    return Table(family.space, accuracy, {arch: float(family.macs(arch)) for arch in accuracy})


if __name__ == "__main__":
    main()
