"""What makes a family of plain modules a supernet: every subnet's tensors nest in the shared ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from supernet.space import Arch, SearchSpace


def covering_archs(space: SearchSpace) -> list[Arch]:
    """Architectures whose tensors, together, include every tensor of the space at its largest shape.

    Ordered choices make tensors larger, so they stay at their last value; unordered ones exchange parts of the
    network, so each of their values occurs. The first one is `space.largest`.
    """
    unordered = [choice for choice in space.choices.values() if not choice.ordered]
    count = max((len(choice.values) for choice in unordered), default=1)
    archs = [
        space.validate(
            {n: c.values[-1 if c.ordered else max(len(c.values) - 1 - i, 0)] for n, c in space.choices.items()}
        )
        for i in range(count)
    ]
    return list(dict.fromkeys(archs))


def probing_archs(space: SearchSpace, count: int = 8) -> list[Arch]:
    """The smallest architecture and `count` random ones, always the same, to check a builder on."""
    generator = np.random.default_rng(0)
    return list(dict.fromkeys([space.smallest, *(space.sample(generator) for _ in range(count))]))


def check_shape(name: str, shared: torch.Size, shape: torch.Size, is_kernel: bool, arch: Arch) -> None:
    """ValueError unless a tensor of `shape`, in the subnet `arch`, is a part of a shared tensor of size `shared`."""
    message = f"tensor {name!r} is {list(shape)} in {arch!r} but {list(shared)} in the supernet"
    if len(shape) != len(shared):
        raise ValueError(f"{message}: the number of dimensions must not depend on the architecture")
    if any(part > whole for part, whole in zip(shape, shared)):
        raise ValueError(
            f"{message}, so it is no part of it: no ordered choice may make a tensor larger than its last value does"
        )
    if is_kernel and any((part - whole) % 2 for part, whole in zip(shape[2:], shared[2:])):
        raise ValueError(f"{message}: a kernel is the centre of a larger one, so their sizes are all odd or all even")


def check_structure(space: SearchSpace, module_of: Callable[[Arch], nn.Module]) -> None:
    """ValueError if modules of the same name are of two types, or if a switch follows the sizes.

    A switch is an attribute that is true or false, or a child or tensor that is there or None, such as a residual
    connection or a bias. Between architectures that differ in ordered choices alone it must stay as it is.
    """
    types: dict[str, tuple[type, Arch]] = {}
    for arch in [*covering_archs(space), *probing_archs(space)]:
        module = module_of(arch)
        for name, child in module.named_modules():
            other, other_arch = types.setdefault(name, (type(child), arch))
            if type(child) is not other:
                raise ValueError(
                    f"module {name!r} is a {type(child).__name__} in {arch!r} but a {other.__name__} in "
                    f"{other_arch!r}: give operations of different types different names"
                )
        larger_arch = space.validate(
            {n: c.values[-1] if c.ordered else arch.get(n, c.values[-1]) for n, c in space.choices.items()}
        )
        larger_modules = dict(module_of(larger_arch).named_modules())
        for name, child in module.named_modules():
            if name in larger_modules:
                _check_switches(name, child, larger_modules[name], arch, larger_arch)


def _check_switches(name: str, module: nn.Module, larger: nn.Module, arch: Arch, larger_arch: Arch) -> None:
    switches, larger_switches = _switches(module), _switches(larger)
    for switch in switches.keys() & larger_switches.keys():
        if switches[switch] != larger_switches[switch]:
            raise ValueError(
                f"module {name!r} has {switch}={switches[switch]} in {arch!r} but {larger_switches[switch]} in "
                f"{larger_arch!r}: a connection must not come and go with the sizes; let the builder pin it"
            )


def _switches(module: nn.Module) -> Mapping[str, bool]:
    """Boolean attributes, and for every optional child or tensor whether it is there."""
    attributes = {name: value for name, value in vars(module).items() if isinstance(value, bool) and name != "training"}
    optional = {name: False for name, value in vars(module).items() if value is None}
    for members in (module._modules, module._parameters, module._buffers):
        optional.update({name: member is not None for name, member in members.items() if not name.isdigit()})
    return attributes | optional


def is_kernel(module: nn.Module, tensor_name: str) -> bool:
    return isinstance(module, _ConvNd) and tensor_name == "weight"
