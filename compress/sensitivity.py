"""How much the output of a network suffers from the quantisation of one layer alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantisation.network import Precision, Quantisation, Quantised
from compress.quantisation.points import layers

# N images, K classes


@dataclass(frozen=True)
class Sensitivity:
    """What it costs to have one layer in a precision, and all others in float."""

    layer: str
    precision: Precision
    divergence: float  # in nats, the mean of KL(p || q) over images; p is of the network in float; lower is better
    accuracy_drop: float  # part of the images that the network in float has right and this one wrong, net; likewise


def sensitivities(
    model: nn.Module,
    quantisation: Quantisation,
    batches: Sequence[tuple[Tensor, Tensor]],
    precisions: Sequence[Precision] = ("int8", "weights"),
) -> Iterator[Sensitivity]:
    """The sensitivity of each layer of `model`, as `supernet.artifacts.deployment.deployed` gives it, in each of
    `precisions` of a `quantisation`, whatever its own, on `batches` of images and labels; the network's output are
    logits [N, K].

    A pass over the images for each. Layers that calibration has not met have none.
    """
    labels = torch.cat([labels for _, labels in batches])
    met = [name for name in layers(model) if f"{name}.input" in quantisation.ranges]
    expected = logits(model.eval(), batches)
    for name in met:
        for precision in precisions:
            alone: dict[str, Precision] = dict.fromkeys(met, "float")
            alone[name] = precision
            found = logits(Quantised(model, replace(quantisation, precisions=alone)).eval(), batches)
            yield Sensitivity(name, precision, divergence(expected, found), accuracy_drop(expected, found, labels))


def divergence(expected: Tensor, found: Tensor) -> float:
    """The mean over images of KL(softmax(expected) || softmax(found)) of logits [N, K], in nats."""
    p, q = (logits.double().log_softmax(1) for logits in (expected, found))
    return F.kl_div(q, p, reduction="batchmean", log_target=True).item()


def accuracy_drop(expected: Tensor, found: Tensor, labels: Tensor) -> float:
    """How much fewer of the images logits `found` [N, K] have right than `expected`, from -1 to 1."""
    right = [(logits.argmax(1) == labels).double().mean() for logits in (expected, found)]
    return (right[0] - right[1]).item()


def logits(run: Callable[[Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """What `run`, a network in eval mode say, makes of the images in `batches`, [N, K]."""
    with torch.inference_mode():
        return torch.cat([run(images) for images, _ in batches])
