"""Many searches at once with Ray Tune: on this machine or a cluster, some stopped early, all to be resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from search import pareto
from search.history import Evaluation, read_history, write_history
from search.loop import Generation
from search.parallel import check_resources, ray_running
from search.table import write_csv
from supernet.artifacts.atomic import set_aside, write_atomically
from supernet.artifacts.ownership import owned
from supernet.artifacts.storage import beneath, is_address, shown
from supernet.own_code import modules_from_files

logger = logging.getLogger(__name__)

TrialSettings = Mapping[str, str | float]  # what tells a trial from others, such as strategy, device, limit, seed

# runs the search that the settings ask for, recording it in the history (which it resumes if it exists) and where that
# is stored, if anywhere (`History`), and calls the function after every generation; what trials share comes by name
SearchTrial = Callable[..., None]  # (TrialSettings, Path, str | None, Callable[[Generation], None], **shared)

HISTORY = "search.jsonl"
GENERATIONS = "generations.json"  # how many were reported
HISTORIES = "histories"
RUN = "training"
"""Folder of the run of a trial that trains, beside its histories."""
TRAINS = "method"
"""In the settings of trials that train a supernet each."""
_ACTIVE: ContextVar = ContextVar("the watcher of the sweep that runs")


class Trial(NamedTuple):
    settings: TrialSettings
    metrics: dict[str, float]  # of the last generation
    evaluations: list[Evaluation]
    error: str | None
    search: Mapping[str, object] = MappingProxyType({})  # what the trial's history says of the search
    seconds: float = math.nan  # that it ran, with those of earlier attempts up to their last generation


def _nothing_shared() -> Mapping[str, object]:
    return {}


class Sweep(NamedTuple):
    trials: list[Trial]
    retried: list[str]  # a line for every time that a trial was started again because its worker had died


def run_sweep(
    search: SearchTrial,
    trials: Sequence[TrialSettings],
    storage: str,
    name: str,
    *,
    resume: bool = False,
    threads: int = 1,
    gpus: float = 0,
    address: str | None = None,
    workers: int | None = None,
    grace_evaluations: int | None = None,
    max_failures: int = 3,
    prepare: Callable[[], Mapping[str, object]] = _nothing_shared,
    on_generation: Callable[[TrialSettings, Mapping[str, float]], None] | None = None,
) -> Sweep:
    """Run a search for each of `trials`, as many at a time as there are CPUs for `threads` each, and GPUs for the part
    `gpus` of one each, or `workers`.

    `storage` is a folder or an address that Ray writes to (s3://, ...); everything lies beneath `storage`/`name`. Each
    trial keeps its history there, written after every evaluation: a trial whose worker dies goes on from its history,
    up to `max_failures` times, and so does a sweep that was killed, with `resume`.

    What trials share, and takes long to make, is what `prepare` gives, by name. It is called once, when nothing speaks
    against the sweep, and goes through Ray's object store to every `search`.

    With `grace_evaluations`, ASHA (arXiv 1810.05934) stops trials of low hypervolume after so many evaluations, and
    again after every fourfold; otherwise all run to the end. Hypervolumes should then be comparable between trials.

    Uses the running Ray, or joins the cluster at `address`, or starts a local one. ValueError if this machine has no
    room for a trial, if there is nothing to resume or, without `resume`, a sweep of this name already, or if another
    process runs it. A sweep that failed before it evaluated anything is put aside.
    """
    storage = storage if is_address(storage) else str(Path(storage).absolute())
    with ExitStack() as stack:
        if is_address(storage):
            logger.warning("nobody looks whether another process runs the sweep %s, too", shown(beneath(storage, name)))
        else:
            stack.enter_context(owned(Path(storage), name))
        import ray
        from ray import tune

        path = beneath(storage, name)
        begun = tune.Tuner.can_restore(path)
        evaluated = is_address(storage) or any(
            begun
            for pattern in ("*/*.jsonl", f"*/{RUN}/config.json")
            for begun in (Path(path) / HISTORIES).glob(pattern)
        )
        if begun and not (evaluated or resume):
            logger.warning("a sweep that evaluated nothing is now in %s", set_aside(Path(path)))
            begun = False
        if begun and not resume:
            raise ValueError(f"{shown(path)} holds a sweep already: resume it, or choose another name")
        if resume and not begun:
            raise ValueError(f"{shown(path)} holds no sweep to resume")
        with ray_running(address, workers and workers * threads):
            if not address:  # where nobody adds a machine
                check_resources(ray.cluster_resources(), 1, threads, gpus)
            shared = prepare()
            for module in modules_from_files():  # workers, which may lack the files, get the code itself
                ray.cloudpickle.register_pickle_by_value(module)
            trial = tune.with_parameters(_trial, search=search, histories=beneath(path, HISTORIES), shared=shared)
            trainable = tune.with_resources(trial, {"cpu": threads, "gpu": gpus})
            watcher = _watcher(on_generation)
            _ACTIVE.set(watcher)
            param_space = {"settings": tune.grid_search([dict(settings) for settings in trials])}
            if begun:  # Tune does not keep the settings of trials that had not been made when the driver was killed
                tuner = tune.Tuner.restore(path, trainable, resume_errored=True, param_space=param_space)
            else:
                scheduler = None
                if grace_evaluations:
                    scheduler = tune.schedulers.ASHAScheduler(
                        time_attr="evaluated", max_t=10**9, grace_period=grace_evaluations, reduction_factor=4
                    )
                tuner = tune.Tuner(
                    trainable,
                    param_space=param_space,
                    tune_config=tune.TuneConfig(
                        metric="hypervolume",
                        mode="max",
                        scheduler=scheduler,
                        max_concurrent_trials=workers,
                        reuse_actors=True,
                    ),
                    run_config=tune.RunConfig(
                        name=name,
                        storage_path=storage,
                        failure_config=tune.FailureConfig(max_failures=max_failures),
                        checkpoint_config=tune.CheckpointConfig(num_to_keep=2),
                        callbacks=[watcher],
                        verbose=0,
                    ),
                )
            if not is_address(storage):  # where it would be hundreds of requests a generation
                # a driver that is killed forgets what trials did in its last ten seconds; Tune has no argument for it
                os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "0")
            results = tuner.fit()
            return Sweep([_finished(*found) for found in zip(watcher.settings, results, strict=True)], watcher.retried)


def write_sweep(
    sweep: Sweep,
    directory: Path,
    costs: Mapping[str, str],
    score: str,
    more: Callable[[TrialSettings], Mapping[str, str]] = lambda settings: {},
) -> None:
    """Write `trials.csv`, a row for each trial, its history as `trials/NUMBER.jsonl`, and for each device
    `front_DEVICE.csv`, the front over all its trials of the evaluations that have the `score`.

    `costs` gives, for each device that trials have in their settings, the cost that is traded off against it, `more`
    what else there is to say in the row of a trial with some settings.
    """
    rows = [
        {**t.settings, **more(t.settings), **t.metrics, "seconds": t.seconds, "failed_because": t.error or ""}
        for t in sweep.trials
    ]
    write_csv(directory / "trials.csv", rows)
    for number, trial in enumerate(sweep.trials):
        settings = {**trial.search, "trial": dict(trial.settings)}
        write_history(directory / "trials" / f"{number:04}.jsonl", settings, trial.evaluations)
    for device, cost in costs.items():
        write_csv(directory / f"front_{device}.csv", combined_front(sweep.trials, device, cost, score))


def combined_front(trials: Sequence[Trial], device: str, cost: str, score: str) -> list[dict[str, object]]:
    """The front of all trials on `device` by `score`, by increasing cost: a row with scores, costs, architecture and
    settings. Evaluations that lack the score are in no front. An architecture that several trials have evaluated is in
    it once, by the first of them, unless each has trained a supernet of its own."""
    found: dict[object, tuple[Evaluation, TrialSettings]] = {}
    for number, trial in enumerate(trials):
        trained = number if TRAINS in trial.settings else None
        if trial.settings.get("device") == device:
            for evaluation in trial.evaluations:
                if score in evaluation.scores:
                    found.setdefault((evaluation.arch, trained), (evaluation, trial.settings))
    members = list(found.values())
    if not members:
        return []
    values = np.array([[e.costs[cost], -e.scores[score]] for e, _ in members])
    return [
        {**e.scores, **e.costs, "arch": e.arch.to_json(), **settings}
        for e, settings in (members[index] for index in pareto.front(values))
    ]


def _trial(
    config: Mapping[str, TrialSettings], search: SearchTrial, histories: str, shared: Mapping[str, object]
) -> None:
    from ray import tune

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        past: list[Path] = []
        reported = 0
        if checkpoint := tune.get_checkpoint():
            with suppress(FileNotFoundError):  # replaced by one that a driver which was killed had not noted yet
                before = Path(stack.enter_context(checkpoint.as_directory()))
                reported = json.loads((before / GENERATIONS).read_text())
                past = [before / HISTORY]
        own = beneath(histories, hash_of(config["settings"]))
        history, stored = folder / "here" / HISTORY, own
        if not is_address(own):
            past += sorted(Path(own).glob("*.jsonl"))
            history, stored = Path(own) / f"{uuid.uuid4().hex}.jsonl", None
        _gather(past, history)
        kept = folder / "checkpoint"
        kept.mkdir()

        def report(generation: Generation) -> None:
            nonlocal reported
            if generation.index < reported:  # gone through again on the way back to where the trial was
                return
            reported = generation.index + 1
            (kept / GENERATIONS).write_text(json.dumps(reported))
            shutil.copy(history, kept / HISTORY)
            metrics = dataclasses.asdict(generation)
            best = {f"best_{name}": value for name, value in metrics.pop("best").items()}
            notes = metrics.pop("notes")
            tune.report(
                {"generation": metrics.pop("index"), **best, **notes, **metrics}, checkpoint=tune.Checkpoint(kept)
            )

        search(config["settings"], history, stored, report, **shared)


def folder_of(parent: Path, settings: Mapping[str, object]) -> Path:
    """The folder in `parent` of what follows from `settings` (JSON)."""
    return parent / hash_of(settings)


def hash_of(settings: Mapping[str, object]) -> str:
    """What names the folder of a trial: what it is a trial of, since Tune's name for it may not have been written when
    the driver was killed."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _gather(past: Sequence[Path], history: Path) -> None:
    """Begin the file `history` with what is in those of earlier attempts, to some of which one may still be writing."""
    lines: dict[bytes, None] = {}
    for path in past:
        text = path.read_bytes()
        lines |= dict.fromkeys(text[: text.rfind(b"\n") + 1].splitlines())
    if lines:
        history.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(history) as temporary:
            temporary.write_bytes(b"".join(line + b"\n" for line in lines))


def _watcher(on_generation: Callable[[TrialSettings, Mapping[str, float]], None] | None):
    from ray import tune

    class Watcher(tune.Callback):
        """Notes what Ray Tune does with the trials."""

        def __init__(self) -> None:
            self.retried: list[str] = []
            self.settings: list[TrialSettings] = []  # of the trials, which the results of one that never reported lack

        def __reduce__(self):
            return _active_watcher, ()  # a sweep that is restored reports to who restores it

        def on_trial_recover(self, iteration, trials, trial, **info) -> None:
            self.retried.append(f"retried after its worker died: {trial.config['settings']}")

        def on_experiment_end(self, trials, **info) -> None:
            self.settings = [trial.config["settings"] for trial in trials]

        def on_trial_result(self, iteration, trials, trial, result, **info) -> None:
            if on_generation:
                on_generation(trial.config["settings"], _metrics(result))

    return Watcher()


def _active_watcher():
    return _ACTIVE.get()


def _metrics(result: Mapping[str, object]) -> dict[str, float]:
    ours = ("generation", "evaluated", "failed", "hypervolume", "rank_correlation")
    return {name: value for name, value in result.items() if name in ours or name.startswith("best_")}


def _finished(settings: TrialSettings, result) -> Trial:
    search: Mapping[str, object] = {}
    evaluations: list[Evaluation] = []
    if result.checkpoint:
        with result.checkpoint.as_directory() as folder:
            search, evaluations = read_history(Path(folder) / HISTORY)
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    metrics = result.metrics or {}
    return Trial(settings, _metrics(metrics), evaluations, error, search, metrics.get("time_total_s", math.nan))
