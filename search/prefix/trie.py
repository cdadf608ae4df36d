"""Running many subnets of one supernet so that what they share runs once.

The subnets are cut into pieces (`pieces.cut`). Chains of pieces that begin alike share a path in a trie, whose root is
the images at one resolution. The trie is run depth first, so that activations of one path are in memory. Beyond that,
`Remembered` keeps activations where paths parted, up to a number of bytes, for populations to come.

Where even one depth of all images is too much, the trie is run several times, each time on some of the images: first on
those to calibrate by, then, with the statistics that were found, on those that judge.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from distill.untouched import untouched
from search.prefix.pieces import Piece, cut, weights_in
from supernet.activation_memory import examples_within
from supernet.calibration import Pooled, Reference, calibrate, keeps_statistics
from supernet.concurrency import at_a_time, side_by_side
from supernet.evaluation import CALIBRATION_BYTES, calibrated, calibration_chunks, known_references, references_of
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.training.data.batch import examples_in, joined, whole_batches
from supernet.views import View

# N images, B batch, K classes

MOST_PREFIXES = 20_000  # whose keys are kept, some 5 kB each
GROUP = 16  # architectures whose outputs for all images are kept at a time, if the images do not fit in memory at once


class Batches(NamedTuple):
    """Images, or what a first part of a network makes of them, in batches, which can be gone through repeatedly."""

    calibration: Iterable[Tensor]
    evaluation: Iterable[Tensor]


class Share(NamedTuple):
    """The part of the images that runs at a time, or what a first part of a network makes of it."""

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
        self._shares: OrderedDict[int, Share] = OrderedDict()
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

    def get(self, prefix: int) -> Share | None:
        if prefix in self._shares:
            self._shares.move_to_end(prefix)
        return self._shares.get(prefix)

    def put(self, prefix: int, share: Share) -> None:
        if prefix in self._shares or _size(share) > self.limit_bytes:
            return
        self._shares[prefix] = share
        self._bytes += _size(share)
        while self._bytes > self.limit_bytes:
            self._bytes -= _size(self._shares.popitem(last=False)[1])

    def __reduce__(self):
        return Remembered, (self.limit_bytes,)


def _size(share: Share) -> int:
    return sum(batch.nbytes for part in share for batch in part)


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
    calibration_bytes: int = CALIBRATION_BYTES,
) -> Iterator[tuple[int, Tensor | Exception]]:
    """For each architecture its index and its output for all evaluation images, in the order of the trie.

    Each subnet's BatchNorm statistics are those of the calibration images. The same batches go through the same
    operations as in `supernet.evaluation.calibrated`, so the output is that of the extracted, calibrated subnet; the
    subnet that the supernet's statistics are right for runs by itself, as it is, and so does a subnet that uses a
    BatchNorm layer in several pieces, whose statistics are those of its last use. Instead of an output there is the
    exception, where extracting or running a subnet raises one.

    `batches(resolution)` gives the images at a resolution in pixels, which, like the weights, are the same that
    `remembered` saw before. `pieces(arch)` gives what a subnet is cut into, where that is known without building it.

    If the activations of all images in the largest subnet are not within `calibration_bytes`, the images that calibrate
    and those that judge run apart, each in as many shares as it takes. Memory is then that of a share, at every depth
    where paths part, and of the outputs of `GROUP` architectures, which come all at once; nothing is remembered. Images
    that judge run in whole batches, whose outputs are the same; what a subnet is calibrated by follows from the images
    that calibrate and from `calibration_bytes` alone, as in `calibrated`.
    """
    remembered = remembered or Remembered(0)
    remembered.begin()
    chains: dict[int, list[tuple[int, Sequence[Piece]]]] = {}
    for index, arch in enumerate(archs):
        alone = arch == net.statistics_of
        try:
            if not alone:
                chain = pieces(arch) if pieces else cut(net.skeleton(arch), remembered.fingerprints, net.views(arch))
                alone = _repeats_batch_norm(chain)
            if alone:
                output = _output_alone(net, arch, batches(resolution(arch)), calibration_bytes)
        except Exception as error:
            yield index, error
            continue
        if alone:
            yield index, output
        else:
            chains.setdefault(resolution(arch), []).append((index, chain))
    for size, own in chains.items():
        images = batches(size)
        most = _most(net, images, calibration_bytes)
        share = _within(images, most)
        if share is not None:
            yield from _at_once(net, _trie(own, size, remembered), share, size, remembered)
            continue
        codes = net.space.encode([archs[index] for index, _ in own]).tolist()
        order = [own[position] for position in sorted(range(len(own)), key=codes.__getitem__)]  # like beside like
        for start in range(0, len(order), GROUP):
            root = _trie(order[start : start + GROUP], size, remembered)
            yield from _in_shares(net, root, images, most, calibration_bytes)


def _output_alone(net: Supernet, arch: Arch, images: Batches, calibration_bytes: int) -> Tensor:
    model = calibrated(net, arch, images.calibration, calibration_bytes)
    shares = whole_batches(images.evaluation, _most(net, images, calibration_bytes))
    return joined([output for share in shares for output in _outputs(model, share)])


def _most(net: Supernet, images: Batches, calibration_bytes: int) -> int | None:
    """How many images may run at once."""
    return examples_within(net, next(iter(images.evaluation)), calibration_bytes)


def _within(images: Batches, most: int | None) -> Share | None:
    """All images, if they are no more than `most`."""
    share, count = Share([], []), 0
    for kept, batches in zip(share, images):
        for batch in batches:
            count += examples_in(batch)
            if most is not None and count > most:
                return None
            kept.append(batch)
    return share


def _at_once(
    net: Supernet, root: Node, share: Share, size: int, remembered: Remembered
) -> Iterator[tuple[int, Tensor | Exception]]:
    """The outputs of all architectures below `root`, or what running them raised."""
    try:
        if size not in remembered.references:
            remembered.references[size] = known_references(net, share.calibration)
    except Exception as error:
        yield from ((index, error) for index in _all_ends(root))
        return
    for index, found in _run(net, root, share, remembered, remembered.references[size], {}):
        yield index, found if isinstance(found, Exception) else joined(found.evaluation)


def _in_shares(
    net: Supernet, root: Node, images: Batches, most: int | None, calibration_bytes: int
) -> Iterator[tuple[int, Tensor | Exception]]:
    """The same, for images that do not fit in memory at once."""
    nothing, statistics = Remembered(0), defaultdict(Pooled)
    outputs: dict[int, list[Tensor]] = {index: [] for index in _all_ends(root)}
    errors: dict[int, Exception] = {}

    def run(share: Share) -> None:
        try:
            references = known_references(net, share.calibration) if share.calibration else {}
        except Exception as error:
            errors.update(dict.fromkeys(outputs, error))
            return
        for index, found in _run(net, root, share, nothing, references, statistics):
            if isinstance(found, Exception):
                errors.setdefault(index, found)
            else:
                outputs[index] += found.evaluation

    for chunk in calibration_chunks(net, images.calibration, calibration_bytes):
        run(Share(chunk, []))
    for part in whole_batches(images.evaluation, most):
        run(Share([], part))
    yield from ((index, errors[index] if index in errors else joined(found)) for index, found in outputs.items())


def _trie(chains: Sequence[tuple[int, Sequence[Piece]]], size: int, remembered: Remembered) -> Node:
    """The root of the trie of architectures, each with its index, at one resolution."""
    root = Node()
    for index, chain in chains:
        _insert(root, chain, index, size, remembered)
    return root


def _insert(root: Node, pieces: Sequence[Piece], index: int, size: int, remembered: Remembered) -> None:
    """Add the architecture `index`, which is this chain of pieces, below `root`."""
    node, prefix = root, remembered.prefix(0, size)
    for piece in pieces:
        prefix = remembered.prefix(prefix, piece.key)
        node = node.children.setdefault(prefix, Node([piece], [prefix]))
    node.ends.append(index)


def _run(
    net: Supernet,
    root: Node,
    share: Share,
    remembered: Remembered,
    references: Mapping[str, Reference],
    statistics: MutableMapping[int, Pooled],
) -> Iterator[tuple[int, Share | Exception]]:
    """What all architectures below `root` make of a share, or what running them raised."""
    waiting = [(root, share)]
    while waiting:
        node, share = waiting.pop()
        node = _joined(node)
        try:
            share = _forward(net, node, share, remembered, references, statistics)
        except Exception as error:
            yield from ((index, error) for index in _all_ends(node))
            continue
        yield from ((index, share) for index in node.ends)
        waiting += [(child, share) for child in reversed(node.children.values())]


def _joined(node: Node) -> Node:
    """`node` together with its only child, and that one's, and so on."""
    pieces, prefixes = list(node.pieces), list(node.prefixes)
    while len(node.children) == 1 and not node.ends:
        (node,) = node.children.values()
        pieces += node.pieces
        prefixes += node.prefixes
    return Node(pieces, prefixes, node.children, node.ends)


def _forward(
    net: Supernet,
    node: Node,
    share: Share,
    remembered: Remembered,
    references: Mapping[str, Reference],
    statistics: MutableMapping[int, Pooled],
) -> Share:
    """What the node's pieces make of its input.

    Their BatchNorm is calibrated on the way. If the share has no images that judge, what was found is added to the
    node's `statistics`, and if it has none that calibrate, these are what is taken.
    """
    pieces = list(node.pieces)
    for count in range(len(pieces), 0, -1):
        known = remembered.get(node.prefixes[count - 1])
        if known and (known.calibration or not any(map(_has_batch_norm, [*pieces[count:], *_below(node)]))):
            pieces, share = pieces[count:], known
            break
    if not pieces:
        return share
    names: dict[int, str] = {}  # of the weights that the pieces are lent

    def weight(name: str, shape: torch.Size, view: View | None) -> Tensor:
        tensor = net.tensor_of(name, shape, view)
        names[id(tensor)] = name
        return tensor

    with weights_in(pieces, weight) as model:
        calibration: list[Tensor] = []
        if not share.calibration:
            if _has_batch_norm(model):
                statistics[node.prefixes[-1]].put()
        elif _has_batch_norm(model):
            layers = filter(keeps_statistics, model.modules())
            named = {layer: names.get(id(layer.running_mean), "").removesuffix(".running_mean") for layer in layers}
            calibration, found = calibrate(model, share.calibration, references_of(net, references, named))
            if not share.evaluation:
                statistics[node.prefixes[-1]].add(found)
        elif any(_has_batch_norm(piece) for piece in _below(node)):
            calibration = _outputs(model, share.calibration)
        result = Share(calibration, _outputs(model, share.evaluation))
    if node.children:
        remembered.put(node.prefixes[-1], result)
    return result


def _outputs(model: nn.Module, batches: Sequence[Tensor]) -> list[Tensor]:
    """On a CPU a batch a core: sharing out every operation of a small network among the cores takes longer.

    Other paths, and later populations, may start from the same batches.
    """
    if not batches:
        return []

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
