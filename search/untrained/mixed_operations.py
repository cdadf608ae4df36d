"""Networks that apply several operations at once, made from any builder that chooses between operations."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from supernet.space import Arch, SearchSpace

Builder = Callable[[Arch], nn.Module]
Candidates = Mapping[str, Sequence[str]]  # of each choice, the operations still in question


class MixedOperation(nn.Sequential):
    """The mean of several operations on the same input, in the place of a container of one."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(operation(x) for operation in self) / len(self)


def mix(space: SearchSpace, build: Builder, candidates: Candidates) -> nn.Module:
    """The plain module of `build` with, in the place of each choice, the mean of all its candidate operations.

    With one candidate everywhere this computes what `build` gives for that architecture, and tensors have the same
    names and shapes as there. Needs a space of operations (strings) without dependent choices, and a builder that puts
    the operation of a choice into containers whose only child is named after it, as a supernet of operations does:
    `nn.Sequential(OrderedDict({"nor_conv_3x3": ...}))`. ValueError naming the choice where that is not so.
    """
    check_operations(space)
    base = {name: operations[0] for name, operations in candidates.items()}
    mixed = build(space.validate(base))
    for name, operations in candidates.items():
        if len(operations) == 1:
            continue
        variants = {operation: build(space.validate({**base, name: operation})) for operation in operations}
        places = _places(variants)
        if not places:
            raise ValueError(
                f"the operations of choice {name!r} cannot be mixed: the builder has no module whose only child is "
                f"named {operations[0]!r} or {operations[1]!r}, by the operation"
            )
        for place in places:
            parts = {
                operation: variant.get_submodule(f"{place}.{operation}") for operation, variant in variants.items()
            }
            mixed.set_submodule(place, MixedOperation(OrderedDict(parts)))
    return mixed


def check_operations(space: SearchSpace) -> None:
    """ValueError unless every choice of the space is an unconditional one between operations."""
    for name, choice in space.choices.items():
        if choice.ordered or choice.when:
            kind = "depends on others" if choice.when else f"is one of the numbers {choice.values}"
            raise ValueError(f"operations are pruned from spaces that choose between them, but choice {name!r} {kind}")


def _places(variants: Mapping[str, nn.Module]) -> list[str]:
    """The paths of the modules that have the operation as their only child, in the variants of every operation."""
    found = [
        {path for path, module in variant.named_modules() if list(module._modules) == [operation]}
        for operation, variant in variants.items()
    ]
    return sorted(set.intersection(*found))
