"""Search by blockwise distillation (DNA, Li et al., CVPR 2020, arXiv 1911.13053): train a supernet's blocks, rate all
of their paths, and put the best ones together.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn, NotRequired, TypedDict

import torch
from torch import Tensor

from distill.blockwise import Teacher, counted, relative_deviation
from search.blockwise.assembly import assemble
from search.blockwise.blocks import Block, begin_at, cut_blocks
from search.blockwise.cuts import Cut, Unmatched, given_cuts, matching_cuts
from search.blockwise.features import features_of, finer_features
from search.blockwise.training import BlockwiseConfig, on_workers, train_blocks
from search.prefix import trie
from search.prefix.dependence import chains
from search.prefix.pieces import carried
from search.problem import Problem
from search.scores.accuracy import EvaluationBatches
from supernet.artifacts.atomic import write_json
from supernet.artifacts.ownership import owned
from supernet.artifacts.reading import read_json, typed
from supernet.calibration import as_arguments
from supernet.evaluation import CALIBRATION_BYTES
from supernet.families import Family
from supernet.space import Arch, SearchSpace, Value
from supernet.training.data import Data, ImageData
from supernet.training.data.batch import Batch, examples_in, joined, on, split
from supernet.training.execution import Execution, channels_last
from supernet.training.loop import StepResult
from supernet.training.loop.checkpoint import has_checkpoints

# N images, K blocks

Losses = dict[Arch, float]  # of paths of a block

logger = logging.getLogger(__name__)

TRAINING = "training.json"  # what was begun in a folder: the settings, and which blocks train together
VERSION = 2  # of what blocks are made of, as far as their checkpoints tell
EXECUTION = ("workers", "amp")  # settings that may be said anew
GRID = ("resolution", "patch_size")  # choices that features have another size with, wherever a network is cut
FIRST = 64  # images, at most, whose features say in which scale blocks answer
CHUNK = 500  # paths whose pieces are in memory at a time, where they have none in common


@dataclass(frozen=True)
class DnaConfig(BlockwiseConfig):
    """How blocks are cut and trained."""

    points: tuple[str, ...] = ()
    """Modules of the teacher whose features are the targets; by default where timm takes features."""
    cuts: tuple[str, ...] = ()
    """Modules of the subnets that end a block, one for each point; by default the last one of each resolution."""
    max_paths: int = 20000
    """Paths of a block beyond which there are too many to rate."""
    workers: int = 0
    """Ray workers, on CPUs, that share the training of the blocks; 0 trains all of them in this process. Each runs the
    teacher and prepares all images by itself."""
    amp: Literal["none", "bf16", "fp16"] = "none"
    """Precision of the forward passes while blocks are trained."""


class PathLosses(TypedDict):
    """The ratings of one block: its paths, as architectures of it, and the loss of each."""

    paths: list[dict[str, Value]]
    losses: list[float]


class Ratings(TypedDict):
    """What ratings.json holds."""

    settings: dict[str, Any]
    images: NotRequired[Any]
    blocks: list[PathLosses]


class Shares(TypedDict):
    """What training.json holds: the settings, the positions of the blocks that train together, and the `VERSION` of the
    blocks."""

    settings: dict[str, Any]
    shares: list[list[int]]
    version: NotRequired[int]


class BlockRating:
    """The score "how well the blocks of an architecture imitate a teacher's": minus the sum of their paths' losses.

    A path's loss is `relative_deviation`, the mean absolute error in units of the teacher feature's standard deviation,
    with BatchNorm statistics of its own, on images that judge. `prepare` trains the blocks and rates every path of
    each; afterwards architectures are looked up.

    Where teacher and subnets have tokens, as many of them, blocks go from tokens to tokens, class tokens and registers
    included; of texts those count that do not merely fill up. Else they go from maps to maps, which square tokens
    become, without class tokens and registers; those that a subnet has then are learnt in each block.

    All images have the largest resolution of the space, and where resolution or patch size is a choice, architectures
    with the largest subnet's alone are rated: what a smaller one loses is not seen by blocks whose inputs are the
    teacher's. Choices that no block depends on, such as those behind the last cut, make no difference.

    With a `directory`, training and rating go on where they were stopped, and losses are read if they are there and of
    as many images. `on_step` hears of every step of a training in this process; Ray workers are heard of by their
    metrics alone. ValueError if teacher and supernet do not match, if a block has too many paths, if the directory
    holds another training, or for an architecture that is not rated.
    """

    def __init__(
        self,
        family: Family,
        data: Data,
        batches: Callable[[int | None], EvaluationBatches],
        teacher: Teacher,
        config: DnaConfig,
        seed: int = 0,
        directory: Path | None = None,
        batch_size: int = 250,
        on_step: Callable[[StepResult], None] = lambda result: None,
        calibration_bytes: int = CALIBRATION_BYTES,
    ) -> None:
        self.space = rated_space(family)
        self.resolution = family.resolution(self.space.largest)
        self._task = family.task
        self._data, self._batches, self._config, self._seed = data, batches, config, seed
        self._directory, self._batch_size, self._on_step = directory, batch_size, on_step
        self._calibration_bytes = calibration_bytes
        self._device = next(teacher.model.parameters()).device
        calibration, evaluation = batches(self.resolution)
        self._teacher, cuts = self._cuts(family, teacher, self._inputs(split(evaluation, 2)[0]))
        self.blocks = cut_blocks(family, self.space, cuts, seed)
        few = self._inputs(split(calibration, FIRST)[0])
        for block, target in zip(self.blocks, self._teacher(*few)):
            begin_at(block, counted(target, self._task.mask(few)))
        sizes = [block.net.space.size for block in self.blocks]
        if max(sizes) > config.max_paths:
            raise ValueError(
                f"the blocks that end with {', '.join(block.name for block in self.blocks)} have "
                f"{', '.join(map(str, sizes))} paths; beyond {config.max_paths} there are too many to rate: cut the "
                "network into more blocks"
            )
        rated = set().union(*(block.scope for block in self.blocks))
        unrated = [name for name in self.space.choices if name not in rated]
        if len(unrated) > len(rated):
            logger.warning("no block depends on %s: these choices make no difference", ", ".join(unrated))
        self.to(self._device)
        for block in self.blocks:
            channels_last(block.net)
        self.losses: list[Losses] = []  # of each block's paths, once they are rated

    def _cuts(self, family: Family, teacher: Teacher, inputs: tuple) -> tuple[Teacher, list[Cut]]:
        """Where the blocks end, and the teacher with its points there: as tokens where these match, or else as maps."""
        config = self._config
        for grids in (False, True):
            own = Teacher(teacher.model, teacher.points, grids=grids)
            features = (features_of if config.cuts or config.points else finer_features)(own, inputs)
            try:
                if config.cuts:
                    cuts = given_cuts(family, self.space, features, config.cuts, grids=grids)
                else:
                    cuts = matching_cuts(family, self.space, features, config.max_paths, grids=grids)
            except Unmatched:
                if grids:
                    raise
            else:
                return Teacher(teacher.model, [cut.target.name for cut in cuts], grids=grids), cuts
        raise AssertionError("the last of both forms raises")

    def _inputs(self, batch: Batch) -> tuple:
        """What networks are called with for a batch, where they are."""
        return self._task.inputs(on(self._device, batch), None)

    def to(self, device: torch.device | str) -> BlockRating:
        """Puts teacher and blocks on `device`, where they are then trained and rated, in place."""
        self._device = torch.device(device)
        for net in (self._teacher.model, *(block.net for block in self.blocks)):
            net.to(device)
        return self

    def __call__(self, archs: Sequence[Arch]) -> list[float]:
        """The ratings, higher is better."""
        self.prepare()
        return [-sum(self.block_losses(arch)) for arch in archs]

    def block_losses(self, arch: Arch) -> list[float]:
        """The loss of the path of each block, lower is better."""
        for name in GRID:
            if name in arch and arch[name] != self.space.largest[name]:
                raise ValueError(f"architectures are rated at a {name} of {self.space.largest[name]}, not {arch[name]}")
        return [losses[block.path(arch)] for losses, block in zip(self.losses, self.blocks)]

    def best_first(self, problem: Problem) -> Iterator[Arch]:
        """The architectures within the limits of `problem`, the best rating first; see `assemble`."""
        self.prepare()
        return assemble(self.space, self.blocks, self.losses, problem)

    def prepare(self) -> None:
        """Train and rate, unless that is done."""
        if self.losses:
            return
        with owned(self._directory) if self._directory else nullcontext():
            self._prepare(self._directory and self._directory / "ratings.json")

    def _prepare(self, path: Path | None) -> None:
        images = [examples_in(part) for part in self._batches(self.resolution)]
        rated = self._read_ratings(path, images) if path else []
        if not self._is_rated(rated):
            self.train()
            rated = self.rate(rated, (lambda found: self._write_ratings(path, images, found)) if path else None)
        self.losses = rated

    def _is_rated(self, found: Sequence[Losses]) -> bool:
        sizes = [block.net.space.size for block in self.blocks]
        return [len(losses) for losses in found] == sizes

    def _read_ratings(self, path: Path, images: Sequence[int]) -> list[Losses]:
        """Of the blocks that were rated before by as many images, the last of which perhaps in part."""
        if not path.exists():
            return []
        content = read_json(path, Ratings, "file of ratings")
        self._check_settings(content["settings"])
        if content.get("images", images) != images:
            return []
        return [dict(zip(map(Arch, block["paths"]), block["losses"])) for block in content["blocks"]]

    def _write_ratings(self, path: Path, images: Sequence[int], found: Sequence[Losses]) -> None:
        blocks = [
            {"name": block.name, "paths": [dict(path) for path in losses], "losses": list(losses.values())}
            for block, losses in zip(self.blocks, found)
        ]
        write_json(path, {"settings": self._settings(), "images": images, "blocks": blocks}, indent=None)

    def train(self) -> None:
        """Train all blocks, going on from the last checkpoint; see `search.blockwise.training.train_blocks`.

        Ray workers share the blocks. A training that goes on has the shares that it was begun with, whoever does them.
        """
        if self._directory and has_checkpoints(self._directory / "checkpoints"):
            self._refuse_former()
        steps_per_epoch = self._data.steps_per_epoch(self._config.batch_size)
        device = self._device
        if self._config.workers:
            self.to("cpu")
        execution = Execution(
            str(self._device), self._config.amp, eval_epochs=0, checkpoint_steps=steps_per_epoch, keep_checkpoints=1
        )
        data = self._data
        if self._config.workers and isinstance(data, ImageData):
            data = replace(data, workers=0)  # a worker has a CPU for all
        shares = self._shares()
        with nullcontext(self._directory) if self._directory else TemporaryDirectory() as folder:
            begun = {"settings": self._settings(), "shares": shares, "version": VERSION}
            trainings = [
                partial(
                    train_blocks,
                    {index: self.blocks[index] for index in share},
                    self._teacher,
                    data,
                    self.resolution,
                    self._config.for_loop(self._seed),
                    Path(folder) / f"blocks_{'_'.join(map(str, share))}",
                    execution,
                    task=self._task,
                    on_begin=partial(write_json, Path(folder) / TRAINING, begun, indent=None),
                )
                for share in shares
            ]
            if self._config.workers:
                trained = on_workers(trainings, self._config.workers)
            else:
                trained = [training(on_step=self._on_step) for training in trainings]
        self.to(device)
        for weights in trained:
            for index, state in weights.items():
                self.blocks[index].net.load_state_dict(state)

    def rate(
        self, rated: Sequence[Losses] = (), on_rated: Callable[[Sequence[Losses]], None] | None = None
    ) -> list[Losses]:
        """The loss of every path of every block.

        `rated` are those of the first blocks that are known; `on_rated` hears of all of them now and then.
        """
        judged = self._batches(self.resolution)
        parts = [[self._inputs(batch) for batch in split(part, self._batch_size)] for part in judged]
        known = [[(inputs, [inputs[0], *self._teacher(*inputs)]) for inputs in part] for part in parts]  # of K + 1 each
        masks = [self._task.mask(inputs) for inputs in parts[1]]
        mask = None if masks[0] is None else joined(masks)
        found = [dict(losses) for losses in rated]
        for index, block in enumerate(self.blocks):
            if index == len(found):
                found.append({})
            logger.info("rating the %d paths of the block that ends with %s", block.net.space.size, block.name)
            seen = [[carried(features[index], *inputs[1:]) for inputs, features in part] for part in known]
            batches, target = trie.Batches(*seen), torch.cat([features[index + 1] for _, features in known[1]])
            for losses in rate_paths(block, batches, target, self._calibration_bytes, found[index], mask):
                found[index] |= losses
                if on_rated:
                    on_rated(found)
        return found

    def _shares(self) -> list[list[int]]:
        """The positions of the blocks that train together: those of a training that was begun, or else a share for each
        worker."""
        record = self._directory and self._directory / TRAINING
        if record and record.exists():
            begun = read_json(record, Shares, "description of a training")
            self._check_settings(begun["settings"])
            if begun.get("version") != VERSION:
                self._refuse_former()
            return begun["shares"]
        count, workers = len(self.blocks), max(self._config.workers, 1)
        return [list(range(first, count, workers)) for first in range(min(workers, count))]

    def _refuse_former(self) -> NoReturn:
        raise ValueError(
            f"the blocks in {self._directory} were trained by a former version, whose checkpoints this one does not "
            "read: name another output, or remove that folder to train them again"
        )

    def _settings(self) -> dict[str, object]:
        """What training follows from, as JSON."""
        blocks = [[block.name, block.target.name, block.target.channels] for block in self.blocks]
        config = _followed(asdict(self._config))
        settings = {"config": config, "blocks": blocks, "seed": self._seed, "space": self.space.fingerprint}
        return json.loads(json.dumps(settings))

    def _check_settings(self, found: Mapping[str, object]) -> None:
        former = json.loads(json.dumps(_followed(asdict(DnaConfig()))))  # of what a former version had no setting for
        found = {**found, "config": former | typed(dict, found.get("config"), "config")}
        for name, value in self._settings().items():
            if found.get(name) != value:
                raise ValueError(
                    f"{self._directory} holds blocks that were trained otherwise ({name} is {found.get(name)}, "
                    f"not {value}): name another output"
                )


def _followed(config: Mapping[str, object]) -> dict[str, object]:
    """The settings that weights and ratings follow from, which those of the execution are not."""
    return {name: value for name, value in config.items() if name not in EXECUTION}


def rated_space(family: Family) -> SearchSpace:
    """The architectures of a family whose features have the largest size."""
    space = family.space
    return space.restrict({name: [space.largest[name]] for name in GRID if name in space.choices})


def rate_paths(
    block: Block,
    batches: trie.Batches,
    target: Tensor,
    calibration_bytes: int = CALIBRATION_BYTES,
    rated: Collection[Arch] = (),
    mask: Tensor | None = None,
) -> Iterator[Losses]:
    """The losses of all paths of a block but those that are `rated`, a part of them at a time, in the space's order.

    `batches` are the teacher's features before the block, of examples to calibrate by and of those that judge, with
    what the network is called with besides; `target` [N, ...] its features of the latter behind it, of which those
    count that `mask` [N, L] says.
    """
    net, target = block.net.eval(), counted(target, mask)
    pieces_of, remembered = chains(net, len(as_arguments(next(iter(batches.evaluation))))), trie.Remembered(2**30)
    paths = [path for path in net.space if path not in rated]
    for start in range(0, len(paths), CHUNK):
        some, losses = paths[start : start + CHUNK], {}
        found = trie.outputs(net, some, lambda size: batches, lambda path: 0, remembered, pieces_of, calibration_bytes)
        for index, output in found:
            if isinstance(output, Exception):
                raise output
            losses[some[index]] = relative_deviation(counted(output, mask), target).item()
        yield {path: losses[path] for path in some}
