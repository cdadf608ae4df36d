"""Running many subnets of one supernet so that what they share runs once.

The subnets are cut into pieces (`pieces.cut`). Chains of pieces that begin alike share a path in a trie, whose root is
the images at one resolution. The trie is run depth first, so that activations of one path are in memory. Beyond that,
`Remembered` keeps activations where paths parted, up to a number of bytes, for populations to come, and what BatchNorm
layers were calibrated to, for other images that judge the same subnets.

Where even one depth of all images is too much, the trie is run several times, each time on some of the images: first on
those to calibrate by, then, with the statistics that were found, on those that judge.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from distill.untouched import untouched
from search.prefix.dependence import told
from search.prefix.folding import Pair, folded, pairs
from search.prefix.pieces import Carried, Piece, cut, weights_in
from supernet.activation_memory import examples_within
from supernet.calibration import Pooled, Reference, as_arguments, calibrate, keeps_statistics
from supernet.concurrency import at_a_time, side_by_side
from supernet.evaluation import CALIBRATION_BYTES, calibrated, calibration_chunks, known_references, references_of
from supernet.space import Arch
from supernet.supernet import Supernet
from supernet.training.data.batch import device_of, examples_in, joined, whole_batches
from supernet.views import View

# N images, B batch, K classes

MOST_PREFIXES = 20_000  # whose keys are kept, some 5 kB each
MANY = 20  # subnets that are cut before it pays to find out what their pieces depend on
MOST_CHAINS = 1_000  # of pieces that are kept, those of the last architectures, some 100 kB each
STATISTICS_BYTES = 2**28  # that BatchNorm statistics are kept in
GROUP = 16  # architectures whose outputs for all images are kept at a time, if the images do not fit in memory at once


class Batches(NamedTuple):
    """Images, or what a first part of a network makes of them, in batches, which can be gone through repeatedly; of
    networks of several inputs tuples of these."""

    calibration: Iterable[Carried]
    evaluation: Iterable[Carried]


class Share(NamedTuple):
    """The part of the images that runs at a time, or what a first part of a network makes of it.

    `judges` tells which images are those that judge. If no images calibrate, statistics are known."""

    calibration: list[Carried]
    evaluation: list[Carried]
    judges: Hashable = None

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in tree_leaves([self.calibration, self.evaluation]))


Kept = TypeVar("Kept", Share, Pooled)


class _Recent(Generic[Kept]):
    """Values of `nbytes` each by their keys, up to `limit_bytes`; the least recently used goes first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._values: OrderedDict[Hashable, Kept] = OrderedDict()
        self._bytes = 0

    def get(self, key: Hashable) -> Kept | None:
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def put(self, key: Hashable, value: Kept) -> None:
        if value.nbytes > self.limit_bytes:
            return
        if key in self._values:
            self._bytes -= self._values.pop(key).nbytes
        self._values[key] = value
        self._bytes += value.nbytes
        while self._bytes > self.limit_bytes:
            self._bytes -= self._values.popitem(last=False)[1].nbytes


class Remembered:
    """What prefixes make of the images, from one population to the next, and the BatchNorm statistics of their last
    pieces; of each the least recently used goes first.

    `limit_bytes` is how much room there is for activations. With `folds`, images that judge run with BatchNorm folded
    into convolutions (`search.prefix.folding`). A pickled copy remembers nothing.
    """

    def __init__(self, limit_bytes: int, folds: bool = False) -> None:
        self.limit_bytes = limit_bytes
        self.folds = folds
        self._numbers = itertools.count(1)
        self.clear()

    def clear(self) -> None:
        self.fingerprints: WeakKeyDictionary[nn.Module, Hashable] = WeakKeyDictionary()  # see `pieces.cut`
        self.chains: dict[Arch, Sequence[Piece]] = {}
        self._told: Callable[[Arch], Sequence[Piece]] | None = None
        self._cut = 0
        self._pairs: dict[Hashable, list[Pair]] = {}  # by the key of the piece that they are in
        self.references: dict[int, dict[str, Reference]] = {}  # by resolution, see `evaluation.known_references`
        self._prefixes: dict[tuple[int, Hashable], int] = {}
        self._shares: _Recent[Share] = _Recent(self.limit_bytes)
        self.statistics: _Recent[Pooled] = _Recent(STATISTICS_BYTES)  # by prefix, of the layers by their places

    def pairs(self, piece: Piece) -> list[Pair]:
        """Those of its layers that are folded."""
        if not self.folds:
            return []
        if piece.key not in self._pairs:
            self._pairs[piece.key] = pairs(piece)
        return self._pairs[piece.key]

    def begin(self) -> None:
        """To be called before a population: forgets everything if too many prefixes were seen to keep their keys."""
        if len(self._prefixes) > MOST_PREFIXES:
            self.clear()
        if len(self.chains) > MOST_CHAINS:
            self.chains.clear()

    def cut(self, net: Supernet, arch: Arch, inputs: int) -> Sequence[Piece]:
        """The pieces of a subnet that is called with so many inputs. Once there were `MANY`, those of others are put
        together where that is told to be right (`Dependence`)."""
        self._cut += 1
        if self._cut == MANY:
            self._told = told(net, inputs)
        if self._told:
            return self._told(arch)
        return cut(net.skeleton(arch), self.fingerprints, net.views(arch), inputs)

    def prefix(self, before: int, key: Hashable) -> int:
        """The number of the prefix that goes on with `key` after the prefix `before`; 0 is the empty one."""
        if (before, key) not in self._prefixes:
            self._prefixes[before, key] = next(self._numbers)
        return self._prefixes[before, key]

    def get(self, prefix: int, judges: Hashable) -> Share | None:
        return self._shares.get((prefix, judges))

    def put(self, prefix: int, share: Share) -> None:
        known = self.get(prefix, share.judges)
        if known is None or (share.calibration and not known.calibration):
            self._shares.put((prefix, share.judges), share)

    def calibrated(self, pieces: Sequence[Piece], size: int) -> bool:
        """Whether all statistics are known of the subnet that is this chain of pieces, at one resolution."""
        prefix = self.prefix(0, size)
        for piece in pieces:
            prefix = self.prefix(prefix, piece.key)
            if _batch_norms(piece) and self.statistics.get(prefix) is None:
                return False
        return True

    def __reduce__(self):
        return Remembered, (self.limit_bytes, self.folds)


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
    judges: Hashable = None,
) -> Iterator[tuple[int, Tensor | Exception]]:
    """For each architecture its index and its output for all evaluation images, in the order of the trie.

    Each subnet's BatchNorm statistics are those of the calibration images. The same batches go through the same
    operations as in `supernet.evaluation.calibrated`, so the output is that of the extracted, calibrated subnet, up to
    rounding where `remembered` folds BatchNorm; the subnet that the supernet's statistics are right for runs by itself,
    as it is, and so does a subnet that uses a BatchNorm layer in several pieces, whose statistics are those of its last
    use. Instead of an output there is the exception, where extracting or running a subnet raises one.

    `batches(resolution)` gives the images at a resolution in pixels, which, like the weights, are the same that
    `remembered` saw before; if those that judge change from call to call, `judges` tells which they are, and a subnet
    that was calibrated before is not again. `pieces(arch)` gives what a subnet is cut into, where that is known without
    building it.

    If the activations of all images in the largest subnet are not within `calibration_bytes`, the images that calibrate
    and those that judge run apart, each in as many shares as it takes. Memory is then that of a share, at every depth
    where paths part, and of the outputs of `GROUP` architectures, which come all at once; nothing is remembered. Images
    that judge run in whole batches, whose outputs are the same; what a subnet is calibrated by follows from the images
    that calibrate and from `calibration_bytes` alone, as in `calibrated`.
    """
    remembered = remembered or Remembered(0)
    remembered.begin()
    chains: dict[int, list[tuple[int, Sequence[Piece]]]] = {}
    inputs: int | None = None  # of the networks, which is the same for all
    for index, arch in enumerate(archs):
        alone = arch == net.statistics_of
        try:
            if not alone:
                if arch not in remembered.chains:
                    inputs = inputs or len(as_arguments(next(iter(batches(resolution(arch)).evaluation))))
                    remembered.chains[arch] = pieces(arch) if pieces else remembered.cut(net, arch, inputs)
                chain = remembered.chains[arch]
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
        share = _within(images, most, judges)
        if share is not None:
            yield from _at_once(net, own, share, size, remembered)
            continue
        codes = net.space.encode([archs[index] for index, _ in own]).tolist()
        order = [own[position] for position in sorted(range(len(own)), key=codes.__getitem__)]  # like beside like
        for start in range(0, len(order), GROUP):
            root = _trie(order[start : start + GROUP], size, remembered)
            yield from _in_shares(net, root, images, most, calibration_bytes, remembered.folds)


def _output_alone(net: Supernet, arch: Arch, images: Batches, calibration_bytes: int) -> Tensor:
    model = calibrated(net, arch, images.calibration, calibration_bytes)
    shares = whole_batches(images.evaluation, _most(net, images, calibration_bytes))
    return joined([output for share in shares for output in _outputs(model, share)])


def _most(net: Supernet, images: Batches, calibration_bytes: int) -> int | None:
    """How many images may run at once."""
    return examples_within(net, next(iter(images.evaluation)), calibration_bytes)


def _within(images: Batches, most: int | None, judges: Hashable) -> Share | None:
    """All images, if they are no more than `most`."""
    share, count = Share([], [], judges), 0
    for kept, batches in zip((share.calibration, share.evaluation), images):
        for batch in batches:
            count += examples_in(batch)
            if most is not None and count > most:
                return None
            kept.append(batch)
    return share


def _at_once(
    net: Supernet, chains: Sequence[tuple[int, Sequence[Piece]]], share: Share, size: int, remembered: Remembered
) -> Iterator[tuple[int, Tensor | Exception]]:
    """The outputs of all architectures, or what running them raised."""
    known = [remembered.calibrated(chain, size) for _, chain in chains]
    try:
        if size not in remembered.references and not all(known):
            remembered.references[size] = known_references(net, share.calibration)
    except Exception as error:
        yield from ((index, error) for index, _ in chains)
        return
    for is_known, own in ((True, share._replace(calibration=[])), (False, share)):  # the former before any is dropped
        root = _trie([chain for chain, found in zip(chains, known) if found is is_known], size, remembered)
        for index, found in _run(net, root, own, remembered, remembered.references.get(size, {}), None):
            yield index, found if isinstance(found, Exception) else joined(found)


def _in_shares(
    net: Supernet, root: Node, images: Batches, most: int | None, calibration_bytes: int, folds: bool
) -> Iterator[tuple[int, Tensor | Exception]]:
    """The same, for images that do not fit in memory at once."""
    nothing = Remembered(0, folds)
    statistics: defaultdict[int, Pooled] = defaultdict(Pooled)
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
                outputs[index] += found

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
    statistics: defaultdict[int, Pooled] | None,
) -> Iterator[tuple[int, list[Any] | Exception]]:
    """What all architectures below `root` make of the batches of a share that judge, or what running them raised."""
    several = any(isinstance(batch, tuple) for batch in share.evaluation)  # inputs, which are carried on to the end
    waiting = [(root, share)]
    while waiting:
        node, share = waiting.pop()
        node = _joined(node)
        try:
            share = _forward(net, node, share, remembered, references, statistics)
        except Exception as error:
            yield from ((index, error) for index in _all_ends(node))
            continue
        outputs = [batch[0] for batch in share.evaluation] if several else share.evaluation
        yield from ((index, outputs) for index in node.ends)
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
    statistics: defaultdict[int, Pooled] | None,
) -> Share:
    """What the node's pieces make of its input.

    Their BatchNorm is calibrated on the way, and remembered by the prefix that ends with each piece. If the share has
    no images that calibrate, what is remembered is taken. With `statistics`, what is found is added to these instead,
    and taken from them.
    """
    pieces, prefixes = list(node.pieces), list(node.prefixes)
    for count in range(len(pieces), 0, -1):
        known = remembered.get(prefixes[count - 1], share.judges)
        calibrates = share.calibration and any(map(_batch_norms, [*pieces[count:], *_below(node)]))
        if known and (known.calibration or not calibrates):
            pieces, prefixes = pieces[count:], prefixes[count:]
            share = known if share.calibration else known._replace(calibration=[])
            break
    if not pieces:
        return share
    names: dict[int, str] = {}  # of the weights that the pieces are lent

    def weight(name: str, shape: torch.Size, view: View | None) -> Tensor:
        tensor = net.tensor_of(name, shape, view)
        names[id(tensor)] = name
        return tensor

    with weights_in(pieces, weight) as model:
        calibration: list[Carried] = []
        layers = {prefix: own for prefix, piece in zip(prefixes, pieces) if (own := _batch_norms(piece))}
        if not share.calibration:
            for prefix, own in layers.items():
                pooled = remembered.statistics.get(prefix) if statistics is None else statistics[prefix]
                pooled.put(own)
        elif layers:
            named = {layer: names.get(id(layer.running_mean), "") for own in layers.values() for layer in own.values()}
            named = {layer: name.removesuffix(".running_mean") for layer, name in named.items()}
            calibration, found = calibrate(model, share.calibration, references_of(net, references, named))
            for prefix, own in layers.items():
                pooled = Pooled() if statistics is None else statistics[prefix]
                pooled.add({place: found[layer] for place, layer in own.items() if layer in found})
                if statistics is None:
                    remembered.statistics.put(prefix, pooled)
        elif any(_batch_norms(piece) for piece in _below(node)):
            calibration = _outputs(model, share.calibration)
        with folded((piece, remembered.pairs(piece)) for piece in pieces if share.evaluation):
            result = Share(calibration, _outputs(model, share.evaluation), share.judges)
    if node.children:
        remembered.put(node.prefixes[-1], result)
    return result


def _outputs(model: nn.Module, batches: Sequence[Carried]) -> list[Any]:
    """On a CPU a batch a core: sharing out every operation of a small network among the cores takes longer.

    Other paths, and later populations, may start from the same batches.
    """
    if not batches:
        return []

    @torch.inference_mode()
    def run(batch: Carried) -> Any:
        return untouched(model, *as_arguments(batch))

    with side_by_side(min(len(batches), at_a_time(device_of(batches[0])))) as pool:
        return list(pool.map(run, batches))


def _batch_norms(piece: nn.Module) -> dict[int, nn.Module]:
    """The layers of a piece that are calibrated, by their places, which are those in any piece of the same key."""
    return dict(enumerate(filter(keeps_statistics, piece.modules())))


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
