"""Which dimensions of which tensors are the same channels, found by following one forward pass.

A convolution's outputs are the next one's inputs, and those of every layer that a residual adds to them. `trace`
follows every tensor of a module through its forward pass and ties the dimensions that must have the same size and the
same order. What comes out is enough to make a model narrower (`narrow`), to reorder its channels without changing its
function (`supernet.importance`), and to count its MACs at any width.

Channels that pass a function without a rule in `supernet.channel_rules` are fixed: a layer may be found to be less
elastic than it is, never more.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from supernet.channel_rules import FIXED, Labels, rule_for
from supernet.plain import count_classes
from supernet.slicing import leading

# B batch

T = TypeVar("T")


@dataclass(frozen=True)
class Channels:
    """Channels that are the same in several tensors."""

    name: str  # of the first layer that puts them out
    size: int
    members: tuple[tuple[str, int], ...]  # tensor and dimension
    producers: tuple[str, ...]  # weights of the layers that put them out, of shape [size, ...]
    scales: tuple[str, ...]  # of the batch normalisations that they pass, of shape [size]


class Layer(NamedTuple):
    """One use of a weight, or one product of two activations."""

    module: str
    weight: str | None
    macs: int  # for one image; those of every element of the weight, if there is one


@dataclass(frozen=True)
class Trace:
    """What `trace` finds."""

    channels: tuple[Channels, ...]  # those that may become fewer
    layers: tuple[Layer, ...]
    removable: Mapping[str, int]  # an `nn.Sequential`, and its number of modules before the residual blocks at its end


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Follow one forward pass of `model` in eval mode on an input like `example` [B, ...], on the meta device."""
    model = copy.deepcopy(model).to("meta").eval()
    example = example[:1].to("meta").expand(2, *example.shape[1:])  # no dimension of the batch is 1, as in a broadcast
    tracer = Tracer(model)
    with torch.no_grad(), tracer:
        output = model(example)
    count_classes(output)
    tracer.fix(tracer.labels(output))
    return tracer.result()


def narrow(model: nn.Module, sizes: Mapping[Channels, int]) -> nn.Module:
    """Keep the leading `sizes[channels]` of each of these channels, in place; returns `model`.

    The layers' own numbers (`in_channels`, `num_features`, ...) follow. Tensors that `model` lacks are left out.
    """
    return _resize(model, sizes, lambda tensor, shape: leading(tensor, shape).clone())


def widen(model: nn.Module, sizes: Mapping[Channels, int]) -> nn.Module:
    """Make each of these channels `sizes[channels]` in number, none fewer, in place; returns `model`.

    The leading ones keep their weights. The others are drawn by torch's global generator from the normal distribution
    with the mean and standard deviation of the tensor, so that scales of 1 and biases of 0 stay what they are. The
    layers' own numbers follow, as in `narrow`.
    """
    return _resize(model, sizes, _extended)


def _extended(tensor: Tensor, shape: torch.Size) -> Tensor:
    if tensor.is_meta:
        return tensor.new_empty(shape)
    whole = nn.Parameter(tensor.new_empty(shape), requires_grad=False)
    values = tensor.float()
    whole.normal_(values.mean().item(), values.std(correction=0).item())
    leading(whole.detach(), tensor.shape).copy_(tensor)
    return whole.detach()


def _resize(
    model: nn.Module, sizes: Mapping[Channels, int], change: Callable[[Tensor, torch.Size], Tensor]
) -> nn.Module:
    """Give the tensors of `model` that these channels are in new sizes, by `change`, in place."""
    present = {name for name, _ in itertools.chain(model.named_parameters(), model.named_buffers())}
    cuts: dict[str, dict[int, int]] = {}
    for channels, size in sizes.items():
        for name, dim in channels.members:
            if name in present:
                cuts.setdefault(name, {})[dim] = size
    for name, sizes_of in cuts.items():
        owner, _, leaf = name.rpartition(".")
        module = model.get_submodule(owner)
        tensor = getattr(module, leaf)
        shape = torch.Size(sizes_of.get(dim, size) for dim, size in enumerate(tensor.shape))
        part = change(tensor.detach(), shape)
        setattr(module, leaf, nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part)
        if leaf == "weight":
            _set_numbers(module, shape)
    return model


def _set_numbers(module: nn.Module, shape: torch.Size) -> None:
    """Set what a layer says of its sizes to those of its weight."""
    if isinstance(module, _ConvNd):
        if module.groups > 1:  # depthwise; the channels of all other grouped convolutions are fixed
            module.groups = module.in_channels = module.out_channels = shape[0]
        else:
            module.out_channels, module.in_channels = shape[:2]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = shape
    elif isinstance(module, _NormBase):
        module.num_features = shape[0]
    elif hasattr(module, "normalized_shape"):
        module.normalized_shape = tuple(shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = shape[0]


class Tracer(TorchFunctionMode):
    """Gives every dimension of every tensor a label, and ties labels as functions are called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._names = {id(t): name for name, t in itertools.chain(model.named_parameters(), model.named_buffers())}
        self._labels: dict[int, Labels] = {}
        self._alive: list[Tensor] = []  # so that no two tensors have the same id
        self._parents = [FIXED]  # of every label, in a union-find
        self._sizes = [1]
        self._members: list[tuple[int, tuple[str, int]]] = []  # label; tensor and dimension
        self._producers: list[tuple[int, str]] = []  # label, weight
        self._scales: list[tuple[int, str]] = []  # label, weight
        self._layers: list[Layer] = []
        self._running: list[str] = []  # modules, the innermost last
        self._adding: set[str] = set()  # modules that add two activations
        self._residual: dict[str, bool] = {}
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self._running.append(name))
            module.register_forward_hook(self._leave)

    def _leave(self, module: nn.Module, args: tuple, output: object) -> None:
        name = self._running.pop()
        if self._running and name in self._adding:
            self._adding.add(self._running[-1])
        self._residual[name] = self._residual.get(name, True) and self._is_residual(name, args, output)

    def _is_residual(self, name: str, args: tuple, output: object) -> bool:
        """Whether a module that has just run put out the channels that it took in, plus something of its own."""
        if name not in self._adding or len(args) != 1 or not all(isinstance(t, Tensor) for t in (args[0], output)):
            return False
        taken, given = ([self.find(label) for label in self.labels(tensor)] for tensor in (args[0], output))
        own = {self.find(label) for label, weight in self._producers if weight.startswith(f"{name}.")}
        return args[0].shape == output.shape and taken == given and bool(own & set(given) - {FIXED})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.__name__.strip("_")
        tensors = [t for t in _flatten([*args, *kwargs.values()]) if isinstance(t, Tensor)]
        labels = [self.labels(t) for t in tensors]
        result = func(*args, **kwargs)
        outputs = [t for t in _flatten([result]) if isinstance(t, Tensor)]
        if not outputs:
            if name == "setitem":  # what becomes of the channels is not followed
                self.fix(itertools.chain(*labels))
            return result  # all else is a question about a shape
        if name in ("add", "iadd") and [t.shape for t in tensors] == [outputs[0].shape] * 2:
            self._adding.add(self._running[-1])
        rule = rule_for(name, result, args, kwargs)
        found = rule(self, result, *args, **kwargs) if rule else None
        if found is None:
            self.fix(itertools.chain(*labels))
            found = [(FIXED,) * t.dim() for t in outputs]
        for tensor, of_tensor in zip(outputs, [found] if isinstance(found, tuple) else found):
            assert len(of_tensor) == tensor.dim(), f"{name} gave labels {of_tensor} to {list(tensor.shape)}"
            self._labels[id(tensor)] = of_tensor
            self._alive.append(tensor)
        return result

    def labels(self, tensor: Tensor) -> Labels:
        if id(tensor) not in self._labels:
            name = self._names.get(id(tensor))
            labels = tuple(FIXED if name is None or size == 1 else self._new(size) for size in tensor.shape)
            self._members += [(label, (name, dim)) for dim, label in enumerate(labels) if label != FIXED]
            self._labels[id(tensor)] = labels
            self._alive.append(tensor)
        return self._labels[id(tensor)]

    def _new(self, size: int) -> int:
        self._parents.append(len(self._parents))
        self._sizes.append(size)
        return len(self._parents) - 1

    def find(self, label: int) -> int:
        while self._parents[label] != label:
            label = self._parents[label]
        return label

    def tie(self, a: int, b: int) -> int:
        """Make the two labels one; the fixed one stays the root."""
        a, b = sorted((self.find(a), self.find(b)))
        self._parents[b] = a
        return a

    def fix(self, labels: Iterable[int]) -> None:
        for label in labels:
            self.tie(label, FIXED)

    def use(self, weight: Tensor | None, macs: int, output: int | None = None) -> None:
        """Note a layer, and the label of the channels that it puts out."""
        name = self._names.get(id(weight))
        if weight is not None and name is None:  # computed from others
            self.fix(self.labels(weight))
            macs *= weight.numel()
        self._layers.append(Layer(self._running[-1], name, macs))
        if output is not None and name is not None:
            self._producers.append((output, name))

    def scale(self, weight: Tensor | None, label: int) -> None:
        """Note the scale of a normalisation."""
        if id(weight) in self._names:
            self._scales.append((label, self._names[id(weight)]))

    def result(self) -> Trace:
        members, producers, scales = map(self._by_label, (self._members, self._producers, self._scales))
        channels = [
            Channels(
                name=weights[0].rpartition(".")[0],
                size=self._sizes[label],
                members=tuple(members[label]),
                producers=tuple(weights),
                scales=tuple(scales.get(label, ())),
            )
            for label, weights in producers.items()
            if label != FIXED
        ]
        return Trace(tuple(channels), tuple(self._layers), self._removable())

    def _by_label(self, entries: Iterable[tuple[int, T]]) -> dict[int, list[T]]:
        found: dict[int, dict[T, None]] = {}
        for label, entry in entries:
            found.setdefault(self.find(label), {})[entry] = None
        return {label: list(those) for label, those in found.items()}

    def _removable(self) -> dict[str, int]:
        removable = {}
        for name, module in self.model.named_modules():
            if type(module) is nn.Sequential:
                residual = [self._residual.get(f"{name}.{child}".lstrip("."), False) for child in module._modules]
                kept = len(residual)
                while kept > 1 and residual[kept - 1]:
                    kept -= 1
                if kept < len(residual):
                    removable[name] = kept
        return removable


def _flatten(values: Iterable) -> Iterable:
    for value in values:
        if isinstance(value, list | tuple) and not isinstance(value, torch.Size):
            yield from _flatten(value)
        else:
            yield value
