"""Cutting a plain module into a chain of pieces, and telling when two pieces are the same.

A piece takes what the piece before it made. A network of several inputs carries on the first of them; all others, the
mask of a text for example, go along unchanged, as a tuple, and every piece makes of them what it needs.

Works on any module that `torch.fx` can trace, also without weights: its pieces are given weights when they are to run.
A module that cannot be traced is a single piece.
"""

from __future__ import annotations

import functools
import operator
import types
from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType

import torch
from torch import Tensor, fx, nn

from supernet.views import View

Carried = Tensor | tuple[Tensor, ...]  # what one piece gives to the next, alone or before the network's further inputs

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def carried(x: Tensor, *further: Tensor) -> Carried:
    """What a piece takes, of its input and the network's further inputs."""
    return (x, *further) if further else x


class Key(tuple):
    """A tuple that knows its hash, which takes long to compute for a deep one."""

    def __hash__(self) -> int:
        if not hasattr(self, "_hash"):
            self._hash = super().__hash__()
        return self._hash


class Piece(nn.Module):
    """A part of a module's computation that one tensor is carried into and one out of.

    `key` is equal for two pieces of subnets of one supernet only if they compute the same: it holds the operations, the
    structure of the layers, and the names, shapes and views of the tensors, which in a supernet determine the weights.
    """

    def __init__(
        self,
        nodes: list[fx.Node],
        inputs: Sequence[fx.Node],
        names: Mapping[int, str],
        root: nn.Module,
        known: MutableMapping[nn.Module, Hashable],
        views: Mapping[str, View],
    ) -> None:
        super().__init__()
        self._nodes = nodes
        self._inputs = inputs  # what is carried in, and the network's further inputs
        self.names = names
        self._targets = {node: _resolve(root, node.target) for node in nodes if node.op in ("call_module", "get_attr")}
        self.layers = nn.ModuleList({id(t): t for t in self._targets.values() if isinstance(t, nn.Module)}.values())
        own = {names.get(id(tensor)) for tensors in self.owners() for tensor in tensors.values()} if views else ()
        self.views = {name: view for name, view in views.items() if name in own}
        positions = {node: -1 - place for place, node in enumerate(inputs)}
        positions |= {node: position for position, node in enumerate(nodes)}
        operations = [
            (
                node.op,
                node.target if isinstance(node.target, str) else _fingerprint(node.target, names),
                _fingerprint(fx.node.map_arg((node.args, node.kwargs), lambda n: ("node", positions[n])), names),
                _known_fingerprint(self._targets.get(node), names, known),
            )
            for node in nodes
        ]
        self.key = Key((*operations, *self.views.items()))

    def owners(self) -> list[dict]:
        """The dictionaries that hold the piece's tensors: the tensors of its layers, and those that it uses
        directly."""
        layers = self.layers.modules()
        return [*(tensors for layer in layers for tensors in (layer._parameters, layer._buffers)), self._targets]

    @property
    def called(self) -> dict[fx.Node, nn.Module]:
        """The layers, by the nodes that call them."""
        return {node: target for node, target in self._targets.items() if isinstance(target, nn.Module)}

    def tensors(self) -> dict[fx.Node, str]:
        """The names of the network's tensors that the piece uses directly, and not by a layer."""
        found = {node: self.names.get(id(target)) for node, target in self._targets.items() if node.op == "get_attr"}
        return {node: name for node, name in found.items() if name}

    def forward(self, x: Carried, tensors: Mapping[fx.Node, Tensor] = MappingProxyType({})) -> Carried:
        """What is carried on; `tensors` are used in the place of those that the piece uses directly."""
        given = x if isinstance(x, tuple) else (x,)
        values: dict[fx.Node, object] = dict(zip(self._inputs, given))
        for node in self._nodes:
            if node.op == "get_attr":
                values[node] = tensors.get(node, self._targets[node])
                continue
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "call_method":
                values[node] = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                values[node] = self._targets.get(node, node.target)(*args, **kwargs)
        made = values[self._nodes[-1]]
        return (made, *given[1:]) if isinstance(x, tuple) else made


class Chain(nn.Sequential):
    """Pieces one after the other, called with what is carried in and the network's further inputs."""

    def forward(self, *inputs: Tensor) -> Carried:
        x = carried(*inputs)
        for piece in self:
            x = piece(x)
        return x


def cut(
    model: nn.Module,
    known: MutableMapping[nn.Module, Hashable] | None = None,
    views: Mapping[str, View] = MappingProxyType({}),
    inputs: int = 1,
) -> list[Piece]:
    """The pieces of `model`, which is in eval mode and called with so many `inputs`, in order: one after the other,
    they compute the same.

    `known` keeps what keys say of a module, for models that have modules in common and do not change. `views` are those
    of a subnet's tensors that are no mere slices (`Supernet.views`).

    There is a cut wherever a single tensor carries everything on, beside what follows from further inputs alone, which
    every piece computes again where it needs it. There is none within a layer that holds no container
    (`nn.Sequential`, ...): in timm's networks, the cuts are between blocks.
    """
    known = {} if known is None else known
    names = {id(t): n for n, t in [*model.named_parameters(), *model.named_buffers()]}
    root = _Whole(model, inputs)
    source, further, computed = _trace(root)
    beside = _following(further, computed)
    computed = [node for node in computed if node not in beside]
    position = {node: index for index, node in enumerate(computed)}
    places = {node: [position[user] for user in node.users if user in position] for node in (source, *computed)}
    last_use = {node: max(users, default=-1) for node, users in places.items()}
    pieces, start, alive = [], 0, last_use[source]
    for index, node in enumerate(computed):
        # everything computed up to here but this node itself is used up
        if node.users and node.op != "get_attr" and alive <= index and not _is_several(node):
            own = computed[start : index + 1]
            nodes = [*_needed(own, beside), *own]
            pieces.append(Piece(nodes, (source, *further), names, root, known, views))
            source, start = node, index + 1
        alive = max(alive, last_use[node])
    return pieces


def _is_several(node: fx.Node) -> bool:
    """Whether a node gives several values, which are only taken out one by one."""
    return all(user.target is operator.getitem and isinstance(user.args[1], int) for user in node.users)


@contextmanager
def weights_in(pieces: Sequence[Piece], weight: Callable[[str, torch.Size, View | None], Tensor]) -> Iterator[Chain]:
    """The pieces as one module, in which for the time being tensors on the meta device have values: by name, shape and
    view.

    The values are put into the pieces' own modules, which other pieces may have too: such pieces do not run meanwhile.
    """
    without: list[tuple[dict, object, Tensor]] = []
    try:
        for piece in pieces:
            for tensors in piece.owners():
                for key, tensor in tensors.items():
                    if isinstance(tensor, Tensor) and tensor.is_meta:
                        without.append((tensors, key, tensor))
                        name = piece.names[id(tensor)]
                        tensors[key] = weight(name, tensor.shape, piece.views.get(name))
        yield Chain(*pieces)
    finally:
        for tensors, key, tensor in without:
            tensors[key] = tensor


class _Whole(nn.Module):
    """A model that is called with a tuple of its inputs, so that a trace has one placeholder, however many they are."""

    def __init__(self, model: nn.Module, inputs: int) -> None:
        super().__init__()
        self.model = model
        self.inputs = inputs

    def forward(self, x: tuple[Tensor, ...]) -> Tensor:
        return self.model(*[x[index] for index in range(self.inputs)])


class _Tracer(fx.Tracer):
    def __init__(self, opaque: bool) -> None:
        super().__init__()
        self._opaque = opaque

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        if name == "model":
            return self._opaque
        return not any(isinstance(child, CONTAINERS) for child in module.modules())


def _trace(root: _Whole) -> tuple[fx.Node, list[fx.Node], list[fx.Node]]:
    """The first input, the others, and all nodes behind them to the last one, which is what `root` gives."""
    try:
        *nodes, output = _Tracer(opaque=False).trace(root).nodes
    except Exception:  # whatever code does that depends on data or shapes: run it as it is
        nodes = None
    if nodes is None or output.args[0] is not nodes[-1]:  # several tensors, or one with more computed after it
        *nodes, output = _Tracer(opaque=True).trace(root).nodes
    _, source, *others = nodes  # behind the tuple that they are taken from
    return source, others[: root.inputs - 1], others[root.inputs - 1 :]


def _following(further: Sequence[fx.Node], nodes: Sequence[fx.Node]) -> dict[fx.Node, None]:
    """Those of `nodes`, in their order, that functions make of further inputs alone."""
    found: dict[fx.Node, None] = {}
    for node in nodes:
        made_of = node.all_input_nodes
        if node.op in ("call_function", "call_method") and made_of and all(n in further or n in found for n in made_of):
            found[node] = None
    return found


def _needed(nodes: Sequence[fx.Node], beside: Mapping[fx.Node, None]) -> list[fx.Node]:
    """Those of the nodes `beside` that `nodes` use, by way of others perhaps, in their order."""
    waiting, needed = list(nodes), set()
    while waiting:
        used = [node for node in waiting.pop().all_input_nodes if node in beside and node not in needed]
        needed.update(used)
        waiting += used
    return [node for node in beside if node in needed]


def _resolve(root: nn.Module, target: str) -> object:
    return functools.reduce(getattr, target.split("."), root)


def _known_fingerprint(value: object, names: Mapping[int, str], known: MutableMapping[nn.Module, Hashable]) -> Hashable:
    if not isinstance(value, nn.Module):
        return _fingerprint(value, names)
    if value not in known:
        known[value] = Key(_fingerprint(value, names))
    return known[value]


def _fingerprint(value: object, names: Mapping[int, str]) -> Hashable:
    """Equal for values that compute the same. A value of unknown kind is equal to nothing but itself."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | torch.dtype | torch.device):
        return type(value).__name__, value
    if isinstance(value, Tensor):
        if id(value) in names and names[id(value)]:
            return "tensor", names[id(value)], tuple(value.shape), value.dtype
        return "constant", tuple(value.shape), value.dtype, value.detach().cpu().contiguous().numpy().tobytes()
    if isinstance(value, list | tuple | torch.Size):
        return type(value).__name__, *(_fingerprint(item, names) for item in value)
    if isinstance(value, slice):
        return "slice", *(_fingerprint(item, names) for item in (value.start, value.stop, value.step))
    if isinstance(value, set | frozenset):
        return "set", frozenset(_fingerprint(item, names) for item in value)
    if isinstance(value, Mapping):
        return "mapping", *((key, _fingerprint(item, names)) for key, item in value.items())
    if isinstance(value, functools.partial):
        return "partial", *(_fingerprint(item, names) for item in (value.func, value.args, value.keywords))
    if isinstance(value, type | types.BuiltinFunctionType):
        return "callable", value.__module__, value.__qualname__
    if isinstance(value, types.FunctionType) and not value.__closure__:
        return "callable", value.__module__, value.__qualname__
    if isinstance(value, nn.Module):
        return type(value), *((name, _fingerprint(item, names)) for name, item in vars(value).items() if item != {})
    return "unknown", _Identity(value)


class _Identity:
    """Equal to that of the same object only."""

    def __init__(self, value: object) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self._value is other._value

    def __hash__(self) -> int:
        return id(self._value)
