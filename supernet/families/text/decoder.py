"""A GPT-2-like text decoder (Radford et al. 2019, "Language models are unsupervised multitask learners"), of any depth,
width, heads and MLPs.

Choices: `embed_dim` and `depth` of the network, `blocks.3.num_heads`, `blocks.3.mlp_ratio` and, with several mixers of
tokens, `blocks.3.mixer` of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from supernet.artifacts.weights import load_weights
from supernet.channels.importance import Importance, order_channels
from supernet.families.family import Family
from supernet.families.text.gpt2 import decoder_weights, gpt2_options, read_gpt2
from supernet.families.text.layers import Block, Embeddings, block_sizes, feature_info, initialise
from supernet.families.text.rewiring import text_channels
from supernet.families.text.space import text_space
from supernet.families.transformers.mixers import Blocks, mixer_rules
from supernet.space import Arch
from supernet.tasks.text import NextToken

# B batch, L length in tokens, V vocabulary, D channels of the network

EPS = 1e-5  # of GPT-2's LayerNorms
SIZES = {
    "vocabulary": 8192,
    "embed_dim": (64, 96, 128),
    "depth": (1, 2, 3),
    "num_heads": (1, 2, 4),
    "mlp_ratio": (2, 4),
    "head_dim": 32,
    "mixers": ("own",),
}
"""What `text_decoder` takes where nothing else is said."""


@dataclass(frozen=True)
class _Network:
    vocabulary: int
    length: int  # tokens, at most
    head_dim: int  # channels of an attention head


class TextDecoder(nn.Module):
    """Tokens [B, L] to logits [B, L, V] of the token that follows each, which depend on it and those before it alone.

    The matrix that gives the logits is the table of the tokens' embeddings.
    """

    def __init__(self, network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        dim, depth = arch["embed_dim"], arch["depth"]
        rates = [drop_path_rate * b / max(depth - 1, 1) for b in range(depth)]
        self.length = network.length
        self.embeddings = Embeddings(network.vocabulary, network.length, dim, EPS, drop=drop_rate, norm=False)
        gelu = partial(nn.GELU, approximate="tanh")
        self.blocks = Blocks(
            *(
                Block(
                    block_sizes(arch, b, network.head_dim), EPS, gelu, drop_rate, rates[b], pre_norm=True, causal=True
                )
                for b in range(depth)
            )
        )
        self.norm = nn.LayerNorm(dim, EPS)
        self.head = nn.Linear(dim, network.vocabulary, bias=False)
        self.head.weight = self.embeddings.tokens.weight
        self.feature_info = feature_info(dim, depth)
        initialise(self)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embeddings(tokens))))


@torch.inference_mode()
def generate(
    model: TextDecoder,
    tokens: Tensor,
    count: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """`tokens` [B, L] and the `count` that `model` writes after them [B, L + count].

    With the temperature 0 each is the one of the highest logit, otherwise it is drawn from the softmax of the logits
    over the temperature. The model sees the last of its `length` tokens; nothing is kept from token to token.
    """
    for _ in range(count):
        logits = model(tokens[:, -model.length :])[:, -1]
        if temperature:
            chosen = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)
        else:
            chosen = logits.argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, chosen], 1)
    return tokens


def text_decoder(
    vocabulary: int | None = None,
    length: int = 64,
    padding: int | None = None,
    *,
    embed_dim: Sequence[int] | None = None,
    depth: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
    mlp_ratio: Sequence[float] | None = None,
    head_dim: int | None = None,
    mixers: Sequence[str] | None = None,
    pretrained: str | None = None,
    importance: Importance | None = "l1",
) -> Family:
    """GPT-2-like decoders that say of texts of up to `length` tokens which token comes next; `generate` writes by them.

    The sizes and the `mixers` of tokens are those of `text_encoder`, by default `SIZES`. `padding` is the token that
    fills up short texts, if any, after which nothing is to be said. `pretrained` is a file or folder with the weights
    of a GPT-2 of Hugging Face's (`supernet.families.text.gpt2`), with which the largest subnet starts; what is not said
    of the sizes follows from it, and `importance` is as for `text_encoder`. ValueError if the weights do not fit.
    """
    given = {
        "vocabulary": vocabulary,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "head_dim": head_dim,
        "mixers": mixers,
    }
    sizes: dict[str, Any] = SIZES | (gpt2_options(pretrained) if pretrained else {})
    sizes |= {name: value for name, value in given.items() if value is not None}
    network = _Network(sizes["vocabulary"], length, sizes["head_dim"])
    space = text_space(sizes)
    return Family(
        space=space,
        build=partial(_build, network),
        macs=partial(_macs, network),
        parameters=partial(_parameters, network),
        rules=mixer_rules(space),
        task=NextToken(padding),
        inputs=partial(_inputs, network),
        weights=partial(_weights, network, space.largest, pretrained, importance) if pretrained else None,
        paper="Radford et al. 2019",
    )


def _build(network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> TextDecoder:
    return TextDecoder(network, arch, drop_rate, drop_path_rate)


def _inputs(network: _Network, arch: Arch) -> tuple[Tensor]:
    return (torch.empty(1, network.length, dtype=torch.int64, device="meta"),)


def _weights(network: _Network, largest: Arch, pretrained: str, importance: Importance | None) -> dict[str, Tensor]:
    model = TextDecoder(network, largest)
    found = decoder_weights(read_gpt2(pretrained), network.length)
    load_weights(model, found | {"head.weight": found["embeddings.tokens.weight"]}, repr(pretrained))
    return order_channels(model, text_channels(model), importance or {}).state_dict()


def _macs(network: _Network, arch: Arch) -> int:
    blocks = sum(block_sizes(arch, b, network.head_dim).macs(network.length, causal=True) for b in range(arch["depth"]))
    return blocks + arch["embed_dim"] * network.vocabulary * network.length


def _parameters(network: _Network, arch: Arch) -> int:
    blocks = sum(block_sizes(arch, b, network.head_dim).parameters for b in range(arch["depth"]))
    return (network.vocabulary + network.length + 2) * arch["embed_dim"] + blocks
