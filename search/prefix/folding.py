"""BatchNorm folded into the convolution before it, while images that judge run.

With running statistics m and v, BatchNorm makes g (x - m) / sqrt(v + eps) + b of a channel x. A convolution whose
weights are multiplied by g / sqrt(v + eps), with another bias, gives that at once: the same up to rounding, with one
pass less over the activations (Jacob et al., CVPR 2018, arXiv 1712.05877, section 3.2).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from search.prefix.pieces import Piece
from supernet.calibration import keeps_statistics

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNormAct2d)


class Pair(NamedTuple):
    """A convolution and the BatchNorm behind it, by their places among a piece's modules, which are the same in all
    pieces of the same key."""

    convolution: int
    batch_norm: int


def pairs(piece: Piece) -> list[Pair]:
    """Those in `piece` that may be one convolution: nothing else uses what goes from one to the other, and each runs
    once. There are none in a layer that `torch.fx` cannot trace."""
    places = {module: place for place, module in enumerate(piece.modules())}
    found = [_in_graph(piece.called), *map(_pairs_in, piece.layers)]
    return [Pair(*map(places.__getitem__, pair)) for pair in itertools.chain(*found)]


@contextmanager
def folded(pieces: Iterable[tuple[Piece, Iterable[Pair]]]) -> Iterator[None]:
    """For the time being, the convolutions in `pieces` that have a `Pair` do what the BatchNorm behind them does in
    eval mode; of BatchNorm with an activation that alone is left.

    A convolution that is in several of the pieces is left as it is.
    """
    found = [(list(piece.modules()), own) for piece, own in pieces]
    uses = Counter(module for modules, _ in found for module in set(modules))
    undo: list[tuple[nn.Module, Tensor, Tensor | None, nn.Module]] = []
    try:
        for modules, own in found:
            for convolution, norm in ((modules[pair.convolution], modules[pair.batch_norm]) for pair in own):
                if uses[convolution] == uses[norm] == 1:
                    undo.append((convolution, convolution.weight, convolution.bias, norm))
                    _fold(convolution, norm)
        yield
    finally:
        for convolution, weight, bias, norm in undo:
            convolution._parameters["weight"], convolution._parameters["bias"] = weight, bias
            vars(norm).pop("forward", None)


def _fold(convolution: nn.Module, norm: nn.Module) -> None:
    weight, bias = fuse_conv_bn_weights(
        convolution.weight, convolution.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    convolution._parameters["weight"], convolution._parameters["bias"] = weight, bias
    norm.forward = partial(_activated, norm)


def _activated(norm: nn.Module, x: Tensor) -> Tensor:
    return norm.act(norm.drop(x)) if isinstance(norm, BatchNormAct2d) else x


def _pairs_in(layer: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    if keeps_statistics(layer) or not any(map(keeps_statistics, layer.modules())):
        return
    try:
        nodes = list(_Tracer().trace(layer).nodes)
    except Exception:  # whatever code does that depends on data or shapes
        return
    direct = {node.target.rpartition(".")[0] for node in nodes if node.op == "get_attr"}
    called = {node: layer.get_submodule(node.target) for node in nodes if node.op == "call_module"}
    yield from _in_graph({node: module for node, module in called.items() if node.target not in direct})


def _in_graph(called: Mapping[fx.Node, nn.Module]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Those among the modules that nodes of a graph call."""
    times = Counter(called.values())
    for node, norm in called.items():
        before = node.args[0] if len(node.args) == 1 else None
        convolution = called.get(before)
        if type(norm) not in BATCH_NORMS or not keeps_statistics(norm) or type(convolution) not in CONVOLUTIONS:
            continue
        if len(before.users) == times[norm] == times[convolution] == 1:
            yield convolution, norm


class _Tracer(fx.Tracer):
    """Looks into what BatchNorm is in."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return keeps_statistics(module) or not any(map(keeps_statistics, module.modules()))
