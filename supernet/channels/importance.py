"""How much a channel matters, and reordering channels so that those that matter most come first.

A supernet keeps leading channels. In a pretrained model the order of the channels means nothing, so any order computes
the same, and sorting them by importance makes every narrower subnet start from the channels most worth keeping.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from supernet.channels.tracer import Channels, Member

# O output channels, I input channels

Importance = Literal["l1", "outgoing_l1", "geometric_median", "bn_scale"]


def l1_norm(weight: Tensor) -> Tensor:
    """Of weights [O, ...], every filter's sum of absolute values [O] (Li et al., ICLR 2017, arXiv 1608.08710)."""
    return weight.abs().flatten(1).sum(1)


def outgoing_l1_norm(weight: Tensor) -> Tensor:
    """Of weights [O, I, ...], the sum of absolute values [I] that every input channel is multiplied with.

    What Once-for-All sorts expanded channels by, in the convolution that follows them (arXiv 1908.09791, section 3.3).
    """
    return l1_norm(weight.transpose(0, 1))


def geometric_median(weight: Tensor) -> Tensor:
    """Of weights [O, ...], the sum of every filter's distances to all others [O]: sum_j ||w_i - w_j||_2.

    A filter near the geometric median can be replaced by the others and matters least (FPGM, He et al., CVPR 2019,
    arXiv 1811.00250, equations 5 to 7).
    """
    filters = weight.flatten(1)
    return torch.cdist(filters, filters, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def bn_scale(scale: Tensor) -> Tensor:
    """The absolute scale of a BatchNorm's channels [O] (network slimming, Liu et al., ICCV 2017, arXiv 1708.06519)."""
    return scale.abs()


def order_channels(
    model: nn.Module,
    channels: Iterable[Channels],
    importance: Importance,
    companions: Sequence[Mapping[str, Tensor]] = (),
) -> nn.Module:
    """Sort `channels` of `model` by falling importance, in place; returns `model`, which computes what it did.

    Channels that a residual ties are sorted together, by the sum over the layers that put them out (for "outgoing_l1",
    that take them in), each layer's values divided by their mean. Where channels lie in several blocks, or several
    times in a row, their values there are added up. Channels without such layers, as those without BatchNorm under
    "bn_scale", keep their order. `companions` are tensors by the names of the model's, such as an optimizer's momentum,
    that are reordered in the same way.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for group in channels:
            # the model may have more of these channels than the one that was traced
            size = min(tensors[name].shape[dim] // blocks for name, dim, blocks in group.members)
            scores = [_score(tensors[m.tensor], m, size, importance) for m in _judged(group, importance, tensors)]
            if not scores:
                continue
            order = sum(score / score.mean().clamp_min(1e-12) for score in scores).argsort(descending=True, stable=True)
            for name, dim, blocks in group.members:
                for tensor in (tensors[name], *(c[name] for c in companions if name in c)):
                    parts = tensor.unflatten(dim, (blocks, size, -1))
                    tensor.copy_(parts.index_select(dim + 1, order).flatten(dim, dim + 2))
    return model


def _judged(group: Channels, importance: Importance, tensors: Mapping[str, Tensor]) -> list[Member]:
    """Where it shows how much these channels matter: a dimension each of some tensors."""
    if importance == "outgoing_l1":
        return [m for m in group.members if m.dim == 1 and tensors[m.tensor].dim() > 1]
    judges = group.scales if importance == "bn_scale" else group.producers
    first = {member.tensor: member for member in reversed(group.members)}  # layers put out along the first dimension
    return [first[name] for name in judges]


def _score(tensor: Tensor, member: Member, size: int, importance: Importance) -> Tensor:
    scores = _SCORES[importance](tensor if importance == "outgoing_l1" else tensor.movedim(member.dim, 0))
    return scores.unflatten(0, (member.blocks, size, -1)).sum((0, 2))


_SCORES = {"l1": l1_norm, "outgoing_l1": outgoing_l1_norm, "geometric_median": geometric_median, "bn_scale": bn_scale}
