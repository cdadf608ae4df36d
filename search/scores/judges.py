"""What a search may judge architectures by, by name, each made from a search's job and a run.

accuracy    that of the trained supernet's subnets, or the first metric of another task
te_nas      the combined rank of trainability and expressivity (TE-NAS), without training
zero_cost   the mean rank of zero-cost scores, without training
rdm         accuracy plus how much a subnet sees images as a teacher does (P+TG)
dna         how well blocks imitate those of a teacher (DNA)
ensemble    what some of these say together, learnt from a few networks that are trained alone
akd         accuracy after a brief training by a teacher (AKD)
"""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import IterableDataset, Subset

from distill.blockwise import Teacher
from predictors.sampling import distinct
from search.blockwise.dna import BlockRating
from search.problem import Problem, Score
from search.scores.accuracy import EvaluationBatches, EvaluationImages, SupernetScore, held_out
from search.scores.ensemble import EnsembleScore
from search.scores.teacher_guided import FromSupernet, MakeCandidate, TeacherGuided, TrainedBriefly, brief_training
from search.scores.trained_alone import TrainedAlone, alone_settings
from search.scores.untrained import LabelledImages, TrainingFreeScore
from search.settings import ACCURACY, AKD, BY_TEACHER, ENSEMBLE, RACE, RACE_FROM, SearchJob
from search.untrained.proxies import PROXIES
from search.untrained.te_nas import Proxies, prunable, search_by_pruning
from supernet.artifacts.runs import Job, Run
from supernet.artifacts.teacher import IMAGES, load_teacher
from supernet.families import Family
from supernet.space import Arch
from supernet.tasks import Classification, Task
from supernet.tasks.text import TextClassification
from supernet.training.data import Data, DataConfig, ImageData, load_data
from supernet.training.data.batch import joined
from supernet.training.data.named import only_images
from supernet.training.execution import Execution, channels_last
from supernet.training.loop import StepResult
from supernet.training.randomness import Stream, generator

logger = logging.getLogger(__name__)

TRAINING_FREE = ("te_nas", "zero_cost")  # what needs images and a space, but no trained supernet
LEARNT = (*BY_TEACHER, ENSEMBLE)  # what learns before it judges, or asks a teacher, once for many searches
POOL = 8  # times the batch of the zero-cost scores: images that TE-NAS draws from


def _nothing() -> None:
    pass


def _no_order(problem: Problem) -> None:
    return None


class Judge(NamedTuple):
    """A score, and what a search has to know of it."""

    score: Score
    prepare: Callable[[], None] = _nothing
    """What takes long and is done once, before workers get their copies of the score."""
    best_first: Callable[[Problem], Iterator[Arch] | None] = _no_order
    """The admissible architectures in the order in which this score's own search proposes them; None if the score has
    no search of its own."""
    worst: float = 0.0
    """The value that the hypervolume counts from."""
    name: str | None = None
    """What histories and reports call the score; by default the name that the job asks for it by."""
    examples: SupernetScore | None = None
    """Itself where it judges by held-out examples, which then may say how sure it is (`SupernetScore.judged`)."""
    fresh: Callable[[], SupernetScore] | None = None
    """The same score by held-out examples that the search does not see; ValueError if there are none."""
    load: Callable[[], None] = _nothing
    """Has the images in memory that architectures are judged by, before workers get their copies of the score."""


def make_judge(job: SearchJob, run: Run, directory: Path | None = None) -> Judge:
    """The judge that `job` asks for, its score on the CPU (`search.problem.placed` puts it elsewhere). What it learns
    is kept in `directory`, if given, and found there again.

    ValueError for what the run or the job lacks.
    """
    judge = JUDGES[job.score](job, run, directory)
    return judge._replace(name=judge.name or job.score)


def untrained_run(space: str, options: str, config: DataConfig, workers: int | None = 0) -> Run:
    """A named space with data, which `workers` processes load, as if from a run of no steps: for scores that need no
    training."""
    data = load_data(config, workers=workers)
    job = Job(space, options, config)
    family = job.family(data.family_arguments)
    return Run(family, family.supernet(pretrained=False), data, job)


def supernet_score(job: SearchJob, trained: Run, fresh: bool = False) -> SupernetScore:
    """The first metric of a run's subnets on those of its held-out examples that a search judges by, or on `fresh`
    ones."""
    net, family = channels_last(trained.net), trained.family
    return SupernetScore(
        net,
        family.task,
        run_batches(job, trained, fresh),
        family.resolution,
        job.batch_size,
        calibration_bytes=job.calibration_bytes,
        bf16=job.amp == "bf16",
    )


def settled(job: SearchJob, trained: Run) -> SearchJob:
    """The job with what it leaves open settled by the run, in the terms of former versions' histories.

    `images` is None if the default is all that the run holds out. A `race` that is auto is at RACE for the first metric
    of a task that is a mean over examples, of which at least RACE_FROM judge, else None.
    """
    if job.images == SearchJob.images and trained.data.count(trained.data.holdout) <= job.images:
        job = dataclasses.replace(job, images=None)
    if job.race == "auto":
        is_mean = type(trained.family.task).per_example is not Task.per_example
        races = job.score == ACCURACY and is_mean and held_out_count(job, trained) >= RACE_FROM
        job = dataclasses.replace(job, race=RACE if races else None)
    return job


def held_out_count(job: SearchJob, trained: Run) -> int:
    """How many held-out examples a search judges by."""
    available = trained.data.count(trained.data.holdout)
    return available if job.images is None else min(job.images, available)


def run_batches(job: SearchJob, trained: Run, fresh: bool = False) -> RunBatches:
    """The examples of a run that a search judges by: the first of those held out. Or `fresh` ones: the next of them, as
    many again if so many are left; ValueError if none are."""
    count = job.calibration_images or trained.job.train.images_to_calibrate(trained.family.num_classes)
    sizes = resolutions(trained.family)
    largest = max(sizes) if job.resize_images and None not in sizes else None
    batches = partial(RunBatches, trained.data, count, trained.job.train.seed, job.images, largest=largest)
    if not fresh:
        return batches()
    available = trained.data.count(trained.data.holdout)
    if job.images is None or job.images >= available:
        raise ValueError(
            f"all {available} held-out examples judge the search, so that none are left to confirm its front by: judge "
            f"by fewer of them (--images {max(2 * available // 3, 1)}), or hold out more in training (--holdout)"
        )
    return batches(first=job.images)


def resolutions(family: Family) -> Sequence[int | None]:
    """Those that architectures of the family have."""
    choice = family.space.choices.get("resolution")
    return choice.values if choice else (family.input_size,)


class RunBatches:
    """Examples of a run to calibrate and to judge by, the latter `count` from the held-out example `first` on, kept in
    memory at every resolution that was asked for, in the data's compact form: images as pixels of 8 bits.

    With a `largest` resolution, they are kept at that one alone, and whoever uses them resizes them.

    What is kept goes into a pickle, of pixels as arrays that Ray keeps once a machine for all processes that read them.
    """

    def __init__(
        self,
        data: Data,
        calibration: int,
        seed: int,
        count: int | None,
        first: int = 0,
        largest: int | None = None,
    ) -> None:
        self._data = data
        self._calibration = calibration
        self._seed = seed
        self._count = count
        self._first = first
        self._largest = largest
        self._known: dict[int | None, EvaluationBatches] = {}

    def __call__(self, resolution: int | None) -> EvaluationBatches:
        kept = self._largest or resolution
        if kept not in self._known:
            self._known[kept] = held_out(self._data, self._calibration, self._seed, self._count, kept, self._first)
        return self._known[kept]

    def load(self, sizes: Sequence[int | None]) -> None:
        """Have the examples of these resolutions in memory."""
        for size in sizes:
            self(size)

    def images(self, resolution: int) -> EvaluationImages:
        """The same of images with labels."""
        calibration, evaluation = self(resolution)
        return EvaluationImages(calibration[0], *evaluation)

    def __getstate__(self):
        return self.__dict__ | {"_known": tree_map_only(Tensor, _Array.of, self._known)}

    def __setstate__(self, state):
        self.__dict__ |= state
        self._known = tree_map_only(_Array, _Array.tensor, self._known)


class _Array:
    """A tensor of 8-bit integers in a pickle."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array

    @classmethod
    def of(cls, tensor: Tensor) -> Tensor | _Array:
        """The pixels in `tensor`, if it is such; other tensors as they are."""
        return cls(tensor.numpy()) if tensor.dtype == torch.uint8 and tensor.device.type == "cpu" else tensor

    def tensor(self) -> Tensor:
        """The same memory as a tensor, which is to be read only if the array is."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            return torch.from_numpy(self._array)


def training_batch(data: ImageData, resolution: int | None, size: int, seed: int) -> LabelledImages:
    """Random training images for scores that need no training: a batch of `size`, and as many more as TE-NAS draws
    from. ValueError for a space without a resolution, whose networks take something else."""
    if resolution is None:
        raise ValueError("the data are images, and the networks of this space take something else: name another space")
    if isinstance(data.train, IterableDataset):
        images, labels = data.images(data.train, resolution, POOL * size)
    else:
        chosen = generator(seed, Stream.SCORES).permutation(len(data.train))[: POOL * size]
        images, labels = data.images(Subset(data.train, chosen.tolist()), resolution)
    return LabelledImages(images, labels, size)


def _by_supernet(job: SearchJob, run: Run, directory: Path | None) -> Judge:
    score = supernet_score(job, run)
    fresh = partial(supernet_score, job, run, fresh=True)
    load = partial(score.batches.load, resolutions(run.family))
    return Judge(score, load=load, name=run.family.task.metric, examples=score, fresh=fresh)


def _zero_cost(job: SearchJob, run: Run, directory: Path | None) -> Judge:
    score = _training_free(job, run, job.zero_cost, _batch(job, run))
    return Judge(score, score.prepare)


def _te_nas(job: SearchJob, run: Run, directory: Path | None) -> Judge:
    """TE-NAS's own search, by pruning, knows no limits; under limits, and where operations cannot be mixed, evolution
    goes by the combined rank."""
    score = _training_free(job, run, ("te_nas",), _batch(job, run))

    def best_first(problem: Problem) -> Iterator[Arch] | None:
        proxies = _proxies(run)
        if problem.limits or not prunable(problem.space, proxies):
            return None
        return iter([search_by_pruning(problem.space, proxies, score.batch.images, job.te_nas, job.seed)])

    return Judge(score, score.prepare, best_first)


def _rdm(job: SearchJob, run: Run, directory: Path | None) -> Judge:
    family, config = run.family, job.rdm
    teacher = Teacher(_teacher(job, run), config.points)
    if config.epochs:
        if directory is None:
            raise ValueError("candidates that train by themselves need a folder to train in: record a history")
        training = brief_training(config, job.seed)
        execution = Execution(calibration_bytes=job.calibration_bytes, eval_epochs=0)
        candidate: MakeCandidate = TrainedBriefly(family, run.data, training, directory / "candidates", execution)
    else:
        candidate = FromSupernet(channels_last(run.net), job.calibration_bytes)
    kept = run_batches(job, run)
    size = family.resolution(family.space.largest)
    score = TeacherGuided(candidate, kept, family.resolution, teacher, size, config, job.batch_size, family.task)
    return Judge(score, score.prepare, load=partial(kept.load, resolutions(family)))


def _dna(job: SearchJob, run: Run, directory: Path | None) -> Judge:
    teacher = Teacher(_teacher(job, run), job.dna.points)
    folder = directory and directory / "dna"
    score = BlockRating(
        run.family,
        run.data,
        run_batches(job, run),
        teacher,
        job.dna,
        job.seed,
        folder,
        job.batch_size,
        _log_blocks,
        job.calibration_bytes,
    )
    return Judge(score, score.prepare, score.best_first, worst=-float(len(score.blocks)))


def _ensemble(job: SearchJob, run: Run, directory: Path | None) -> Judge:
    if directory is None:
        raise ValueError("an ensemble needs a folder for the networks that it learns from: record a history")
    config, folder = job.ensemble, directory / ENSEMBLE
    members: dict[str, Score] = {}
    if untrained := [name for name in config.members if name != ACCURACY]:
        batch = _batch(job, run)
        members = {name: _training_free(job, run, (name,), batch) for name in untrained}
    if ACCURACY in config.members:
        members[ACCURACY] = supernet_score(job, run)
    training = alone_settings(run.job.train, config.epochs)
    execution = Execution(eval_epochs=0, keep_checkpoints=1, calibration_bytes=job.calibration_bytes)
    alone = TrainedAlone(run.family, run.data, training, folder / "networks", execution)
    archs = distinct(run.family.space, config.trained, generator(job.seed, Stream.SCORES, 1))
    names = ("seed", "images", "resize_images", "calibration_images", "zero_cost_images", "te_nas")
    fields = dataclasses.asdict(job)
    settings = {name: fields[name] for name in names} | {"train": dataclasses.asdict(training)}
    return Judge(EnsembleScore(run.family.space, members, alone, archs, folder, settings))


def _akd(job: SearchJob, run: Run, directory: Path | None) -> Judge:
    if directory is None:
        raise ValueError("students that train by themselves need a folder to train in: record a history")
    config, folder = job.akd, directory / AKD
    _images(job, run)
    teacher = _teacher(job, run)
    training = dataclasses.replace(alone_settings(run.job.train, config.epochs), seed=job.seed)
    execution = Execution(eval_epochs=0, keep_checkpoints=1, calibration_bytes=job.calibration_bytes)
    return Judge(TrainedAlone(run.family, run.data, training, folder, execution, config.objective, teacher))


def _log_blocks(result: StepResult) -> None:
    if result.losses and (result.step % 50 == 0 or result.step == result.steps):
        found = ", ".join(f"{loss:.3f}" for loss in result.losses)
        logger.info("step %d of %d, relative error of each block: %s", result.step, result.steps, found)


def _teacher(job: SearchJob, run: Run) -> nn.Module:
    if job.teacher is None:
        raise ValueError(f"the score {job.score} needs a teacher: name a model of timm's, or a folder")
    inputs = tuple(run.family.task.input_names)
    return load_teacher(
        job.teacher,
        _images(job, run).config if inputs == IMAGES else run.job.data,
        run.data.classes,
        input_size=run.family.resolution(run.family.space.largest),
        space=run.job.space,
        inputs=inputs,
        files=run.data.files(),
    )


def _training_free(job: SearchJob, run: Run, names: tuple[str, ...], batch: LabelledImages) -> TrainingFreeScore:
    """A score whose ranks are among as many random architectures as a generation has."""
    return TrainingFreeScore(run.family, names, batch, job.seed, _proxies(run), job.te_nas, job.generation_size)


def _batch(job: SearchJob, run: Run) -> LabelledImages:
    size, task = job.zero_cost_images, run.family.task
    if isinstance(task, TextClassification):
        texts = joined(list(run.data.calibration_batches(None, POOL * size, job.seed)))
        return LabelledImages(task.inputs(texts, None), texts[1], size)
    resolution = run.family.resolution(run.family.space.largest)
    return training_batch(_images(job, run), resolution, size, job.seed)


def _images(job: SearchJob, run: Run) -> ImageData:
    """The run's images; ValueError if its task is not to tell classes of images apart."""
    instead = f"search a trained supernet by the score {ACCURACY}, which takes the first metric of any task"
    if not isinstance(run.family.task, Classification):
        raise ValueError(
            f"the score {job.score} needs classes, and the task is {type(run.family.task).__name__}: {instead}"
        )
    return only_images(run.data, f"the score {job.score}", instead)


def _proxies(run: Run) -> Proxies | None:
    make = PROXIES.get(run.job.space)
    return make and make(run.family.num_classes, run.family.in_chans)


JUDGES: Mapping[str, Callable[[SearchJob, Run, Path | None], Judge]] = {
    ACCURACY: _by_supernet,
    "te_nas": _te_nas,
    "zero_cost": _zero_cost,
    "rdm": _rdm,
    "dna": _dna,
    ENSEMBLE: _ensemble,
    AKD: _akd,
}
