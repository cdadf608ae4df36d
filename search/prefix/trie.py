"""Running many subnets of one supernet so that what they share runs once.

The subnets are cut into pieces (`pieces.cut`). Chains of pieces that begin alike share a path in a trie, whose root is
the images at one resolution. The trie is run depth first, so that activations of one path are in memory. Beyond that,
`Remembered` keeps activations where paths parted, up to a number of bytes, for populations to come.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distill.untouched import untouched
from search.prefix.pieces import Piece, cut, weights_in
from supernet.calibration import Reference, calibrate, keeps_statistics
from supernet.concurrency import at_a_time, side_by_side
from supernet.evaluation import calibrated, known_references, references_of
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.training.data.batch import joined
from supernet.views import View

# N images, B batch, K classes

MOST_PREFIXES = 20_000  # whose keys are kept, some 5 kB each


class Batches(NamedTuple):
    """Images, or what a first part of a network makes of them, in batches."""

    calibration: list[Tensor]
    evaluation: list[Tensor]


class Remembered:
    """What prefixes make of the images, from one population to the next; the least recently used goes first.

    `limit_bytes` is how much there is room for. A pickled copy remembers nothing.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._numbers = itertools.count(1)
        self.clear()

    def clear(self) -> None:
        self.fingerprints: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()  # see `pieces.cut`
        self.references: dict[int, dict[str, Reference]] = {}  # by resolution, see `evaluation.known_references`
        self._prefixes: dict[tuple[int, Hashable], int] = {}
        self._batches: OrderedDict[int, Batches] = OrderedDict()
        self._bytes = 0

    def begin(self) -> None:
        """To be called before a population: forgets everything if too many prefixes were seen to keep their keys."""
        if len(self._prefixes) > MOST_PREFIXES:
            self.clear()

    def prefix(self, before: int, key: Hashable) -> int:
        """The number of the prefix that goes on with `key` after the prefix `before`; 0 is the empty one."""
        if (before, key) not in self._prefixes:
            self._prefixes[before, key] = next(self._numbers)
        return self._prefixes[before, key]

    def get(self, prefix: int) -> Batches | None:
        if prefix in self._batches:
            self._batches.move_to_end(prefix)
        return self._batches.get(prefix)

    def put(self, prefix: int, batches: Batches) -> None:
        if prefix in self._batches or _size(batches) > self.limit_bytes:
            return
        self._batches[prefix] = batches
        self._bytes += _size(batches)
        while self._bytes > self.limit_bytes:
            self._bytes -= _size(self._batches.popitem(last=False)[1])

    def __reduce__(self):
        return Remembered, (self.limit_bytes,)


def _size(batches: Batches) -> int:
    return sum(batch.nbytes for part in batches for batch in part)


@dataclass
class Node:
    """Pieces in a row that the same architectures share, what follows them, and which architectures end here.

    `prefixes` are the numbers of the prefixes that end with each of the pieces.
    """

    pieces: list[Piece] = field(default_factory=list)
    prefixes: list[int] = field(default_factory=list)
    children: dict[Hashable, Node] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)


def outputs(
    net: Supernet,
    archs: Sequence[Arch],
    batches: Callable[[int], Batches],
    resolution: Callable[[Arch], int],
    remembered: Remembered | None = None,
    pieces: Callable[[Arch], Sequence[Piece]] | None = None,
) -> Iterator[tuple[int, Tensor | Exception]]:
    """For each architecture its index and its output for all evaluation images, in the order of the trie.

    Each subnet's BatchNorm statistics are those of the calibration images. The same batches go through the same
    operations as in `supernet.evaluation.calibrated`, so the output is that of the extracted, calibrated subnet; the
    subnet that the supernet's statistics are right for runs by itself, as it is, and so does a subnet that uses a
    BatchNorm layer in several pieces, whose statistics are those of its last use. Instead of an output there is the
    exception, where extracting or running a subnet raises one.

    `batches(resolution)` gives the images at a resolution in pixels, which, like the weights, are the same that
    `remembered` saw before. `pieces(arch)` gives what a subnet is cut into, where that is known without building it.
    """
    remembered = remembered or Remembered(0)
    remembered.begin()
    roots: dict[int, Node] = {}
    for index, arch in enumerate(archs):
        alone = arch == net.statistics_of
        try:
            if not alone:
                chain = pieces(arch) if pieces else cut(net.skeleton(arch), remembered.fingerprints, net.views(arch))
                alone = _repeats_batch_norm(chain)
            if alone:
                images = batches(resolution(arch))
                output = joined(_outputs(calibrated(net, arch, images.calibration), images.evaluation))
        except Exception as error:
            yield index, error
            continue
        if alone:
            yield index, output
        else:
            _insert(roots.setdefault(resolution(arch), Node()), chain, index, resolution(arch), remembered)
    for size, root in roots.items():
        images = batches(size)
        try:
            if size not in remembered.references:
                remembered.references[size] = known_references(net, images.calibration)
        except Exception as error:
            yield from ((index, error) for index in _all_ends(root))
            continue
        yield from _run(net, root, images, remembered, remembered.references[size])


def _insert(root: Node, pieces: Sequence[Piece], index: int, size: int, remembered: Remembered) -> None:
    """Add the architecture `index`, which is this chain of pieces, below `root`."""
    node, prefix = root, remembered.prefix(0, size)
    for piece in pieces:
        prefix = remembered.prefix(prefix, piece.key)
        node = node.children.setdefault(prefix, Node([piece], [prefix]))
    node.ends.append(index)


def _run(
    net: Supernet, root: Node, batches: Batches, remembered: Remembered, references: Mapping[str, Reference]
) -> Iterator[tuple[int, Tensor | Exception]]:
    """The outputs of all architectures below `root`, or what running them raised."""
    waiting = [(root, batches)]
    while waiting:
        node, batches = waiting.pop()
        node = _joined(node)
        try:
            batches = _forward(net, node, batches, remembered, references)
        except Exception as error:
            yield from ((index, error) for index in _all_ends(node))
            continue
        if node.ends:
            output = joined(batches.evaluation)
            yield from ((index, output) for index in node.ends)
        waiting += [(child, batches) for child in reversed(node.children.values())]
        node.children.clear()


def _joined(node: Node) -> Node:
    """`node` together with its only child, and that one's, and so on."""
    pieces, prefixes = list(node.pieces), list(node.prefixes)
    while len(node.children) == 1 and not node.ends:
        (node,) = node.children.values()
        pieces += node.pieces
        prefixes += node.prefixes
    return Node(pieces, prefixes, node.children, node.ends)


def _forward(
    net: Supernet, node: Node, batches: Batches, remembered: Remembered, references: Mapping[str, Reference]
) -> Batches:
    """What the node's pieces make of its input; their BatchNorm is calibrated on the way."""
    pieces = list(node.pieces)
    for count in range(len(pieces), 0, -1):
        known = remembered.get(node.prefixes[count - 1])
        if known and (known.calibration or not any(map(_has_batch_norm, [*pieces[count:], *_below(node)]))):
            pieces, batches = pieces[count:], known
            break
    if not pieces:
        return batches
    names: dict[int, str] = {}  # of the weights that the pieces are lent

    def weight(name: str, shape: torch.Size, view: View | None) -> Tensor:
        tensor = net.tensor_of(name, shape, view)
        names[id(tensor)] = name
        return tensor

    with weights_in(pieces, weight) as model:
        calibration: list[Tensor] = []
        if _has_batch_norm(model):
            layers = filter(keeps_statistics, model.modules())
            named = {layer: names.get(id(layer.running_mean), "").removesuffix(".running_mean") for layer in layers}
            calibration = calibrate(model, batches.calibration, references_of(net, references, named))
        elif any(_has_batch_norm(piece) for piece in _below(node)):
            calibration = _outputs(model, batches.calibration)
        result = Batches(calibration, _outputs(model, batches.evaluation))
    if node.children:
        remembered.put(node.prefixes[-1], result)
    return result


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """On a CPU a batch a core: sharing out every operation of a small network among the cores takes longer.

    Other paths, and later populations, may start from the same batches.
    """

    @torch.inference_mode()
    def run(batch: Tensor) -> Tensor:
        return untouched(model, batch)

    with side_by_side(min(len(batches), at_a_time(batches[0].device))) as pool:
        return list(pool.map(run, batches))


def _has_batch_norm(model: nn.Module) -> bool:
    return any(map(keeps_statistics, model.modules()))


def _repeats_batch_norm(pieces: Sequence[Piece]) -> bool:
    """Whether a layer is in several pieces, whose statistics calibrating one would change in the others."""
    names = [piece.names[id(m.running_mean)] for piece in pieces for m in piece.modules() if keeps_statistics(m)]
    return len(set(names)) < len(names)


def _below(node: Node) -> Iterator[Piece]:
    for child in node.children.values():
        yield from child.pieces
        yield from _below(child)


def _all_ends(node: Node) -> Iterator[int]:
    yield from node.ends
    for child in node.children.values():
        yield from _all_ends(child)
