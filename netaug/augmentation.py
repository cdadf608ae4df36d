"""The wider networks that a tiny one is trained in: a search space whose smallest subnet is the tiny model.

NetAug (Cai et al., ICLR 2022, arXiv 2110.08890, section 3.2): every width w of the tiny model may be w, ..., r w in s
equal steps, and so may the expansion inside every block; both are chosen by layer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import nn

from supernet.channels import Channels, trace, widen
from supernet.errors import first_line
from supernet.families import FAMILIES, Family
from supernet.space import Arch, SearchSpace


class Inside(NamedTuple):
    """Channels that begin and end within a block, such as the expanded ones of an inverted residual."""

    channels: Channels
    block: str
    input: Channels | None  # the channels that the block takes in; None if these are fixed


@dataclass(frozen=True)
class Augmentation:
    """A tiny model and the space around it.

    The choices are `NAME.width` in channels, for channels that pass from block to block, and `BLOCK.expansion`, a
    factor on the tiny model's number of channels for one input channel inside a block.
    """

    space: SearchSpace  # whose smallest architecture is the tiny model
    create: Callable[..., nn.Module]  # the tiny model; takes drop_rate and drop_path_rate
    between: tuple[Channels, ...]  # blocks
    inside: tuple[Inside, ...]
    num_classes: int
    in_chans: int
    input_size: int  # pixels a side

    def sizes(self, arch: Arch) -> dict[Channels, int]:
        """How many channels there are of each kind; inside a block, the tiny model's times `expansion` and times the
        factor by which the block's input is wider."""
        sizes = {channels: arch[f"{channels.name}.width"] for channels in self.between}
        for channels, block, source in self.inside:
            factor = 1 if source is None else sizes[source] / source.size
            sizes[channels] = round(channels.size * arch[f"{block}.expansion"] * factor)
        return sizes

    def build(self, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
        """The plain module of `arch`; its leading channels start as the tiny model does (`supernet.channels.widen`)."""
        return widen(self.create(drop_rate=drop_rate, drop_path_rate=drop_path_rate), self.sizes(arch))

    def pieces(self, arch: Arch) -> dict[str, Hashable]:
        """What determines each layer whose sizes vary."""
        keys: dict[str, list[tuple[str, int, int]]] = {}
        for channels, size in self.sizes(arch).items():
            for name, dim, _ in channels.members:
                module, _, tensor = name.rpartition(".")
                keys.setdefault(module, []).append((tensor, dim, size))
        return {module: tuple(key) for module, key in keys.items()}

    @property
    def family(self) -> Family:
        """The space with its builder, to train like any other."""
        return Family(
            space=self.space,
            build=self.build,
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            input_size=self.input_size,
            paper="arXiv 2110.08890",
            pieces=self.pieces,
        )


def augment(
    model: str | Family,
    r: float = 3.0,
    s: int = 2,
    *,
    arch: Arch | None = None,
    widths: Sequence[float] | None = None,
    expansions: Sequence[float] | None = None,
    num_classes: int | None = None,
    input_size: int | None = None,
) -> Augmentation:
    """The networks around a tiny model: a timm model by name, or the subnet `arch` (the smallest if None) of a family.

    Widths and expansions are the tiny model's times 1, 1 + (r - 1) / s, ..., r; `widths` and `expansions` name other
    factors, the first of which is 1. The authors' code takes widths 1, 1.8, 2.6 and expansions 1, 1.6, 2.2, 2.8.
    `num_classes` and `input_size` (pixels a side) are those of a timm model, by default its own.

    ValueError if nothing can be wider, or the model does not run when it is.
    """
    if not r > 1 or s < 1:
        raise ValueError(f"the widest network is r > 1 times as wide, in s >= 1 steps, not r = {r} and s = {s}")
    steps = [1 + (r - 1) * step / s for step in range(s + 1)]
    factors = {"widths": widths or steps, "expansions": expansions or steps}
    for name, values in factors.items():
        if values[0] != 1 or list(values) != sorted(set(values)):
            raise ValueError(f"{name} are factors that begin with 1 and rise, not {tuple(values)}")
    family = (
        FAMILIES["timm"](model, num_classes=num_classes, input_size=input_size) if isinstance(model, str) else model
    )
    arch = family.space.smallest if arch is None else family.space.validate(arch)
    create, size = partial(family.build, arch), family.resolution(arch)
    with torch.device("meta"):
        tiny = create()
    example = torch.empty(1, family.in_chans, size, size, device="meta")
    # channels in several blocks keep their number: a wider tensor would not begin with the tiny model's
    between, inside = _sort(tiny, [channels for channels in trace(tiny, example).channels if channels.plain])
    if not between and not inside:
        raise ValueError(f"{type(tiny).__name__} has no channels that could be more")
    choices: dict[str, Sequence[float]] = {
        f"{channels.name}.width": sorted({round(channels.size * factor) for factor in factors["widths"]})
        for channels in between
    }
    choices |= {f"{block}.expansion": tuple(factors["expansions"]) for _, block, _ in inside}
    space = SearchSpace(choices)
    found = Augmentation(space, create, between, inside, family.num_classes, family.in_chans, size)
    try:
        with torch.device("meta"):
            found.build(space.largest).eval()(example)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{type(tiny).__name__} does not run with more channels: {first_line(error)}") from error
    return found


def _sort(model: nn.Module, groups: Sequence[Channels]) -> tuple[tuple[Channels, ...], tuple[Inside, ...]]:
    """Channels between blocks, and those within one."""
    blocks = {channels: _block(model, channels) for channels in groups}
    source_of = {(name, dim): channels for channels in groups for name, dim, _ in channels.members}
    between = tuple(channels for channels, block in blocks.items() if block is None)
    inputs: dict[str, Channels] = {}
    for channels, block in blocks.items():
        sources = (source_of.get((weight, 1)) for weight in channels.producers)
        outer = next((source for source in sources if source is not None and blocks[source] is None), None)
        if block is not None and outer is not None:
            inputs.setdefault(block, outer)
    inside = tuple(
        Inside(channels, block, inputs.get(block)) for channels, block in blocks.items() if block is not None
    )
    return between, inside


def _block(model: nn.Module, channels: Channels) -> str | None:
    """The outermost module, lists of modules aside, that all of these channels lie within; None if there is none."""
    paths = [name.split(".")[:-1] for name, _, _ in channels.members]
    module, path = model, []
    for parts in zip(*paths):
        if len(set(parts)) > 1:
            return None
        module = getattr(module, parts[0])
        path.append(parts[0])
        if not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
            return ".".join(path)
    return None
