"""Judging what searches handed in: each architecture once, however many handed it in, and kept as it comes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from search.comparison.yardsticks import Yardstick
from search.evaluator import Evaluator, Scored
from search.history import Evaluation, History
from search.loop import ask_and_tell
from search.parallel import RayEvaluator, ray_running, room
from search.problem import Cost, Problem
from search.settings import SAID_ANEW
from search.strategies.given_order import GivenOrder
from supernet.space import Arch, SearchSpace


def judged(
    archs: Sequence[Arch],
    yardstick: Yardstick,
    space: SearchSpace,
    costs: Mapping[str, Cost],
    evaluate: Evaluator,
    history: Path,
    storage: str | None = None,
    on_evaluation: Callable[[Evaluation, int], None] | None = None,
) -> tuple[dict[Arch, float], list[Evaluation]]:
    """The values of architectures, and those that failed.

    What the yardstick knows is not evaluated, nor what is in `history`, where every evaluation is written with its
    `costs` as soon as it ends, unless it failed, or in its `storage` (`History`). `evaluate` is called for the others
    at once, if there are any.
    ValueError if the history is of another yardstick, but for settings that may be said anew.
    """
    missing = [arch for arch in dict.fromkeys(archs) if arch not in yardstick.known]
    values = dict(yardstick.known)
    if not missing:
        return values, []
    problem = Problem(space, [yardstick.name], costs)
    settings = problem.describe() | json.loads(json.dumps(yardstick.settings))
    with History(history, settings, resume=True, said_anew=SAID_ANEW, storage=storage) as record:
        record.past = {arch: evaluation for arch, evaluation in record.past.items() if not evaluation.error}
        result = ask_and_tell(
            problem,
            GivenOrder(iter(missing), len(missing)),
            evaluate,
            len(missing),
            history=record,
            on_evaluation=on_evaluation,
        )
    values |= {e.arch: e.scores[yardstick.name] for e in result.evaluations if not e.error}
    return values, [evaluation for evaluation in result.evaluations if evaluation.error]


def on_workers(
    yardstick: Yardstick,
    space: SearchSpace,
    workers: int | None = None,
    threads: int = 1,
    gpus: float = 0,
    address: str | None = None,
) -> Evaluator:
    """The evaluator that judges on Ray workers, started when it is called: as many as are given, or as the CPUs and
    GPUs allow, but no more than there are architectures; see `RayEvaluator`."""

    def evaluate(archs: Sequence[Arch]) -> Iterator[Scored]:
        with ray_running(address, workers and workers * threads):
            import ray

            count = min(workers or room(ray.cluster_resources(), threads, gpus), len(archs))
            scores = {yardstick.name: yardstick.score}
            with RayEvaluator(space, scores, count, threads, gpus, together=yardstick.together) as ray_evaluator:
                yield from ray_evaluator(archs)

    return evaluate
