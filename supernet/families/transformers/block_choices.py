"""The choices that the blocks of transformers have in common."""

from __future__ import annotations

from collections.abc import Sequence

from supernet.families.transformers.mixers import MIXERS
from supernet.space import Choice


def block_choices(
    depth: Sequence[int],
    num_heads: Sequence[int],
    mlp_ratio: Sequence[float],
    mixers: Sequence[str] = ("own",),
) -> dict[str, Choice]:
    """Of each block `blocks.3.num_heads` and `blocks.3.mlp_ratio`, of these values, the smallest first, where the
    network is so deep.

    With several `mixers`, of `MIXERS`, a block has a choice `blocks.3.mixer` as well, and the number of heads where its
    attention is its own. The first block has attention of its own where others may reuse it. ValueError for mixers that
    are none, and for a space in which nothing has attention that is reused.
    """
    mixers = _in_order(tuple(mixers))
    choices = {}
    for b in range(max(depth)):
        deeper = [d for d in depth if d > b]
        when = {} if len(deeper) == len(depth) else {"depth": deeper}
        attends = when
        if mixers != ("own",) and (b > 0 or "reused" not in mixers):
            choices[f"blocks.{b}.mixer"] = Choice(mixers, when)
            attends = {**when, f"blocks.{b}.mixer": ("own",)}
        if "own" in mixers:
            choices[f"blocks.{b}.num_heads"] = Choice(tuple(num_heads), attends)
        choices[f"blocks.{b}.mlp_ratio"] = Choice(tuple(mlp_ratio), when)
    return choices


def _in_order(mixers: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := [mixer for mixer in mixers if mixer not in MIXERS]:
        raise ValueError(f"mixers are of {', '.join(MIXERS)}, not {unknown[0]!r}")
    found = tuple(mixer for mixer in MIXERS if mixer in mixers)
    if not found or ("reused" in found and "own" not in found):
        raise ValueError(f"mixers are at least one, and attention that is reused is some layer's own, not {mixers}")
    return found
