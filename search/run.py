"""A search of a supernet or of a space: its problem, score and strategy, made from its settings, and the loop run."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from predictors import LatencyPredictor
from predictors.device import BITS
from predictors.latency import file_of
from predictors.quantities import FURTHER, LATENCY, cost_name
from search.counts import COUNTS, count, is_count
from search.evaluator import Evaluator, EvaluatorOfParts, evaluate_here
from search.history import Evaluation, History
from search.judgements import Judgements
from search.limits import reachable
from search.loop import Generation, Result, Strategy, ask_and_tell
from search.parallel import RayEvaluator
from search.problem import Cost, Problem, placed
from search.racing import Racing
from search.scores.accuracy import Judged, SupernetScore, WithExamples
from search.scores.judges import Judge, held_out_count, make_judge, settled
from search.settings import ACCURACY, AKD, ENSEMBLE, SAID_ANEW, SearchJob
from search.strategies import GLOBAL_THRESHOLD, make_strategy
from search.strategies.given_order import GivenOrder
from search.strategies.global_threshold import importance_of, thresholded
from supernet.artifacts.runs import Run
from supernet.families import Family
from supernet.space import Arch
from supernet.training import randomness
from supernet.training.execution import pick_device, tf32, worker_device

logger = logging.getLogger(__name__)


class SearchOutcome(NamedTuple):
    result: Result
    strategy: Strategy
    retried: list[str]  # what Ray workers that died made necessary
    judged: Mapping[Arch, Judged] = MappingProxyType({})  # the front, example by example
    confirmed: Mapping[Arch, Judged] = MappingProxyType({})  # the front, on fresh examples


def run_search(
    job: SearchJob,
    trained: Run,
    predictors: Mapping[str, LatencyPredictor],
    history: Path | None = None,
    *,
    storage: str | None = None,
    judge: Judge | None = None,
    resume: bool = False,
    device: str = "auto",
    workers: int = 0,
    threads: int = 1,
    gpus_per_worker: float = 0,
    address: str | None = None,
    judge_front: bool = False,
    confirm: bool = False,
    on_evaluation: Callable[[Evaluation, int], None] | None = None,
    on_generation: Callable[[Generation], None] | None = None,
) -> SearchOutcome:
    """Search a finished training run, with latency predictors by the names of their devices. Scores that need no
    training see the run's data and space alone.

    `judge` is what the job's score makes of the run, if that is prepared already; by default it is made here and learns
    beside the history.

    Networks run on `device` (`supernet.training.execution.pick_device`), in single precision, where a search may go on
    that was begun on another: what they give is the same up to rounding. Afterwards the run's supernet is on the CPU.

    With `workers`, on so many Ray workers of `threads` threads each, in the cluster at `address` or on this machine;
    the result is the same. With `gpus_per_worker`, from 0 to 1, each has that part of a GPU, and networks run there.
    Evaluations are recorded in the file `history`, and in the `storage` if one is given, a folder or an address
    (s3://, ...); from either of them `resume` goes on.

    With `judge_front`, the front at the end is evaluated once more, if the score is by held-out examples, to know what
    each architecture makes of each example (`search.front` says of these how sure the front is). With `confirm`, it is
    judged anew by held-out examples that the search did not see: as many again as the job's `images`, or those that are
    left, and never the test examples. The best of many looks better than it is on the examples it was picked by, and on
    others does not.

    ValueError for a device that is not here, as `supernet.training.execution.worker_device` raises it, and if there is
    nothing to confirm by, before anything is evaluated.
    """
    here = pick_device(device)
    if workers:
        worker_device(device, gpus_per_worker)
    elif gpus_per_worker:
        raise ValueError(f"there are {gpus_per_worker:g} GPUs for each worker, but no workers: say how many")
    job = settled(job, trained)
    judge = judge or make_judge(job, trained, history and history.parent)
    if judge.examples is None:
        for name, what in (("race", "by some of which it could race"), ("amp", "which alone are judged in bfloat16")):
            if getattr(job, name) is not None:
                raise ValueError(f"the score {job.score} is not that of held-out examples, {what}")
    if confirm and judge.fresh is None:
        raise ValueError(f"the score {job.score} is not that of held-out examples, which others could confirm")
    fresh = judge.fresh() if confirm and judge.fresh else None
    problem = make_problem(job, trained.family, predictors, judge.worst, judge.name)
    reachable(problem, np.random.default_rng(0))  # before anything that takes long
    with ExitStack() as stack:
        record = None
        if history:
            record = stack.enter_context(History(history, describe(job, problem), resume, SAID_ANEW, storage))
        stack.enter_context(tf32(False))
        stack.callback(placed, judge.score, "cpu")
        placed(judge.score, here)
        judge.prepare()
        archs = judge.best_first(problem) if job.searches_by is None else None
        if job.searches_by == GLOBAL_THRESHOLD:
            importance, family = importance_of(trained.job), trained.family
            by_inputs = importance == "activations"
            inputs = family.ordering_inputs(trained.data, trained.job.train.seed) if by_inputs else ()
            archs = thresholded(problem, trained.net, family, importance, inputs)
        if archs is not None:
            strategy: Strategy = GivenOrder(archs, job.generation_size)
        else:
            strategy = make_strategy(job.searches_by or "evolution", problem, job.seed, job.generation_size)
        scores = {judge.name: judge.score if job.race is None else WithExamples(judge.examples)}
        evaluator: EvaluatorOfParts = evaluate_here(scores)
        if workers:
            judge.load()
            evaluator = stack.enter_context(
                RayEvaluator(problem.space, scores, workers, threads, gpus_per_worker, address)
            )
        evaluate: Evaluator = evaluator
        if job.race is not None:
            examples = held_out_count(job, trained)
            kept = None
            if record:
                kept = stack.enter_context(closing(Judgements(record)))
                if len(kept):
                    record.forget_last_generation()  # the race of which may not be over; what it has judged is kept
            past = record.past if record else {}
            evaluate = Racing(problem, evaluator, examples, job.race, job.seed, past, kept=kept)
        result = ask_and_tell(
            problem,
            strategy,
            evaluate,
            job.evaluations,
            history=record,
            on_evaluation=on_evaluation,
            on_generation=on_generation,
        )
        front = list(dict.fromkeys(evaluation.arch for evaluation in result.front))

        def judged(score: SupernetScore | None) -> dict[Arch, Judged]:
            if score is None or not front:
                return {}
            by_example = {judge.name: WithExamples(score)}
            again = evaluator.by(by_example) if workers else evaluate_here(by_example)
            found = list(again(front))
            score.to(here)  # which forgets what the subnets had in common
            if failed := [each for each in found if each.error]:
                logger.warning("how sure the front is stays unknown: judging it again failed: %s", failed[0].error)
                return {}
            return {front[each.index]: each.scores[judge.name] for each in found}

        return SearchOutcome(
            result,
            strategy,
            evaluator.retried if workers else [],
            judged(judge.examples if judge_front or confirm else None),
            judged(fresh),
        )


def prepared_judge(job: SearchJob, trained: Run, directory: Path, device: str = "auto") -> Judge:
    """The judge of a search, which has learnt on `device` what it is to learn, kept in `directory`; on the CPU, from
    where it may go to many searches."""
    judge = make_judge(job, trained, directory)
    with tf32(False):
        placed(judge.score, pick_device(device))
        judge.prepare()
        placed(judge.score, "cpu")
    return judge


def describe(job: SearchJob, problem: Problem) -> dict[str, object]:
    """What a history must agree on to be continued, but for `SAID_ANEW`: everything but how many evaluations there are
    to be. Scores other than accuracy draw random numbers of their own, so that the version of how these are drawn is in
    it, and what an ensemble is made of and how a student is trained count for these scores alone."""
    unused = ("evaluations", "limits", *(name for name in (ENSEMBLE, AKD) if name != job.score))
    fields = {name: value for name, value in dataclasses.asdict(job).items() if name not in unused}
    streams = {} if job.score == ACCURACY else {"streams": randomness.VERSION}
    settled = {"strategy": job.searches_by, "population": job.generation_size}
    return problem.describe() | fields | settled | streams


def load_predictors(
    directories: Sequence[Path], family: Family, further: Collection[str] = ()
) -> dict[str, LatencyPredictor]:
    """Latency predictors by the name of their device, and those of further costs whose names, as
    `predictors.quantities.cost_name` makes them, are among `further`; ValueError if two devices have one name, or a
    predictor is of another space."""
    predictors: dict[str, LatencyPredictor] = {}
    for directory in directories:
        predictor = LatencyPredictor.load(directory, family.space)
        device = predictor.device.name if predictor.device else directory.name
        if device in predictors:
            raise ValueError(f"two latency predictors are for the device {device!r}; the second is in {directory}")
        predictors[device] = predictor
        for quantity in FURTHER:
            if (name := cost_name(device, quantity)) in further and file_of(directory, quantity).is_file():
                predictors[name] = LatencyPredictor.load(directory, family.space, quantity)
    return predictors


def make_problem(
    job: SearchJob, family: Family, predictors: Mapping[str, LatencyPredictor], worst: float = 0.0, score: str = ""
) -> Problem:
    """The score and the costs of a family's architectures, with the job's limits; ValueError for a limit on an unknown
    cost.

    `worst` is the value of the score that the hypervolume counts from, `score` its name, by default the job's for it.
    """
    asked = [name for name in [*job.limits, *job.objectives] if is_count(name)]
    costs: dict[str, Cost] = {name: count(name, family) for name in ("macs", "parameters", *asked)}
    costs |= {name: predictor.cost for name, predictor in predictors.items()}
    for what, names in (("a limit on", job.limits), ("an objective", job.objectives)):
        if unknown := [name for name in names if name not in costs]:
            raise ValueError(
                f"{what} {unknown[0]!r}, which is no cost and no device with a latency predictor; there are "
                f"{', '.join(dict.fromkeys([*costs, *COUNTS]))}, and of bytes those at a precision, "
                f"such as activation_bytes.int8 ({', '.join(BITS)})"
            )
    latencies = tuple(name for name, predictor in predictors.items() if predictor.quantity == LATENCY)
    objectives = job.objectives or latencies or ("macs",)
    score = score or job.score
    return Problem(family.space, [score], costs, job.limits, [score, *objectives], {score: worst})
