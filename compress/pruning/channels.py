"""Taking the least important channels of a model away, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from supernet.channels import narrow, trace
from supernet.channels.importance import Importance, order_channels
from supernet.channels.tracer import Channels
from supernet.families.traced.kept_sizes import keep_sizes


def prune_channels(
    model: nn.Module,
    example: Tensor,
    keep: Mapping[str, float | int],
    importance: Importance | Mapping[str, Tensor] = "l1",
) -> nn.Module:
    """Keep the most important channels of each layer in `keep`, in place; returns `model`.

    `keep` says of layers, by name, how many of the channels that they put out stay: a number, or a fraction of them, of
    which one stays at least. Channels that other layers put out as well, such as those that a residual ties, are kept
    or dropped together. `importance` is as in `supernet.channels.importance.order_channels`; images are like `example`
    [B, C, H, W].

    BatchNorm's shift of a dropped channel is gone with it, and so is what it added to the next layer: recalibrate or
    train on. ValueError for a layer whose channels cannot become fewer, and for a number that is none of them.
    """
    found = trace(model, example)
    sizes: dict[Channels, int] = {}
    for layer, kept in keep.items():
        group = _group(found.channels, layer, found.fixed)
        size = max(1, round(kept * group.size)) if isinstance(kept, float) else kept
        if not 1 <= size <= group.size:
            raise ValueError(f"{layer} has {group.size} channels, of which {kept} cannot be kept")
        sizes[group] = min(size, sizes.get(group, group.size))
    order_channels(model, sizes, importance)
    return keep_sizes(model, lambda module: narrow(module, sizes))


def _group(channels: tuple[Channels, ...], layer: str, fixed: Mapping[str, str]) -> Channels:
    for group in channels:
        if any(member.tensor == f"{layer}.weight" and member.dim == 0 for member in group.members):
            return group
    reason = f"{fixed[layer]} fixes them" if layer in fixed else "they are the model's output, or it is no layer"
    raise ValueError(f"the channels of {layer} cannot become fewer: {reason}")
