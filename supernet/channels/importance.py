"""How much a channel matters, and reordering channels so that those that matter most come first.

A supernet keeps leading channels. In a pretrained model the order of the channels means nothing, so any order computes
the same, and sorting them by importance makes every narrower subnet start from the channels most worth keeping.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from distill.temporary import hooks
from supernet.channels.tracer import Channels, Member

# O output channels, I input channels

Batch = TypeVar("Batch")
Importance = Literal["l1", "outgoing_l1", "geometric_median", "bn_scale"]
AnyImportance = Literal[Importance, "activations"]  # the last of which is by what inputs show


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


def channel_scores(
    model: nn.Module, channels: Iterable[Channels], importance: Importance, *, relative: bool = True
) -> dict[str, Tensor]:
    """How much each of these channels of `model` matters, [O] by the channels' name; higher matters more.

    Channels that a residual ties are judged together, by the sum over the layers that put them out (for "outgoing_l1",
    that take them in), each layer's values divided by their mean. Without `relative` it is the mean of the values as
    they are, which layers can be compared by. Where channels lie in several blocks, or several times in a row, their
    values there are added up. Channels without such layers, as those without BatchNorm under "bn_scale", are left out.
    """
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for group in channels:
            # the model may have more of these channels than the one that was traced
            size = _size(group, tensors)
            scores = [_score(tensors[m.tensor], m, size, importance) for m in _judged(group, importance, tensors)]
            if scores and relative:
                found[group.name] = torch.stack([score / score.mean().clamp_min(1e-12) for score in scores]).sum(0)
            elif scores:
                found[group.name] = torch.stack(scores).mean(0)
    return found


def comparable_scores(
    model: nn.Module,
    channels: Iterable[Channels],
    importance: AnyImportance,
    batches: Iterable[tuple[Tensor, ...]] = (),
) -> dict[str, Tensor]:
    """How much each of these channels of `model` matters, [O] by the channels' name, comparable over all of them, as
    one threshold for all layers needs it.

    "bn_scale" as it is (network slimming), and "activations", which are `activation_scores` on `batches`; of the others
    each channel's score over the mean of its layer.
    """
    if importance == "activations":
        return activation_scores(model, channels, batches)
    if importance == "bn_scale":
        return channel_scores(model, channels, importance, relative=False)
    scores = channel_scores(model, channels, importance)
    return {name: score / score.mean().clamp_min(1e-12) for name, score in scores.items()}


def activation_scores(
    model: nn.Module, channels: Iterable[Channels], batches: Iterable[tuple[Tensor, ...]]
) -> dict[str, Tensor]:
    """Of each of these channels, 1 less its average percentage of zeros (APoZ, Hu et al. 2016, arXiv 1607.03250): which
    part of the positions of all images is not zero where layers take the channel in, [O] by the channels' name.

    The channel of the most zeros matters least. Batches are what `model`, which is in eval mode, is called with. Where
    several layers take the same channels in, it is the mean over these. Channels that no layer takes in as they are
    have no score.
    """
    taken = {m.tensor.rpartition(".")[0]: (group, m) for group in channels for m in group.members if _takes_in(m)}
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def note(layer: str, group: Channels, member: Member) -> Callable[[nn.Module, tuple], None]:
        size = _size(group, tensors)

        def hook(_: nn.Module, inputs: tuple) -> None:
            dim = 1 if inputs[0].dim() == 4 else -1
            is_kept = (inputs[0] != 0).double().movedim(dim, 0).flatten(1)
            parts = is_kept.unflatten(0, (member.blocks, size, -1)).movedim(1, 0).flatten(1)
            sums[layer] = sums.get(layer, 0) + parts.sum(1)
            counts[layer] = counts.get(layer, 0) + parts.shape[1]

        return hook

    handles = (
        model.get_submodule(layer).register_forward_pre_hook(note(layer, *where)) for layer, where in taken.items()
    )
    with torch.no_grad(), hooks(handles):
        for batch in batches:
            model(*batch)
    found: dict[str, list[Tensor]] = {}
    for layer, total in sums.items():
        found.setdefault(taken[layer][0].name, []).append(total / counts[layer])
    return {name: torch.stack(scores).mean(0).float() for name, scores in found.items()}


def taylor_scores(
    model: nn.Module,
    channels: Iterable[Channels],
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
) -> dict[str, Tensor]:
    """How much the loss would change, to first order, if a gate on each of these channels, open at 1, were closed: the
    sum over batches of |dL/dgate|, [O] by the channels' name (DynaBERT, Hou et al., NeurIPS 2020, arXiv 2004.04037,
    section 2.1.1, after Molchanov et al., arXiv 1611.06440).

    A gate lies where a layer takes the channel in, so that dL/dgate is the sum of weight times gradient over what the
    layer multiplies with the channel; of several layers, the absolute values add up. `loss(model, batch)` is a scalar.
    Channels that no layer takes in have no score. `model` keeps its gradients.
    """
    channels = [group for group in channels if any(_takes_in(m) for m in group.members)]
    tensors = dict(model.named_parameters())
    names = sorted({m.tensor for group in channels for m in group.members if _takes_in(m)} & tensors.keys())
    found: dict[str, Tensor] = {}
    for batch in batches:
        gradients = torch.autograd.grad(loss(model, batch), [tensors[name] for name in names])
        products = {name: (tensors[name] * gradient).detach() for name, gradient in zip(names, gradients)}
        for group in channels:
            size = _size(group, tensors)
            for name, dim, blocks in (m for m in group.members if m.tensor in products and _takes_in(m)):
                gates = products[name].movedim(dim, 0).flatten(1).sum(1).unflatten(0, (blocks, size, -1)).sum((0, 2))
                found[group.name] = found.get(group.name, 0) + gates.abs()
    return found


def _takes_in(member: Member) -> bool:
    """Whether a layer takes channels in along this dimension of its weights."""
    return member.dim == 1 and member.tensor.endswith(".weight")


def order_channels(
    model: nn.Module,
    channels: Iterable[Channels],
    importance: Importance | Mapping[str, Tensor],
    companions: Sequence[Mapping[str, Tensor]] = (),
) -> nn.Module:
    """Sort `channels` of `model` by falling importance, in place; returns `model`, which computes what it did.

    They are judged by `channel_scores`, or by scores like those it gives. Channels without any keep their order.
    `companions` are tensors by the names of the model's, such as an optimizer's momentum, that are reordered in the
    same way.
    """
    channels = list(channels)
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    scores = channel_scores(model, channels, importance) if isinstance(importance, str) else importance
    with torch.no_grad():
        for group in channels:
            if group.name not in scores:
                continue
            size, order = _size(group, tensors), scores[group.name].argsort(descending=True, stable=True)
            for name, dim, blocks in group.members:
                for tensor in (tensors[name], *(c[name] for c in companions if name in c)):
                    parts = tensor.unflatten(dim, (blocks, size, -1))
                    tensor.copy_(parts.index_select(dim + 1, order).flatten(dim, dim + 2))
    return model


def _size(group: Channels, tensors: Mapping[str, Tensor]) -> int:
    return min(tensors[name].shape[dim] // (blocks * group.each) for name, dim, blocks in group.members)


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
