"""The space that text encoders and decoders have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supernet.space import Choice, SearchSpace


def text_space(sizes: Mapping[str, Any]) -> SearchSpace:
    """`embed_dim` and `depth`, and by block `blocks.3.num_heads` and `blocks.3.mlp_ratio`, of the sizes of these names,
    each the smallest first."""
    depth = tuple(sizes["depth"])
    choices = {"embed_dim": Choice(tuple(sizes["embed_dim"])), "depth": Choice(depth)}
    for b in range(max(depth)):
        deeper = [d for d in depth if d > b]
        when = {} if len(deeper) == len(depth) else {"depth": deeper}
        for name in ("num_heads", "mlp_ratio"):
            choices[f"blocks.{b}.{name}"] = Choice(tuple(sizes[name]), when)
    return SearchSpace(choices)
