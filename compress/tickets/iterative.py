"""Lottery tickets: train, prune the weights that are left by their magnitude, put the others back to what they were.

Frankle and Carbin, *The lottery ticket hypothesis*, ICLR 2019, arXiv 1803.03635, with rewinding to a step
after the first as of Frankle et al., *Linear mode connectivity and the lottery ticket hypothesis*, ICML 2020, arXiv
1912.05671.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypedDict

import safetensors.torch
import torch
from torch import Tensor, nn

from compress.tickets.masks import Scope, density_of, highest, masked, weights_of
from compress.transforms import fold
from supernet.artifacts.atomic import set_aside, write_atomically
from supernet.artifacts.reading import parse_lines
from supernet.artifacts.weights import read_safetensors, save_weights
from supernet.training.loop import StepResult
from supernet.training.loop.average import MovingAverage
from supernet.training.loop.checkpoint import has_checkpoints, save_checkpoint
from supernet.training.loop.config import LoopConfig
from supernet.training.loop.optimizer import make_optimizer

logger = logging.getLogger(__name__)

Masks = dict[str, Tensor]


@dataclass(frozen=True)
class TicketConfig:
    """How a lottery ticket is found. Weights are those of convolutions and linear layers; all else is never pruned."""

    rounds: int = 10
    """Rounds of pruning, each followed by a training."""
    fraction: float = 0.2
    """Part of the weights that are left which a round prunes: those of the least magnitude."""
    output_fraction: float | None = None
    """The same of the last layer alone, which the paper prunes half as fast; by default as the others."""
    scope: Scope = "layer"
    """Whether that part is pruned of each layer, or of all together, by one threshold (global)."""
    rewind_epochs: float = 0.0
    """Epochs after which the weights are those that a ticket goes back to; 0 for those that the training begins with,
    which are pretrained ones if it does."""
    exclude: tuple[str, ...] = ()
    """Layers that are not pruned, by name."""

    def __post_init__(self):
        if self.rounds < 1 or self.rewind_epochs < 0:
            raise ValueError(
                f"rounds is at least 1 and rewind_epochs 0 or more, not {self.rounds} and {self.rewind_epochs}"
            )
        for name in ("fraction", "output_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} is the part that a round prunes, between 0 and 1, not {value}")
        if self.output_fraction is not None and self.scope == "global":
            raise ValueError("output_fraction needs the scope layer: by one threshold no layer has a part of its own")


class Train(Protocol):
    """Trains a model with its run in `folder`, on from its newest checkpoint if there is one; the network to use."""

    def __call__(self, model: nn.Module, folder: Path, on_step: Callable[[StepResult], None], /) -> nn.Module: ...


class Round(NamedTuple):
    """A ticket, and what training makes of it."""

    number: int  # 0 is the network before any pruning
    masks: Masks
    start: Mapping[str, Tensor]  # the state dict that it goes back to
    trained: nn.Module  # plain, its pruned weights 0

    @property
    def density(self) -> float:
        """Of the weights that may be pruned."""
        return density_of(self.masks)


def find_ticket(
    model: nn.Module,
    config: TicketConfig,
    training: LoopConfig,
    steps_per_epoch: int,
    train: Train,
    directory: Path,
    *,
    resume: bool = False,
    on_round: Callable[[Round], None] = lambda found: None,
) -> Round:
    """The last of `config.rounds` rounds of pruning by magnitude and rewinding; `model` stays as it is.

    After n rounds exactly round((1 - fraction)^n N) of N weights are left. Every round begins with the weights that the
    training of the whole network had in the beginning, or after `rewind_epochs` epochs, at that step of its schedule,
    with BatchNorm's statistics of then and an optimizer without a past. Folders round-0, round-1, ... in `directory`
    have the trainings, start.safetensors the weights to go back to, and masks-1.safetensors, ... the masks. With
    `resume` what is there goes on; without, it is set aside.
    """
    step = round(config.rewind_epochs * steps_per_epoch)
    if step >= training.epochs * steps_per_epoch:
        raise ValueError(f"rewind_epochs is below the {training.epochs} epochs, not {config.rewind_epochs}")
    names = list(weights_of(model, config.exclude))
    if not resume:
        for path in sorted(directory.glob("*")) if directory.exists() else ():
            if path.name.startswith(("round-", "start.", "masks-")):
                set_aside(path)
    masks: Masks = {name: torch.ones_like(model.get_parameter(name), dtype=torch.bool) for name in names}
    start, trained = _trained_whole(model, step, train, directory)
    found = Round(0, masks, start, trained)
    on_round(found)
    for number in range(1, config.rounds + 1):
        scores = {name: trained.get_parameter(name).detach().abs() for name in names}
        masks = highest(scores, _densities(config, names, number), config.scope, within=masks)
        with write_atomically(directory / f"masks-{number}.safetensors") as temporary:
            temporary.write_bytes(safetensors.torch.save({name: mask.cpu() for name, mask in masks.items()}))
        ticket = rewound(model, start, masks)
        folder = directory / f"round-{number}"
        if step:
            begin_at(step, ticket, training, steps_per_epoch, folder)
        trained = fold(train(ticket, folder, lambda result: None)).cpu()
        found = Round(number, masks, start, trained)
        on_round(found)
    return found


def rewound(model: nn.Module, start: Mapping[str, Tensor], masks: Masks) -> nn.Module:
    """A copy of `model` with the state `start` and `masks` on its weights, to be trained; `fold` makes it plain."""
    ticket = copy.deepcopy(model)
    ticket.load_state_dict(start)
    return masked(ticket, masks)


def begin_at(step: int, model: nn.Module, config: LoopConfig, steps_per_epoch: int, folder: Path) -> None:
    """Let the training of `model` in `folder` go on from `step` with an optimizer that has no past, by a checkpoint,
    unless there is one already."""
    if has_checkpoints(folder / "checkpoints"):
        return
    optimizer, _ = make_optimizer(model, config, steps_per_epoch)
    average = MovingAverage(model, config.ema_decay).state_dict() if config.ema_decay else None
    state = {"net": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": average}
    save_checkpoint(folder / "checkpoints", step, state, keep=1)


class Line(TypedDict):
    """What is noted of a round, beside its metrics."""

    round: int
    density: float


def note_round(path: Path, found: Round, metrics: Mapping[str, float]) -> None:
    """Write a line for the round to the JSON lines at `path`, in the place of one that is there."""
    lines = parse_lines(path.read_bytes().splitlines(), Line, path) if path.exists() else []
    lines = [line for line in lines if line["round"] < found.number]
    lines.append({"round": found.number, "density": found.density, **metrics})
    with write_atomically(path) as temporary:
        temporary.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _trained_whole(
    model: nn.Module, step: int, train: Train, directory: Path
) -> tuple[Mapping[str, Tensor], nn.Module]:
    """The state of the whole network after `step` steps, and what it is when it is trained."""
    path, folder, whole = directory / "start.safetensors", directory / "round-0", copy.deepcopy(model)

    def keep(state: Mapping[str, Tensor]) -> None:
        save_weights(path, {name: tensor.detach().cpu().clone() for name, tensor in state.items()})

    def on_step(result: StepResult) -> None:
        if result.step == step:
            keep(whole.state_dict())

    if not path.exists():
        if has_checkpoints(folder / "checkpoints"):  # killed between a checkpoint and the step to go back to
            logger.warning("the weights to go back to were not kept: the training in %s begins anew", folder)
            set_aside(folder)
        if not step:
            keep(whole.state_dict())
    trained = train(whole, folder, on_step)
    return read_safetensors(path)[0], trained.cpu()


def _densities(config: TicketConfig, names: list[str], number: int) -> float | dict[str, float]:
    """What is left after so many rounds: of all weights, or of those of each layer."""
    density = (1 - config.fraction) ** number
    if config.output_fraction is None:
        return density
    return dict.fromkeys(names, density) | {names[-1]: (1 - config.output_fraction) ** number}
