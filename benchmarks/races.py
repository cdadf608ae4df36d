"""What races save a search, and what they cost it in what it finds, on spaces all of whose networks were trained.

    python benchmarks/races.py [--quick] [--json FILE]

Evolution searches NAS-Bench-Macro (Su et al., CVPR 2021) and NAS-Bench-201 (Dong & Yang, ICLR 2020) by the answers that
networks give to held-out examples, with races (`search.racing`) of each confidence and without any, from the same
seeds. Answers are simulated: how hard an example is, a number between 0 and 1, is drawn once for all networks, but for
one in five of a network's answers anew, and a network is right about what is easier than its published accuracy on
CIFAR-10. Two networks of 93 % then disagree about 5 in 100 examples.

Two questions: the network within the median of MACs that the search takes for the best (`limit`), and its front of
accuracy and MACs (`front`). Regret is what its choice lacks by published accuracies, in percentage points: to the best
within the limit, or in hypervolume to that of all networks. `± more` is how much larger it is than without races, from
the same seeds, and the standard error of that. `images` are those that judged an architecture, in the mean. A quarter
of an hour on one core. Every search is kept in --output as it ends, and not run again.
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
from lookup_search import TABLES, Table, read_table
from report import report
from rich.progress import track

from search.evaluator import Evaluator, Scored
from search.loop import ask_and_tell
from search.problem import Problem
from search.racing import Racing
from search.scores.accuracy import Judged
from search.strategies import make_strategy
from supernet import Arch

OWN = 0.2  # part of a network's answers that the example's hardness does not decide


@dataclass(frozen=True)
class Arguments:
    data: Path = Path("../shared/data")
    """Folder with accuracy/nasbench_macro_cifar10.csv.gz and accuracy/nasbench201_cifar10.csv.gz."""
    confidences: tuple[float, ...] = (0.5, 0.9, 0.99)
    """Of races."""
    seeds: int = 20
    """Searches of each question."""
    examples: int = 10_000
    """Held-out examples that judge, as many as a search takes unless told otherwise."""
    evaluations: int = 400
    """Architectures that a search evaluates."""
    population: int = 100
    """Of these in a generation."""
    output: Path = Path("runs/races.jsonl")
    """File of the searches that have ended."""
    quick: bool = False
    """Two seeds of NAS-Bench-Macro, one confidence, 1,000 examples and 60 evaluations."""
    json: Path | None = None
    """File for the result."""


class Key(NamedTuple):
    """What the outcome of a search follows from."""

    table: str
    limit: float | None
    race: float | None
    seed: int
    examples: int
    evaluations: int
    population: int


class Outcome(NamedTuple):
    regret: float
    images: float  # that judged an architecture, in the mean
    rejected: float  # part of the architectures


class Answers:
    """What the networks of a table make of simulated examples, 1 for right and 0 for wrong; counts what it is asked."""

    def __init__(self, accuracy: Mapping[Arch, float], examples: int, seed: int) -> None:
        self._accuracy = accuracy
        self._seed = seed
        self._hardness = np.random.default_rng(seed).random(examples)
        self._number = {arch: index for index, arch in enumerate(accuracy)}
        self.looked_at = 0

    def __call__(self, archs: Sequence[Arch], examples: np.ndarray) -> Iterator[Scored]:
        self.looked_at += len(archs) * len(examples)
        for index, arch in enumerate(archs):
            own = self.of(arch)[examples]
            yield Scored(index, {"accuracy": Judged(float(own.mean()), own)})

    def of(self, arch: Arch) -> np.ndarray:
        draw = np.random.default_rng([self._seed, self._number[arch]])
        count = len(self._hardness)
        hardness = np.where(draw.random(count) < OWN, draw.random(count), self._hardness)
        return (hardness < self._accuracy[arch] / 100).astype(float)

    def all_examples(self, archs: Sequence[Arch]) -> Iterator[Scored]:
        """By every example, as a search judges without races."""
        for scored in self(archs, np.arange(len(self._hardness))):
            yield scored._replace(scores={"accuracy": scored.scores["accuracy"].score})


def main() -> None:
    arguments, tables = tyro.cli(Arguments, description=__doc__), TABLES
    if arguments.quick:
        tables = {"macro": TABLES["macro"]}
        output = arguments.output.with_name(f"quick_{arguments.output.name}")
        small = {"confidences": (0.5,), "seeds": 2, "examples": 1000, "evaluations": 60, "population": 20}
        arguments = dataclasses.replace(arguments, output=output, **small)
    known = read(arguments.output)
    rows, summary = [], {}
    for table_name, space in tables.items():
        table = read_table(space, arguments.data)
        limits = {"limit": float(np.median(list(table.macs.values()))), "front": None}
        for question, limit in limits.items():
            found = {
                race: outcomes(table_name, table, limit, race, arguments, known)
                for race in (None, *arguments.confidences)
            }
            for race, own in found.items():
                regrets, images, rejected = np.array(own).T
                more = regrets - np.array(found[None])[:, 0]
                rows.append(
                    {
                        "table": table_name,
                        "question": question,
                        "race": race or "none",
                        "images": float(images.mean()),
                        "rejected": float(rejected.mean()),
                        "regret": float(regrets.mean()),
                        "±": standard_error(regrets),
                        "more": float(more.mean()),
                        "± more": standard_error(more),
                    }
                )
                summary |= {
                    f"{what}_{table_name}_{question}_{race or 'none'}": rows[-1][what] for what in ("images", "more")
                }
    settings = {name: getattr(arguments, name) for name in ("seeds", "examples", "evaluations", "population")}
    report(rows, summary, arguments.json, **settings)


def outcomes(
    name: str, table: Table, limit: float | None, race: float | None, arguments: Arguments, known: dict[Key, Outcome]
) -> list[Outcome]:
    """Of searches with every seed."""
    found = []
    for seed in track(range(arguments.seeds), f"{name}, {'limit' if limit else 'front'}, race {race}"):
        key = Key(name, limit, race, seed, arguments.examples, arguments.evaluations, arguments.population)
        if key not in known:
            known[key] = search(table, key)
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with arguments.output.open("a") as file:
                file.write(json.dumps([key, known[key]]) + "\n")
        found.append(known[key])
    return found


def search(table: Table, key: Key) -> Outcome:
    problem = table.problem(key.limit)
    answers = Answers(table.accuracy, key.examples, key.seed)
    evaluate: Evaluator = answers.all_examples
    if key.race is not None:
        evaluate = Racing(problem, answers, key.examples, key.race, key.seed)
    strategy = make_strategy("evolution", problem, key.seed, key.population)
    result = ask_and_tell(problem, strategy, evaluate, key.evaluations)
    chosen = [evaluation.arch for evaluation in result.front]
    best = problem.hypervolume(table.values(problem))
    rejected = [evaluation.rejected is not None for evaluation in result.evaluations]
    count = len(result.evaluations)
    return Outcome(best - published(table, problem, chosen), answers.looked_at / count, float(np.mean(rejected)))


def published(table: Table, problem: Problem, archs: Sequence[Arch]) -> float:
    """The hypervolume of networks by their published accuracies; with one objective, the accuracy of the best."""
    return problem.hypervolume(problem.values(np.array([table.scores(archs)]).T, problem.price(archs)))


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / len(values) ** 0.5)


def read(path: Path) -> dict[Key, Outcome]:
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {Key(*key): Outcome(*outcome) for key, outcome in lines}


if __name__ == "__main__":
    main()
