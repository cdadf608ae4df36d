"""What a named search space comes with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import nn

from supernet.slicing import Rule
from supernet.space import Arch, SearchSpace
from supernet.supernet import Supernet


@dataclass(frozen=True)
class Family:
    """A search space, the builder of its plain modules, and what follows from an architecture without building it.

    `build(arch, drop_rate=0.0, drop_path_rate=0.0)` gives the plain module; the rates (of dropout before the
    classifier and of stochastic depth) add no tensors. `macs(arch)` counts the multiply-accumulates of convolutions
    and matrix products for one image at `resolution(arch)`, `parameters(arch)` the trainable parameters, both exactly.
    """

    space: SearchSpace
    build: Callable[..., nn.Module]
    macs: Callable[[Arch], int]
    parameters: Callable[[Arch], int]
    num_classes: int
    in_chans: int
    input_size: int | None = None  # pixels a side, in a space without the choice `resolution`
    rules: Mapping[str, Rule] = field(default_factory=dict)
    paper: str = ""

    def resolution(self, arch: Arch) -> int:
        """Height and width in pixels of the images that `arch` is meant for."""
        return arch.get("resolution", self.input_size)

    def supernet(self, seed: int = 0) -> Supernet:
        """A supernet of this family with weights initialised from `seed`."""
        return Supernet(self.space, self.build, self.rules, seed=seed)
