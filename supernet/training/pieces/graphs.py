"""Pieces of subnets as CUDA graphs: where launching kernels takes longer than they do.

A subnet is a chain of pieces, its blocks say, and there are few variants of each. So forward and backward pass of a
variant are recorded once, with the slicing of its weights and the adding of its gradients to those of the supernet, and
replayed wherever a subnet has it: a few dozens of launches in the place of thousands.

A graph works on fixed addresses. What goes in and out of it lies in buffers that stay, those of the supernet's weights
stay anyway, and gradients are added to buffers that are the weights' `.grad` in steps that need them. All variants of
one piece compute in the same memory, of which a subnet needs that of one variant.
"""

from __future__ import annotations

import logging
import weakref
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten
from torch.utils.weak import WeakIdKeyDictionary

from supernet.errors import first_line
from supernet.subnets import Arrived, Leaf, LentSubnet, add_to_parts
from supernet.training.pieces.recording import Recorder
from supernet.training.pieces.standing import Standing

logger = logging.getLogger(__name__)


class GraphedPieces:
    """Stands graphs in for the pieces of subnets in training: `net(*inputs, arch=arch, stand_in=GraphedPieces(...))`.

    A piece runs as it is the first time that it gets inputs of some form, by which libraries choose their kernels; the
    second time its graphs are recorded. They are kept in up to `memory_bytes`, the least recently used ones go first.
    What cannot be recorded, since the host has to know a value, runs as it is, which is said once; so does a piece
    that has hooks, and one that is called again before its backward pass.

    Gradients are the same as without graphs, and are added to the `.grad` of shared tensors as `accumulate` does. They
    have arrived when the replay that adds them is queued.
    """

    def __init__(self, recorder: Recorder, memory_bytes: int) -> None:
        self.recorder = recorder
        self.recorded = 0  # graphs of pieces so far
        self._memory_bytes = memory_bytes
        self._places: dict[str, _Place] = {}
        self._forms: weakref.WeakKeyDictionary[nn.Module, dict] = weakref.WeakKeyDictionary()
        self._graphs: OrderedDict[Hashable, _Graphs] = OrderedDict()  # the least recently used first
        self._gradients: WeakIdKeyDictionary = WeakIdKeyDictionary()  # a buffer for each shared tensor
        self._told: set[str] = set()

    def __call__(self, name: str, lent: LentSubnet, arrived: Arrived | None = None) -> nn.Module:
        """What stands in for the piece `name` of subnets, the module of `lent`."""
        if name not in self._places:
            self._places[name] = _Place(name, self.recorder.pool())
        return Piece(self, self._places[name], lent, arrived)

    def forms(self, module: nn.Module) -> dict[Hashable, _Form | None]:
        """What the piece `module` gave, by what it got; None where it cannot be a graph."""
        return self._forms.setdefault(module, {})

    def graphs(self, key: Hashable) -> _Graphs | None:
        """The graphs of `key`, if there are any that still fit the supernet."""
        found = self._graphs.get(key)
        if found is not None and not found.fits():
            del self._graphs[key]
            return None
        if found is not None:
            self._graphs.move_to_end(key)
        return found

    def record(self, key: Hashable, piece: Piece, inputs: Sequence[Tensor], form: _Form) -> _Graphs | None:
        """New graphs for `key`; None if there cannot be any."""
        before = self.recorder.reserved_bytes()
        try:
            graphs = _Graphs(self, piece, inputs, form)
        except Exception as error:  # the module's own code, which may ask for a value
            if piece.place.name not in self._told:
                self._told.add(piece.place.name)
                logger.warning(
                    "the piece %r (%s) cannot be a CUDA graph and runs as it is: %s",
                    *(piece.place.name, type(piece.lent.module).__name__, first_line(error)),
                )
            return None
        graphs.taken_bytes = max(0, self.recorder.reserved_bytes() - before)
        self._graphs[key] = graphs
        self.recorded += 1
        while len(self._graphs) > 1 and self.held_bytes > self._memory_bytes:
            self._graphs.popitem(last=False)
        return graphs

    @property
    def held_bytes(self) -> int:
        """The memory of the graphs that are kept."""
        return sum(graphs.taken_bytes for graphs in self._graphs.values())

    def gradient(self, source: Tensor) -> Tensor:
        """The buffer to which the gradients of a shared tensor are added."""
        if source not in self._gradients or not _alike(self._gradients[source], source):
            self._gradients[source] = torch.zeros_like(source, requires_grad=False)
        return self._gradients[source]

    def begin(self, sources: Sequence[Tensor]) -> None:
        """Make the buffers the `.grad` of `sources`, with the values that there are."""
        fresh = []
        for source in sources:
            buffer, gradient = self.gradient(source), source.grad
            if gradient is None:
                fresh.append(buffer)
            elif gradient is not buffer:
                buffer.copy_(gradient)
            source.grad = buffer
        if fresh:
            torch._foreach_zero_(fresh)


class Piece(Standing):
    """Stands in for the module of `lent`, and calls it or its graphs."""

    def __init__(self, owner: GraphedPieces, place: _Place, lent: LentSubnet, arrived: Arrived | None) -> None:
        super().__init__(lent, arrived)
        self.place = place
        self._owner = owner

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        is_plain = inputs and not keywords and all(isinstance(value, Tensor) for value in inputs)
        if not is_plain or self.lent.has_hooks or self.place.is_busy:
            return self._as_it_is(inputs, keywords)
        form = (*map(_form, inputs), _autocast(inputs))
        forms, key = self._owner.forms(self.lent.module), (self.lent.module, form)
        graphs = self._owner.graphs(key)
        if graphs is None and torch.is_grad_enabled() and form in forms:
            graphs = forms[form] and self._owner.record(key, self, inputs, forms[form])
            if graphs is None:
                forms[form] = None
        output = self._replayed(graphs, inputs) if graphs else self._as_it_is(inputs, keywords)
        if torch.is_grad_enabled() and form not in forms:
            forms[form] = _Form.of(output)
        return output

    def _replayed(self, graphs: _Graphs, inputs: tuple) -> Any:
        if not self.awaits_backward:
            return graphs(inputs)
        self.await_from(graphs.telling)
        return graphs(inputs, self.came)

    def _as_it_is(self, inputs: tuple, keywords: dict[str, Any]) -> Any:
        with self.lending() as module:
            return module(*inputs, **keywords)


class _Form(NamedTuple):
    """Of what a piece gave: the tree, and its tensors without values."""

    spec: TreeSpec
    tensors: list[Tensor]

    @classmethod
    def of(cls, output: Any) -> _Form | None:
        """None if there is something else in the tree than tensors to be differentiated."""
        leaves, spec = tree_flatten(output)
        if not all(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves):
            return None
        return cls(spec, [torch.empty_like(leaf, device="meta", requires_grad=False) for leaf in leaves])


class _Place:
    """The place of a piece in subnets: its memory, of which one variant is at work at a time."""

    def __init__(self, name: str, pool: Any) -> None:
        self.name, self.pool = name, pool
        self._buffers: weakref.WeakValueDictionary[Hashable, Tensor] = weakref.WeakValueDictionary()
        self._turn: weakref.ref[_Turn] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a forward pass is done here, and its backward pass may still come."""
        turn = self._turn and self._turn()
        return turn is not None and not turn.is_over

    def begin(self) -> _Turn:
        turn = _Turn()
        self._turn = weakref.ref(turn)
        return turn

    def buffer(self, role: str, index: int, like: Tensor, device: torch.device) -> Tensor:
        """The buffer of all variants for what they get or give."""
        key = role, index, _form(like)
        buffer = self._buffers.get(key)
        if buffer is None:
            buffer = torch.empty_like(like, device=device, requires_grad=False)
            self._buffers[key] = buffer
        return buffer


class _Turn:
    """One forward pass, as long as its backward pass may come."""

    is_over = False


class _Graphs:
    """Forward and backward pass of a piece for inputs of one form."""

    taken_bytes = 0

    def __init__(self, owner: GraphedPieces, piece: Piece, inputs: Sequence[Tensor], form: _Form) -> None:
        self._begin, self._gradient = owner.begin, owner.gradient
        self._lent, self._place, self._spec = piece.lent, piece.place, form.spec
        self._autocast = _autocast(inputs)
        device = inputs[0].device
        place = piece.place
        self._inputs = [place.buffer("input", i, tensor, device) for i, tensor in enumerate(inputs)]
        self._outputs = [place.buffer("output", i, tensor, device) for i, tensor in enumerate(form.tensors)]
        self._given = [place.buffer("gradient of output", i, t, device) for i, t in enumerate(form.tensors)]
        self._learns = [tensor.requires_grad for tensor in inputs]
        self._gives = [
            place.buffer("gradient of input", i, tensor, device) if learns else None
            for i, (tensor, learns) in enumerate(zip(inputs, self._learns))
        ]
        self._anchor = torch.zeros((), device=device, requires_grad=True)  # autograd asks for what depends on it
        self._sources: list[Tensor] = []  # those that get a gradient
        self.telling: list[Tensor] = []  # of them, those of which a call has no other gradient
        self._state = self._lent.state()
        for source in self._lent.learning():
            owner.gradient(source)  # apart from the memory of the graphs
        self._run: tuple[list[Tensor], list[Tensor], list[Leaf]] | None = None
        self._lent.set_mode(True)
        before = _settings(self._lent.module)
        try:
            self._forward_graph = owner.recorder.record(self._forward, place.pool)
            self._backward_graph = owner.recorder.record(self._backward, place.pool)
        finally:
            self._run = None
        if _settings(self._lent.module) != before:
            raise ValueError("its forward pass changes attributes, which a graph does not")

    def fits(self) -> bool:
        """Whether the shared tensors are where they were."""
        return self._lent.state() == self._state

    def __call__(self, inputs: Sequence[Tensor], arrived: Arrived | None = None) -> Any:
        outputs = _Replayed.apply(self, arrived, self._anchor, *inputs)
        return tree_unflatten(list(outputs), self._spec)

    def replay_forward(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        _copy(self._inputs, inputs)
        self._forward_graph.replay()
        return [output.detach() for output in self._outputs]

    def replay_backward(self, gradients: Sequence[Tensor]) -> list[Tensor | None]:
        _copy(self._given, gradients)
        self._begin(self._sources)
        self._backward_graph.replay()
        return [gradient if gradient is None else gradient.detach() for gradient in self._gives]

    def begin(self) -> _Turn:
        return self._place.begin()

    def _forward(self) -> None:
        """The forward pass, from buffer to buffer."""
        enabled, dtype = self._autocast
        device = self._inputs[0].device.type
        with torch.enable_grad(), torch.autocast(device, dtype, enabled=enabled, cache_enabled=False):
            inputs = [tensor.detach().requires_grad_(learns) for tensor, learns in zip(self._inputs, self._learns)]
            self._lent.set_mode(True)
            tensors, leaves = self._lent.leaves()
            with self._lent.holding(tensors) as module:
                output = module(*inputs)
        outputs, _ = tree_flatten(output)
        self._run = inputs, outputs, leaves
        _copy(self._outputs, [tensor.detach() for tensor in outputs])

    def _backward(self) -> None:
        """The backward pass of what `_forward` has left, after which nothing is left."""
        inputs, outputs, leaves = self._run
        self._run = None
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        found = torch.autograd.grad(
            outputs, [*wanted, *(leaf.tensor for leaf in leaves)], self._given, allow_unused=True
        )
        of_inputs = iter(found[: len(wanted)])
        for place, learns in zip(self._gives, self._learns):
            if learns and (gradient := next(of_inputs)) is not None:
                place.copy_(gradient)
            elif learns:
                place.zero_()
        arrived = [(leaf, gradient) for leaf, gradient in zip(leaves, found[len(wanted) :]) if gradient is not None]
        self._sources = list({id(leaf.source): leaf.source for leaf, _ in arrived}.values())
        telling = {id(source) for source in self._lent.telling()}
        self.telling = [source for source in self._sources if id(source) in telling]
        add_to_parts((leaf.part_of(self._gradient(leaf.source)), leaf.source, gradient) for leaf, gradient in arrived)


class _Replayed(torch.autograd.Function):
    """The graphs of a piece as a function."""

    @staticmethod
    def forward(ctx, graphs: _Graphs, arrived: Arrived | None, anchor: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.graphs, ctx.arrived = graphs, arrived
        ctx.turn = graphs.begin()
        return tuple(graphs.replay_forward(inputs))

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.turn.is_over:
            raise RuntimeError("a graph has one backward pass for each forward pass: run the network again")
        found = ctx.graphs.replay_backward(gradients)
        ctx.turn.is_over = True
        if ctx.arrived:
            for source in ctx.graphs.telling:
                ctx.arrived(source)
        return None, None, None, *found


def _copy(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for target, value in zip(targets, values):
        if value.data_ptr() != target.data_ptr():
            target.copy_(value)


def _form(tensor: Tensor) -> Hashable:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad


def _alike(tensor: Tensor, other: Tensor) -> bool:
    return (tensor.shape, tensor.stride(), tensor.dtype) == (other.shape, other.stride(), other.dtype) and (
        tensor.device == other.device
    )


def _settings(module: nn.Module) -> list[dict[str, object]]:
    """The attributes of a module and those within it that are plain values."""
    plain = (int, float, str, type(None))  # bool is an int
    return [{k: v for k, v in vars(child).items() if isinstance(v, plain)} for child in module.modules()]


def _autocast(inputs: Sequence[Tensor]) -> tuple[bool, torch.dtype]:
    device = inputs[0].device.type
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
