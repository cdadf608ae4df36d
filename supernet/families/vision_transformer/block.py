"""timm's blocks of a vision transformer, with heads of one size in all subnets, and other mixers of tokens."""

from __future__ import annotations

from typing import Any

from timm.models.vision_transformer import Attention, Block
from torch import Tensor

from supernet.families.transformers.mixers import add_mixer, heads_of, is_reused, mix, mixer_of
from supernet.space import Arch

# B images, T tokens, D channels of the network, H heads


class MixingBlock(Block):
    """timm's block, whose tokens a `mixer` of `supernet.families.transformers.mixers` mixes in the place of attention
    of its own, or which `keeps` the matrices of that for a later block. Without a mixer it has no first normalisation
    and no first layer scale."""

    mixer: str
    keeps: bool

    def forward(self, x: Tensor, attention: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]
        """What it makes of x [B, T, D], and of the `attention` [B, H, T, T] that it reuses, of the same shape as x, and
        its attention matrices where it keeps them."""
        if self.mixer != "none":
            mixed = mix(self, self.norm1(x), attention=attention)
            if self.keeps:
                mixed, attention = mixed
            x = x + self.drop_path1(self.ls1(mixed))
        x = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return (x, attention) if self.keeps else x


def make_block(arch: Arch, block: int, head_dim: int, options: dict[str, Any]) -> Block:
    """A block of `arch` with heads of `head_dim` channels, made with what timm has as `options` of its block: timm's
    own where its attention is its own and nobody else's."""
    mixer, keeps = mixer_of(arch, block), is_reused(arch, block)
    options = options | {"num_heads": 1, "mlp_ratio": arch[f"blocks.{block}.mlp_ratio"]}
    of_attention = {name: options[name] for name in ("qkv_bias", "qk_norm", "proj_bias", "attn_drop", "proj_drop")}
    of_attention |= {"scale_norm": options["scale_attn_norm"], "norm_layer": options["norm_layer"]}
    sizes = options["dim"], heads_of(arch, block), head_dim
    if mixer == "own" and not keeps:
        made = Block(**options)
        made.attn = Attention(*sizes, **of_attention)
        return made
    made = MixingBlock(**options)
    made.mixer, made.keeps = mixer, keeps
    if mixer != "own":
        del made.attn
    if mixer == "none":
        del made.norm1, made.ls1, made.drop_path1
    add_mixer(made, mixer, *sizes, **of_attention)
    return made
