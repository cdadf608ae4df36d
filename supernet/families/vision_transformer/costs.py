"""What subnets of a vision transformer cost, from the largest one's tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

from torch import nn

from supernet.families.transformers.mixers import heads_of, mixer_macs, mixer_of, mixer_parameters
from supernet.families.vision_transformer.rewiring import transformer_channels
from supernet.space import Arch

# D embedding width, A = heads times channels of a head, H hidden channels of an MLP, T tokens


class Sizes:
    """The sizes of the network of an architecture."""

    def __init__(self, arch: Arch, resolution: int, patch_size: int) -> None:
        self.dim, self.depth = arch["embed_dim"], arch["depth"]
        self.patch_size, self.patches = patch_size, (resolution // patch_size) ** 2
        self.mixers = [mixer_of(arch, b) for b in range(self.depth)]
        self.heads = [heads_of(arch, b) for b in range(self.depth)]
        self.hidden = [int(self.dim * arch[f"blocks.{b}.mlp_ratio"]) for b in range(self.depth)]


def macs_of(head_dim: int, in_chans: int, num_classes: int, sizes: Sizes, prefix_tokens: int) -> int:
    """Multiply-accumulates for one image: those of the patches' kernel, of each block's mixer and MLP, which takes
    2 T D H, and of the classifier."""
    tokens, dim = sizes.patches + prefix_tokens, sizes.dim
    macs = in_chans * sizes.patch_size**2 * dim * sizes.patches + dim * num_classes
    for mixer, heads, hidden in zip(sizes.mixers, sizes.heads, sizes.hidden):
        macs += mixer_macs(mixer, dim, heads * head_dim, tokens) + 2 * tokens * dim * hidden
    return macs


def parameters_formula(largest: nn.Module) -> Callable[[Sizes, int, bool], int]:
    """The number of parameters of the subnet of some sizes, with so many registers, and with a class token or not."""
    shapes = {name: tensor.shape for name, tensor in largest.named_parameters()}
    varying: dict[str, dict[int, tuple[str, int]]] = {name: {} for name in shapes}
    for group in transformer_channels(largest):
        kind = group.name.rpartition(".")[2]
        for name, dim, blocks in group.members:
            varying[name][dim] = kind, blocks * group.each
    names = [name for name in shapes if name.startswith("blocks.0.")]
    others = [name for name in names if not name.startswith("blocks.0.attn.")]  # than its own attention's
    unmixed = [name for name in others if not name.startswith(("blocks.0.norm1.", "blocks.0.ls1."))]
    attn = largest.blocks[0].attn
    biases = attn.qkv.bias is not None, attn.proj.bias is not None
    special = ("patch_embed.proj.weight", "pos_embed", "reg_token", "cls_token")
    of_network = [name for name in shapes if not name.startswith("blocks.") and name not in special]

    def count(names: list[str], channels: Mapping[str, int]) -> int:
        return sum(
            math.prod(
                channels[varying[name][dim][0]] * varying[name][dim][1] if dim in varying[name] else size
                for dim, size in enumerate(shapes[name])
            )
            for name in names
        )

    @lru_cache(maxsize=10_000)
    def in_block(mixer: str, dim: int, heads: int, hidden: int) -> int:
        channels = {"embed_dim": dim, "num_heads": heads, "mlp_ratio": hidden}
        if mixer == "own":
            return count(names, channels)
        around = count(unmixed if mixer == "none" else others, channels)
        return around + mixer_parameters(mixer, dim, heads * attn.head_dim, *biases)

    def formula(sizes: Sizes, registers: int, has_class_token: bool) -> int:
        dim = sizes.dim
        found = shapes["patch_embed.proj.weight"][1] * sizes.patch_size**2 * dim
        found += dim * (has_class_token + registers + ("pos_embed" in shapes) * sizes.patches)
        found += sum(
            in_block(mixer, dim, heads, hidden) for mixer, heads, hidden in zip(sizes.mixers, sizes.heads, sizes.hidden)
        )
        return found + count(of_network, {"embed_dim": dim})

    return formula
