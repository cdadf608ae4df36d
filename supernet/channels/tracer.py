"""Which dimensions of which tensors are the same channels, found by following one forward pass.

A convolution's outputs are the next one's inputs, and those of every layer that a residual adds to them. `trace`
follows every tensor of a module through its forward pass and ties the dimensions that must have the same size and the
same order. What comes out is enough to make a model narrower (`supernet.channels.widths`), to reorder its channels
without changing its function (`supernet.channels.importance`), and to count its MACs at any width.

Channels that pass a function without a rule in `supernet.channels.rules` are fixed: a layer may be found to be less
elastic than it is, never more.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from supernet.channels.labels import FIXED, Labels, LabelSet
from supernet.channels.residuals import Residuals
from supernet.channels.rules import adds, changes_one, channel_rule
from supernet.costs import flop_counter
from supernet.plain import floating_dtype
from supernet.skeleton import without_data

# B batch

T = TypeVar("T")


class Member(NamedTuple):
    """A dimension in which channels lie, in equal blocks one after another; in each of them every channel may take
    several entries in a row."""

    tensor: str
    dim: int
    blocks: int = 1


@dataclass(frozen=True)
class Channels:
    """Channels that are the same in several tensors."""

    name: str  # of the first layer that puts the channels out
    size: int
    members: tuple[Member, ...]
    producers: tuple[str, ...]  # weights of the layers that put the channels out
    scales: tuple[str, ...]  # of the batch normalisations that the channels pass
    each: int = 1  # neighbouring entries that one of them is, as a head of attention is

    @property
    def plain(self) -> bool:
        """Whether these channels lie in one block alone in every dimension that has them."""
        return all(blocks == 1 for _, _, blocks in self.members)


class Extent(NamedTuple):
    """The size of a tensor along one dimension: `count` times the number of these channels, or `count` if None."""

    count: int
    channels: Channels | None

    def size(self, widths: Mapping[str, int]) -> int:
        """The size where `widths` says, by the channels' name, how many of them there are; channels that it lacks are
        as many as were traced."""
        return self.count * widths.get(self.channels.name, self.channels.size) if self.channels else self.count


class Call(NamedTuple):
    """One call of a function of torch's."""

    function: str
    results: tuple[tuple[Extent, ...], ...]  # the shapes of the tensors that it gives


class Layer(NamedTuple):
    """One call of a function that multiplies and accumulates."""

    module: str
    macs: int  # for one image
    channels: tuple[Channels, ...]  # the MACs are proportional to the product of their numbers


@dataclass(frozen=True)
class Trace:
    """What `trace` finds."""

    channels: tuple[Channels, ...]  # the channels that may become fewer
    layers: tuple[Layer, ...]
    removable: Mapping[str, Mapping[str, int]]  # a list of modules, the residual blocks at its end, and their places
    fixed: Mapping[str, str]  # layers whose outputs have to stay, and the function that fixes each
    output: object  # of the model, on the meta device, or on the CPU if it does not run there
    macs: int  # for one image
    calls: Mapping[str, Sequence[Call]]  # by the module that runs, in order


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Follow one forward pass of `model` in eval mode on an image like the first of `example` [B, ...], without data;
    see `skeleton.without_data` for how. ValueError if it does not run."""
    return without_data(model, partial(trace_on, example))


def trace_on(example: Tensor, model: nn.Module, device: torch.device) -> Trace:
    """`trace`, of a model in eval mode that lies on `device`, as it is; it is left with hooks."""
    counter = flop_counter()
    tracer = Tracer(model, counter)
    dtype = floating_dtype(model) if example.is_floating_point() else example.dtype
    image = torch.zeros((1, *example.shape[1:]), dtype=dtype, device=device)
    with counter, tracer:
        output = model(image)
    tracer.fix(itertools.chain(*map(tracer.labels, _tensors([output]))), "")
    return tracer.result(output)


class Tracer(TorchFunctionMode):
    """Gives every dimension of every tensor a label, and ties labels as functions are called."""

    def __init__(self, model: nn.Module, counter: FlopCounterMode) -> None:
        super().__init__()
        self.set = LabelSet()
        self._model = model
        self._counter = counter
        kept = set(model.state_dict())  # other buffers are constants, which do not become fewer
        tensors = [*model.named_parameters(), *((n, b) for n, b in model.named_buffers() if n in kept)]
        self._names = {id(tensor): name for name, tensor in tensors}
        self._shapes = {name: tensor.shape for name, tensor in tensors}
        modules = dict(model.named_modules())
        self._kernels = {f"{name}.weight" for name, module in modules.items() if isinstance(module, _ConvNd)}
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = []  # so that no two tensors have the same id
        self._members: list[tuple[int, tuple[str, int]]] = []  # label; tensor and dimension
        self._producers: list[tuple[int, str]] = []  # label, weight
        self._scales: list[tuple[int, str]] = []  # label, weight
        self._factors: Labels = ()  # what the MACs of the function that is running are proportional to
        self._layers: list[tuple[str, int, Labels]] = []
        self._calls: dict[str, list[tuple[str, list[tuple[torch.Size, Labels]]]]] = {}  # by module, and what they give
        self._running: list[tuple[str, int]] = []  # modules and when they began, the innermost last
        self._residuals = Residuals()
        for name, module in modules.items():
            module.register_forward_pre_hook(lambda *_, name=name: self._running.append((name, self._residuals.time)))
            module.register_forward_hook(self._leave, with_kwargs=True)

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        name, since = self._running.pop()
        taken = [t for t in _tensors([*args, *kwargs.values()]) if self._agree(t, output)]
        self._residuals.leave(name, since, taken, output)

    def _agree(self, taken: Tensor, given: object) -> bool:
        """Whether two tensors have the same channels."""
        if not isinstance(given, Tensor) or taken.dim() != given.dim():
            return False
        return all(self.set.parts(a) == self.set.parts(b) for a, b in zip(self.labels(taken), self.labels(given)))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        if name == "get":  # of a property, such as `T`
            name = func.__self__.__name__
        tensors = _tensors([*args, *kwargs.values()])
        labels = [self.labels(t) for t in tensors]
        before = self._counter.get_total_flops()
        result = func(*args, **kwargs)
        macs = (self._counter.get_total_flops() - before) // 2
        outputs = _tensors([result])
        if not outputs and name not in ("setitem", "iter"):
            return result  # a question about a shape
        given: list[tuple[torch.Size, Labels]] = []
        self._calls.setdefault(self._running[-1][0], []).append((name, given))
        self.set.reason, self._factors = name, ()
        if not outputs:  # what becomes of the channels is not followed
            self.set.fix(itertools.chain(*labels))
            return result
        self._follow(name, tensors, outputs)
        rule = channel_rule(name, result, args, kwargs)
        found = rule(self, result, *args, **kwargs) if rule else None
        if found is None:
            self.set.fix(itertools.chain(*labels))
            self._factors = ()
            found = [(FIXED,) * t.dim() for t in outputs]
        if macs:
            self._layers.append((self._running[-1][0], macs, self._factors))
        for tensor, of_tensor in zip(outputs, [found] if isinstance(found, tuple) else found):
            assert len(of_tensor) == tensor.dim(), f"{name} gave labels {of_tensor} to {list(tensor.shape)}"
            self._labels[id(tensor)] = of_tensor
            self._alive.append(tensor)
            given.append((tensor.shape, of_tensor))
        return result

    def _follow(self, name: str, tensors: list[Tensor], outputs: list[Tensor]) -> None:
        if adds(name) and [t.shape for t in tensors] == [outputs[0].shape] * 2:
            if not any(id(tensor) in self._names for tensor in tensors):
                self._residuals.follow(outputs[0], tensors, added=True)
        elif changes_one(name) and tensors and tensors[0].numel() == outputs[0].numel():
            self._residuals.follow(outputs[0], tensors[:1], added=False)

    def labels(self, tensor: Tensor) -> Labels:
        if id(tensor) not in self._labels:
            name = self._names.get(id(tensor))
            labels = self._labels_of(name, tensor.shape)
            self._members += [(label, (name, dim)) for dim, label in enumerate(labels) if label != FIXED]
            self._labels[id(tensor)] = labels
            self._alive.append(tensor)
        return self._labels[id(tensor)]

    def _labels_of(self, name: str | None, shape: torch.Size) -> Labels:
        if name is None:
            return (FIXED,) * len(shape)
        channels = 2 if name in self._kernels else len(shape)  # what follows are pixels
        return tuple(self.set.new(size) if size > 1 and dim < channels else FIXED for dim, size in enumerate(shape))

    def tie(self, a: int, b: int) -> int:
        return self.set.tie(a, b)

    def fix(self, labels: Iterable[int], reason: str | None = None) -> None:
        """Fix these channels, because of `reason`: the function that is running if None."""
        if reason is not None:
            self.set.reason = reason
        self.set.fix(labels)

    def costs(self, *labels: int) -> None:
        """Say that the MACs of the function that is running are proportional to the sizes of these dimensions."""
        self._factors = labels

    def produce(self, weight: Tensor, output: int) -> None:
        """Note the weight of a layer that puts out the channels `output`."""
        name = self._names.get(id(weight))
        if name is None and self._running:  # made of a parameter, by standardisation for example
            name = f"{self._running[-1][0]}.weight".lstrip(".")
        if self._shapes.get(name) == weight.shape:
            self._producers.append((output, name))

    def scale(self, weight: Tensor | None, label: int) -> None:
        """Note the scale of a normalisation."""
        if id(weight) in self._names:
            self._scales.append((label, self._names[id(weight)]))

    def result(self, output: object) -> Trace:
        producers, scales = map(self._by_label, (self._producers, self._scales))
        members: dict[int, list[Member]] = {}
        for label, (name, dim) in self._members:
            blocks, base, _ = self.set.parts(label)
            members.setdefault(base, []).append(Member(name, dim, blocks))
        channels = {
            label: Channels(
                name=weights[0].rpartition(".")[0],
                size=self.set.size(label),
                members=tuple(members[label]),
                producers=tuple(weights),
                scales=tuple(scales.get(label, ())),
            )
            for label, weights in producers.items()
            if label != FIXED
        }
        layers = []
        for module, macs, factors in self._layers:
            bases = [self.set.parts(label).label for label in factors]
            layers.append(Layer(module, macs, tuple(channels[base] for base in bases if base in channels)))
        fixed = {weight.rpartition(".")[0]: self.set.why(label) for label, weight in self._producers}
        return Trace(
            channels=tuple(channels.values()),
            layers=tuple(layers),
            removable=self._residuals.removable(self._model),
            fixed={layer: reason for layer, reason in fixed.items() if reason},
            output=output,
            macs=self._counter.get_total_flops() // 2,
            calls={
                module: [
                    Call(name, tuple(self._extents(*tensor, channels) for tensor in given)) for name, given in those
                ]
                for module, those in self._calls.items()
            },
        )

    def _extents(self, shape: torch.Size, labels: Labels, channels: Mapping[int, Channels]) -> tuple[Extent, ...]:
        bases = [channels.get(self.set.parts(label).label) for label in labels]
        return tuple(Extent(size // base.size if base else size, base) for size, base in zip(shape, bases))

    def _by_label(self, entries: Iterable[tuple[int, T]]) -> dict[int, list[T]]:
        found: dict[int, dict[T, None]] = {}
        for label, entry in entries:
            found.setdefault(self.set.parts(label).label, {})[entry] = None
        return {label: list(those) for label, those in found.items()}


def _tensors(values: Iterable) -> list[Tensor]:
    """All tensors in these values, and in the tuples, lists and maps among them."""
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            found += _tensors(value.values())
        elif isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            found += _tensors(value)
    return found
