"""The space that text encoders and decoders have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supernet.families.transformers.block_choices import block_choices
from supernet.space import Choice, SearchSpace


def text_space(sizes: Mapping[str, Any]) -> SearchSpace:
    """`embed_dim` and `depth`, and what `block_choices` gives each block, of the sizes of these names, each the
    smallest first. ValueError as `block_choices`."""
    network = {name: Choice(tuple(sizes[name])) for name in ("embed_dim", "depth")}
    return SearchSpace(network | block_choices(*(sizes[n] for n in ("depth", "num_heads", "mlp_ratio", "mixers"))))
