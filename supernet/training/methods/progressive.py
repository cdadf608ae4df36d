"""Progressive shrinking (Once-for-All, Cai et al., ICLR 2020, arXiv 1908.09791, section 3.3 and appendix).

The largest network is trained first. Then, phase by phase, smaller kernels, fewer blocks and narrower expansions are
trained as well, with the largest network of the first phase, frozen, as the teacher of all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch

from supernet.channels import trace
from supernet.channels.importance import order_channels
from supernet.families.family import Family
from supernet.skeleton import build_skeleton
from supernet.space import SearchSpace
from supernet.supernet import Supernet
from supernet.training.loop.config import LoopConfig
from supernet.training.randomness import Stream, part_seed
from supernet.views import PLAIN, tied_names

Config = TypeVar("Config", bound=LoopConfig)


@dataclass(frozen=True)
class Phase:
    """One phase. The *kind* of a choice is the last part of its name, such as `kernel_size`.

    Kinds that any phase of a training names are elastic in the phases that name them alone, and have their largest
    value in the others. All other choices, such as the resolution, are elastic throughout.
    """

    name: str
    """Name of the phase and of its folder."""
    epochs: float
    """Length in relation to the other phases."""
    lr: float = 1.0
    """Peak learning rate in relation to that of the training."""
    warmup_epochs: float = 0.0
    """Epochs of warm-up, in the unit of `epochs`."""
    subnets: int = 1
    """Random subnets a step."""
    elastic: Mapping[str, int] = field(default_factory=dict)
    """How many of its values, counted from the largest, a choice may take, by the choice's kind."""

    def __post_init__(self):
        if self.epochs <= 0 or self.lr <= 0 or not 0 <= self.warmup_epochs <= self.epochs:
            raise ValueError(
                f"phase {self.name!r}: epochs and lr are above 0, and warmup_epochs from 0 to epochs, not "
                f"{self.epochs}, {self.lr} and {self.warmup_epochs}"
            )
        if self.subnets < 1 or any(count < 1 for count in self.elastic.values()):
            raise ValueError(f"phase {self.name!r}: subnets and numbers of values are at least 1")


ONCE_FOR_ALL = (
    Phase("largest", 180),
    Phase("kernel_size", 120, 0.96 / 2.6, 5, 1, {"kernel_size": 3}),
    Phase("depth_1", 25, 0.08 / 2.6, 0, 2, {"kernel_size": 3, "depth": 2}),
    Phase("depth_2", 120, 0.24 / 2.6, 5, 2, {"kernel_size": 3, "depth": 3}),
    Phase("expand_ratio_1", 25, 0.08 / 2.6, 0, 4, {"kernel_size": 3, "depth": 3, "expand_ratio": 2}),
    Phase("expand_ratio_2", 120, 0.24 / 2.6, 5, 4, {"kernel_size": 3, "depth": 3, "expand_ratio": 3}),
)
"""The published phases; the learning rate of the first is 2.6 for 2,048 images a step."""


def phase_config(config: Config, phases: Sequence[Phase], index: int) -> Config:
    """The settings of one phase of a training: its part of the epochs, its learning rate, and a seed of its own, by
    which order, crops and subnets are drawn otherwise than in the phase before it."""
    phase = phases[index]
    scale = config.epochs / sum(p.epochs for p in phases)
    epochs = max(1, round(scale * phase.epochs))
    warmup_epochs = min(scale * phase.warmup_epochs, epochs)
    seed = part_seed(config.seed, Stream.PHASE, index)
    return replace(config, epochs=epochs, warmup_epochs=warmup_epochs, lr=config.lr * phase.lr, seed=seed)


def phase_space(space: SearchSpace, phases: Sequence[Phase], index: int) -> SearchSpace:
    """The architectures that a phase trains; ValueError for a kind that no choice of the space is of."""
    named = {kind for phase in phases for kind in phase.elastic}
    if unknown := named - {kind_of(name) for name in space.choices}:
        kinds = ", ".join(sorted({kind_of(name) for name in space.choices}))
        raise ValueError(f"this space has no choices of the kind {min(unknown)!r}; its kinds are {kinds}")
    elastic = phases[index].elastic
    return space.restrict(
        {
            name: choice.values[-elastic.get(kind_of(name), 1) :]
            for name, choice in space.choices.items()
            if choice.ordered and kind_of(name) in named
        }
    )


def new_kinds(phases: Sequence[Phase], index: int) -> set[str]:
    """Kinds that become elastic in a phase."""
    return set(phases[index].elastic) - {kind for phase in phases[:index] for kind in phase.elastic}


def sort_channels(family: Family, net: Supernet, kinds: Iterable[str]) -> None:
    """Sort, in place, the channels of `net` that choices of the `kinds` make fewer, by their importance to the layers
    that follow them. The largest subnet computes what it did, so that channels keep their order in tensors that several
    of its layers have different parts of, and in tensors that it transforms.
    """
    kinds = set(kinds)
    values = {name: c.values[0 if kind_of(name) in kinds else -1] for name, c in family.space.choices.items()}
    narrow = build_skeleton(family.build, family.space.validate(values)).state_dict()
    largest = family.space.largest
    example = torch.empty(1, family.in_chans, *[family.resolution(largest)] * 2, device="meta")
    skeleton = build_skeleton(family.build, largest)
    whole = skeleton.state_dict()
    ties = tied_names(skeleton.state_dict(keep_vars=True))
    views, sources = net.views(largest), net.sources(largest)
    parts = Counter(source for name, source in sources.items() if name not in ties)
    fixed = {n for n, source in sources.items() if parts[source] > 1 or source != n or views.get(n, PLAIN).transform}
    elastic = [
        group
        for group in trace(skeleton, example).channels
        if any(name in narrow and narrow[name].shape[dim] < whole[name].shape[dim] for name, dim, _ in group.members)
        and not any(member.tensor in fixed for member in group.members)
    ]
    order_channels(net, elastic, "outgoing_l1")


def kind_of(name: str) -> str:
    """The kind of the choice `name`: what it varies, without the place in the network."""
    return name.rpartition(".")[2]
