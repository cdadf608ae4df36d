"""Running many subnets of one supernet so that what they share runs once.

The subnets are cut into pieces (`pieces.cut`). Chains of pieces that begin alike share a path in a trie, whose root is
the images at one resolution. The trie is run depth first, so that activations of one path are in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from search.pieces import Piece, cut
from supernet.calibration import calibrate
from supernet.space import Arch
from supernet.supernet import Supernet

# N images, B batch, K classes


class Batches(NamedTuple):
    """Images, or what a first part of a network makes of them, in batches."""

    calibration: list[Tensor]
    evaluation: list[Tensor]


@dataclass
class Node:
    """Pieces in a row that the same architectures share, what follows them, and which architectures end here."""

    pieces: list[Piece] = field(default_factory=list)
    children: dict[Hashable, Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


def evaluate(
    net: Supernet, archs: Sequence[Arch], batches: Callable[[int], Batches], resolution: Callable[[Arch], int]
) -> Iterator[tuple[int, Tensor | Exception]]:
    """For each architecture its index and the logits [N, K] of the evaluation images, in the order of the trie.

    Each subnet's BatchNorm statistics are those of the calibration images. The same batches go through the same
    operations as in `calibrate(net.extract(arch), ...)`, so the logits are those of the extracted, calibrated subnet.
    Instead of logits there is the exception, where extracting or running a subnet raises one.

    `batches(resolution)` gives the images at a resolution in pixels.
    """
    roots: dict[int, Node] = {}
    for index, arch in enumerate(archs):
        try:
            pieces = cut(net.extract(arch).eval())
        except Exception as error:
            yield index, error
        else:
            insert(roots.setdefault(resolution(arch), Node()), pieces, index)
    for size, root in roots.items():
        yield from run(root, batches(size))


def insert(root: Node, pieces: Sequence[Piece], index: int) -> None:
    """Add the architecture `index`, which is this chain of pieces, below `root`."""
    node = root
    for piece in pieces:
        if piece.key not in node.children:
            node.children[piece.key] = Node([piece])
        node = node.children[piece.key]
    node.ends.append(index)


def run(root: Node, batches: Batches) -> Iterator[tuple[int, Tensor | Exception]]:
    """The outputs of all architectures below `root`, or what running them raised."""
    waiting = [(root, batches)]
    while waiting:
        node, batches = waiting.pop()
        node = _joined(node)
        try:
            shared = bool(waiting) and waiting[-1][1] is batches
            batches = _forward(node, batches, shared)
        except Exception as error:
            yield from ((index, error) for index in _all_ends(node))
            continue
        if node.ends:
            output = torch.cat(batches.evaluation)
            yield from ((index, output) for index in node.ends)
        waiting += [(child, batches) for child in reversed(node.children.values())]
        node.children.clear()


def _joined(node: Node) -> Node:
    """`node` together with its only child, and that one's, and so on."""
    pieces = list(node.pieces)
    while len(node.children) == 1 and not node.ends:
        (node,) = node.children.values()
        pieces += node.pieces
    return Node(pieces, node.children, node.ends)


def _forward(node: Node, batches: Batches, shared: bool) -> Batches:
    """What the node's pieces make of its input; their BatchNorm is calibrated on the way."""
    if not node.pieces:
        return batches
    model = nn.Sequential(*node.pieces)
    if shared and _writes_to_input(model, batches.evaluation[0]):
        batches = Batches(*([batch.clone() for batch in part] for part in batches))
    calibration: list[Tensor] = []
    if _has_batch_norm(model):
        calibration = calibrate(model, batches.calibration)
    elif any(_has_batch_norm(piece) for piece in _below(node)):
        calibration = _outputs(model, batches.calibration)
    return Batches(calibration, _outputs(model, batches.evaluation))


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(batch) for batch in batches]


def _writes_to_input(model: nn.Module, batch: Tensor) -> bool:
    """Whether `model` begins with an operation in place, which would change what others still need."""
    few = batch[:2].clone()
    version = few._version
    _outputs(model, [few])
    return few._version != version


def _has_batch_norm(model: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def _below(node: Node) -> Iterator[Piece]:
    for child in node.children.values():
        yield from child.pieces
        yield from _below(child)


def _all_ends(node: Node) -> Iterator[int]:
    yield from node.ends
    for child in node.children.values():
        yield from _all_ends(child)
