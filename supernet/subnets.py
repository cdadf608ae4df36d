"""Subnets at work: plain modules without weights, to which parts of the shared tensors are lent.

What lending takes is found once for every module and known again in all subnets that have it in common, so that a
subnet costs little more than its kernels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from supernet.slicing import Rule, dense, indexing, take
from supernet.views import Transform

Tensors = dict[str, Tensor | None]  # those of a module, as it keeps them: its parameters, or its buffers
Arrived = Callable[[Tensor], None]  # is called with a shared tensor that has all of its gradient


class Part(NamedTuple):
    """One tensor of a subnet: which shared one it is a part of, which part, and what is made of that."""

    source: str
    shape: torch.Size
    rule: Rule
    transform: Transform | None


class Slot:
    """A tensor of a plain module: where the module keeps it, and where the shared one is kept that it is a part of."""

    def __init__(self, name: str, kept: Tensors, key: str, part: Part, shared: Tensors, shared_key: str) -> None:
        self.name, self.part = name, part
        self.kept, self.key = kept, key
        self.empty = kept[key]  # without values, on the meta device
        self.shared, self.shared_key = shared, shared_key
        source = shared[shared_key]
        self.is_whole = source.shape == part.shape
        self._index = None if self.is_whole else indexing(part.rule, source.shape, part.shape)
        self.is_indexed = self.is_whole or self._index is not None
        self._strides = source.stride()
        if self._index:
            self._offset = sum(where.start * stride for where, stride in zip(self._index, self._strides))

    def cut(self, tensor: Tensor) -> Tensor:
        """The part of `tensor`, which has the shape of the shared one, as a view."""
        if self.is_whole:
            return tensor
        if tensor.stride() == self._strides:  # a single operator, where indexing takes one for each dimension
            return tensor.as_strided(self.part.shape, self._strides, tensor.storage_offset() + self._offset)
        return tensor[self._index]

    def piece(self, source: Tensor) -> Tensor:
        """What `take` gives but for the transform, apart from autograd; of a slot that `is_indexed`."""
        tensor = source.detach() if source.requires_grad else source
        return tensor if self.is_whole else dense(self.cut(tensor))

    def transformed(self, piece: Tensor) -> Tensor:
        return piece if self.part.transform is None else self.part.transform(piece)


class _Lent(torch.autograd.Function):
    """The pieces of shared tensors at several slots, as one function: in the backward pass their gradients are added to
    those of the shared tensors, all at once. One by one that would take an operator for each, and by autograd's own
    ways a tensor as large as the shared one."""

    @staticmethod
    def forward(ctx, slots: Sequence[Slot], *sources: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.slots, ctx.sources = slots, sources
        return tuple(slot.piece(source) for slot, source in zip(slots, sources))

    @staticmethod
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        memories = Counter(_memory(gradient) for gradient in gradients if gradient is not None)
        begun: list[Tensor | None] = [None]  # the gradients that autograd begins with, and may keep as they are
        arrived = []
        for slot, source, gradient in zip(ctx.slots, ctx.sources, gradients):
            is_begun = gradient is not None and slot.is_whole and source.grad is None
            if gradient is not None and not is_begun:
                arrived.append((slot, source, gradient))
            elif is_begun and memories[_memory(gradient)] > 1:
                gradient = gradient.clone()  # two of them would be added to whenever one is
            begun.append(gradient if is_begun else None)
        _add(arrived)
        return tuple(begun)


def _memory(gradient: Tensor) -> int:
    """What is the same for gradients that lie in the same memory."""
    return gradient.untyped_storage().data_ptr() if gradient.layout is torch.strided else id(gradient)


def _add(arrived: Sequence[tuple[Slot, Tensor, Tensor]]) -> None:
    """Add the gradients of pieces to those of the shared tensors, each given with its slot and its shared tensor."""
    for _, source, _ in arrived:
        if source.grad is None:
            source.grad = torch.zeros_like(source)
    add_to_parts((slot.cut(source.grad), source, gradient) for slot, source, gradient in arrived)


def add_to_parts(added: Iterable[tuple[Tensor, Tensor, Tensor]]) -> None:
    """Add to parts of tensors: each a part, the tensor that it is of, and what is added.

    All at once, but for parts of one tensor, which may overlap and come one after the other.
    """
    left = list(added)
    while left:
        sources, parts, values, later = set(), [], [], []
        for part, source, value in left:
            if id(source) in sources:
                later.append((part, source, value))
                continue
            sources.add(id(source))
            parts.append(part)
            values.append(value)
        torch._foreach_add_(parts, values)
        left = later


def _arrive(slot: Slot, source: Tensor, arrived: Arrived, piece: Tensor) -> None:
    """Hand the gradient of the `piece` at a slot on, as soon as autograd has it, to the shared tensor `source`."""
    gradient, piece.grad = piece.grad, None
    _add([(slot, source, gradient)])
    arrived(source)


class Leaf(NamedTuple):
    """A tensor that a gradient is asked of: a piece of a shared one, or itself one that has weights."""

    tensor: Tensor
    source: Tensor
    slot: Slot | None  # None where it is the whole of the source

    def part_of(self, gradient: Tensor) -> Tensor:
        """The part of the source's gradient that is this one's."""
        return gradient if self.slot is None else self.slot.cut(gradient)


class Alias(NamedTuple):
    """A further place of a plain module for a tensor that it has under another name."""

    name: str
    kept: Tensors
    key: str
    empty: Tensor
    first: str  # the name under which it is lent


class Plan(NamedTuple):
    """What lending to a module takes."""

    prefix: str  # of the names of the module's tensors
    modules: tuple[nn.Module, ...]  # the modules within it
    slots: tuple[Slot, ...]
    aliases: tuple[Alias, ...]
    names: Mapping[int, str]  # names of the slots, by the identity of the tensors without values


class LentSubnet:
    """A plain module without weights, and where the tensors belong that it runs on."""

    def __init__(self, module: nn.Module, plan: Plan) -> None:
        self.module = module
        self._modules, self._slots, self._aliases = (module, *plan.modules), plan.slots, plan.aliases
        self._sets_mode = any(type(child).train is not nn.Module.train for child in self._modules)

    @property
    def ties(self) -> dict[str, str]:
        """Every name of a tensor but its first, with its first."""
        return {alias.name: alias.first for alias in self._aliases}

    @cached_property
    def parts(self) -> dict[str, Part]:
        """The parts that the subnet's tensors are, by the tensors' names, but for the names of `ties`."""
        return {slot.name: slot.part for slot in self._slots}

    @cached_property
    def sources(self) -> set[str]:
        """The shared tensors that the subnet has parts of."""
        return {slot.part.source for slot in self._slots}

    @cached_property
    def early(self) -> set[str]:
        """Those of the sources that `lent` may call `arrived` with."""
        counts = Counter(slot.part.source for slot in self._slots)
        return {slot.part.source for slot in self._slots if slot.is_indexed and counts[slot.part.source] == 1}

    def telling(self) -> list[Tensor]:
        """The shared tensors that `lent` calls `arrived` with, where they get a gradient."""
        slots = (slot for slot in self._slots if slot.part.source in self.early)
        sources = (slot.shared[slot.shared_key] for slot in slots)
        return [source for source in sources if source.requires_grad and source.is_leaf]

    def set_mode(self, training: bool) -> None:
        """As `nn.Module.train`."""
        if self._sets_mode:
            self.module.train(training)
        else:
            for child in self._modules:
                child.__dict__["training"] = training

    def lent(self, accumulate: bool, arrived: Arrived | None = None) -> list[Tensor]:
        """The tensors to run on, differentiably. With `accumulate` a backward pass adds to the `.grad` of the shared
        tensors by itself where they are leaves of which the parts are mere slices.

        With `arrived` as well it does so at once, one tensor after the other, where the subnet has a single part of
        them, and calls `arrived` with each, which is then complete; that is not called for the others, whose gradients
        come at the end.
        """
        found: list[Tensor | None] = []
        slots, sources, places = [], [], []
        follows = torch.is_grad_enabled()
        for slot in self._slots:
            source = slot.shared[slot.shared_key]
            learns = follows and source.requires_grad
            if not slot.is_indexed or (learns and not (accumulate and source.is_leaf)):
                found.append(take(source, slot.part.shape, slot.part.rule, slot.part.transform))
            elif learns and arrived and slot.part.source in self.early:
                # a leaf, since autograd runs what adds to leaves first, and functions like _Lent last
                piece = slot.piece(source).requires_grad_()
                piece.register_post_accumulate_grad_hook(partial(_arrive, slot, source, arrived))
                found.append(slot.transformed(piece))
            elif learns:
                slots.append(slot)
                sources.append(source)
                places.append(len(found))
                found.append(None)
            else:
                found.append(slot.transformed(slot.piece(source)))
        if slots:
            for slot, place, piece in zip(slots, places, _Lent.apply(slots, *sources)):
                found[place] = slot.transformed(piece)
        return found

    def leaves(self) -> tuple[list[Tensor], list[Leaf]]:
        """The tensors to run on, as `lent` gives them, and what they are differentiable by, for `torch.autograd.grad`.

        Shared tensors that a part is not merely indexed of, and the weights of the rules by which it is made, are
        leaves themselves, each of them once.
        """
        found, leaves = [], {}
        for slot in self._slots:
            source = slot.shared[slot.shared_key]
            if not slot.is_indexed:
                rule = slot.part.rule
                for whole in (source, *(rule.parameters() if isinstance(rule, nn.Module) else ())):
                    if whole.requires_grad:
                        leaves[id(whole)] = Leaf(whole, whole, None)
                found.append(take(source, slot.part.shape, rule, slot.part.transform))
                continue
            piece = slot.piece(source)
            if source.requires_grad:
                piece = piece.detach().requires_grad_()
                leaves[id(piece)] = Leaf(piece, source, slot)
            found.append(slot.transformed(piece))
        return found, list(leaves.values())

    def learning(self) -> list[Tensor]:
        """The shared tensors that `leaves` may be of."""
        _, leaves = self.leaves()
        return [leaf.source for leaf in leaves]

    def state(self) -> tuple[Hashable, ...]:
        """Where the shared tensors lie and whether they learn; another one once they have been replaced."""
        sources = (slot.shared[slot.shared_key] for slot in self._slots)
        return tuple((source.data_ptr(), source.requires_grad) for source in sources)

    @property
    def has_hooks(self) -> bool:
        """Whether a module has hooks, which have to be called."""
        return any(
            child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks
            for child in self._modules
        )

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `lent` gave by name."""
        return {slot.name: tensor for slot, tensor in zip(self._slots, tensors)}

    @contextmanager
    def holding(self, tensors: Sequence[Tensor]) -> Iterator[nn.Module]:
        """The module, which runs on what `lent` gave as long as the context lasts."""
        try:
            for slot, tensor in zip(self._slots, tensors):
                slot.kept[slot.key] = tensor
            if self._aliases:
                named = self.named(tensors)
                for alias in self._aliases:
                    alias.kept[alias.key] = named[alias.first]
            yield self.module
        finally:
            for place in (*self._slots, *self._aliases):
                place.kept[place.key] = place.empty
