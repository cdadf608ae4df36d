"""Subnets' tensors that are no mere slices of the shared ones of their names.

Layers that share weights across depth have one *source*; weights that are masked or rounded have a *transform*. A
family says by `views(arch)` which names have a source or a transform of their own. Names of which a plain module has
one tensor are *tied*: the supernet stores it once, under the first of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor, nn

from supernet.plain import plain
from supernet.space import Arch

Transform = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class View:
    """A subnet's tensor: `transform(slice of source)`.

    `source` is the name of the shared tensor; None means the tensor's own name. No module need have a tensor of the
    name `source`. The shared tensor is as large as the largest of all tensors that are views of it, starts as the
    largest does, and is sliced alike for all of them. Gradients add up in it.

    `transform(weight)` gives a tensor of the same shape, and leaves `weight` as it is. It is part of what subnets are
    told apart by: equal for equal computations, and hashable, as a frozen dataclass is. The transform says what its
    gradient is: rounding has a gradient of zero unless the gradient is passed straight through. ValueError if the
    transform is not hashable.
    """

    source: str | None = None
    transform: Transform | None = None

    def __post_init__(self):
        try:
            hash(self.transform)
        except TypeError as error:
            raise ValueError(f"the transform {self.transform!r} is not hashable: make it a frozen dataclass") from error


Views = Callable[[Arch], Mapping[str, View]]

PLAIN = View()


def no_views(arch: Arch) -> Mapping[str, View]:
    """The views of a family in which every tensor is a slice of the shared tensor of its name: none."""
    return {}


def tied_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Every name of a tensor but its first, with its first: of the names in a module's `state_dict(keep_vars=True)`,
    where several may stand for one and the same tensor."""
    first: dict[int, str] = {}
    return {name: first[id(t)] for name, t in tensors.items() if first.setdefault(id(t), name) != name}


def tie_names(module: nn.Module, ties: Mapping[str, str]) -> nn.Module:
    """Give `module`, in place, under every name of `ties` the tensor that it has under the name that `ties` gives for
    it."""
    for alias, name in ties.items():
        owner, _, leaf = alias.rpartition(".")
        setattr(module.get_submodule(owner), leaf, attrgetter(name)(module))
    return module


def tied(module: nn.Module, views: Mapping[str, View]) -> nn.Module:
    """`module` with one parameter, in place, for all that are equal views of one source.

    Buffers stay apart, so that layers that share their weights have BatchNorm statistics each of its own, once they are
    extracted. ValueError if `module` has no tensor of a name in `views`.
    """
    if unknown := views.keys() - module.state_dict().keys():
        raise ValueError(f"`views` names {min(unknown)!r}, which is no tensor of the {type(module).__name__}")
    kept: dict[object, nn.Parameter] = {}
    ties: dict[nn.Parameter, nn.Parameter] = {}
    for name, parameter in module.named_parameters():
        view = views.get(name, PLAIN)
        ties[parameter] = kept.setdefault((view.source or name, parameter.shape, view.transform), parameter)
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is not None and ties[parameter] is not parameter:
                setattr(child, name, ties[parameter])
    return module


@dataclass(frozen=True)
class TiedBuilder:
    """`build`, with what `views` makes one tensor tied."""

    build: Callable[..., nn.Module]
    views: Views

    def __call__(self, arch: Arch, **options: float) -> nn.Module:
        return tied(plain(self.build(arch, **options)), self.views(arch))


def tied_builder(build: Callable[..., nn.Module], views: Views) -> Callable[..., nn.Module]:
    """`TiedBuilder(build, views)`, or `build` itself where that would do nothing more."""
    known = build.views if isinstance(build, TiedBuilder) else no_views
    return build if views == known else TiedBuilder(build, views)
