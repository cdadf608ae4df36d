"""A BERT-like text encoder (Devlin et al., NAACL 2019, arXiv 1810.04805), of any depth, width, heads and MLPs.

Choices: `embed_dim` and `depth` of the network, `blocks.3.num_heads`, `blocks.3.mlp_ratio` and, with several mixers of
tokens, `blocks.3.mixer` of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from supernet.artifacts.weights import load_weights
from supernet.channels.importance import Importance, order_channels
from supernet.families.family import Family
from supernet.families.text.bert import bert_options, encoder_weights, read_bert
from supernet.families.text.layers import Block, Embeddings, block_sizes, feature_info, initialise
from supernet.families.text.rewiring import text_channels
from supernet.families.text.space import text_space
from supernet.families.transformers.mixers import TENSORS, Blocks, mixer_of, mixer_rules
from supernet.space import Arch, Choice, SearchSpace
from supernet.tasks.text import TextClassification
from supernet.views import View, no_views

# B batch, L length in tokens, V vocabulary, D channels of the network, K classes

EPS = 1e-12  # of BERT's LayerNorms
PARTS = ("attn", "mlp", "norm")
"""Parts of a block that others may have as well: its mixer of tokens, its MLP, its LayerNorms."""
SIZES = {
    "vocabulary": 8192,
    "embed_dim": (64, 96, 128),
    "depth": (1, 2, 3),
    "num_heads": (1, 2, 4),
    "mlp_ratio": (1, 2),
    "head_dim": 32,
    "mixers": ("own",),
    "pool": "mean",
}
"""What `text_encoder` takes where nothing else is said: encoders that a CPU trains in minutes."""


@dataclass(frozen=True)
class _Network:
    num_classes: int
    vocabulary: int
    length: int  # tokens, at most
    embedding_size: int | None  # channels of the embeddings; None for `embed_dim`
    head_dim: int  # channels of an attention head
    pool: Literal["mean", "first"]


class TextEncoder(nn.Module):
    """Tokens [B, L], and a mask [B, L] that is 0 for those which only fill up the text, to logits [B, K].

    Without a mask all tokens count. What is classified is the mean over a text's tokens, or, with `pool` "first", what
    BERT's pooler, a layer and tanh, makes of the first token.
    """

    def __init__(
        self, network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0, eps: float = EPS
    ) -> None:
        super().__init__()
        dim, depth = arch["embed_dim"], arch["depth"]
        rates = [drop_path_rate * b / max(depth - 1, 1) for b in range(depth)]
        self.embeddings = Embeddings(network.vocabulary, network.length, dim, eps, network.embedding_size, drop_rate)
        self.blocks = Blocks(
            *(
                Block(block_sizes(arch, b, network.head_dim), eps, drop=drop_rate, drop_path=rates[b])
                for b in range(depth)
            )
        )
        self.pooler = nn.Sequential(nn.Linear(dim, dim), nn.Tanh()) if network.pool == "first" else None
        self.drop = nn.Dropout(drop_rate)
        self.head = nn.Linear(dim, network.num_classes)
        self.feature_info = feature_info(dim, depth)
        initialise(self)

    def forward_features(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """What the last block gives [B, L, D], which means nothing at tokens that the mask leaves out."""
        looked_at = None if mask is None else mask[:, None, None, :].bool()
        return self.blocks(self.embeddings(tokens), looked_at)

    def forward_head(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.pooler is not None:
            x = self.pooler(x[:, 0])
        elif mask is None:
            x = x.mean(1)
        else:
            weight = mask[..., None].to(x.dtype)
            x = (x * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.head(self.drop(x))

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.forward_head(self.forward_features(tokens, mask), mask)


def text_encoder(
    num_classes: int = 2,
    vocabulary: int | None = None,
    length: int = 64,
    padding: int = 0,
    *,
    embed_dim: Sequence[int] | None = None,
    depth: Sequence[int] | None = None,
    num_heads: Sequence[int] | None = None,
    mlp_ratio: Sequence[float] | None = None,
    embedding_size: int | None = None,
    head_dim: int | None = None,
    mixers: Sequence[str] | None = None,
    pool: Literal["mean", "first"] | None = None,
    distinct_layers: Sequence[int] | None = None,
    shared: Sequence[str] = PARTS,
    pretrained: str | None = None,
    importance: Importance | None = "l1",
) -> Family:
    """BERT-like encoders that classify texts of up to `length` tokens, by default (`SIZES`) small enough to be trained
    on a CPU.

    `vocabulary` is the number of tokens, and `padding` the one that fills up texts which are shorter than `length`.
    Every block has `num_heads` heads of `head_dim` channels, whatever the width `embed_dim` is, and an MLP of
    `mlp_ratio` times the width. With `embedding_size` the embeddings have so many channels, in every subnet, and a
    matrix makes the width of them (ALBERT's factorised embedding). `drop_rate` is that of BERT's dropouts: of the
    embeddings, of what a block adds, and before the classifier.

    `mixers`, of `supernet.families.transformers.mixers.MIXERS`, are those of which each block chooses one: attention of
    its own, which is all there is by default, that of an earlier block, averages, or none.

    `distinct_layers` makes a choice of how many layers have weights of their own: of d blocks, those of equal b n // d,
    for the block b, counted from 0, and the value n, are a group that has the weights of its first block (ALBERT, arXiv
    1909.11942, section 3.1; 1 for one layer all the way). `shared` names which parts of the blocks these are, of
    `PARTS`. The last value has to be the most blocks, which share nothing. Of two mixers each has weights of its own.
    Sharing saves parameters and bytes, and no MACs. ValueError otherwise.

    `pretrained` is a file or folder with the weights of a BERT of Hugging Face's (`supernet.families.text.bert`), with
    which the largest subnet starts; what is not said of the sizes follows from it. The classifier is read where it is
    for as many classes, and starts anew otherwise. Heads, neurons and embedding channels are ordered by `importance`,
    which leaves what the largest subnet computes unchanged (`supernet.families.text.rewiring`); None leaves them as
    they are. ValueError if the weights do not fit.
    """
    given = {
        "vocabulary": vocabulary,
        "embed_dim": embed_dim,
        "depth": depth,
        "num_heads": num_heads,
        "mlp_ratio": mlp_ratio,
        "head_dim": head_dim,
        "mixers": mixers,
        "pool": pool,
    }
    sizes: dict[str, Any] = SIZES | (bert_options(pretrained) if pretrained else {})
    sizes |= {name: value for name, value in given.items() if value is not None}
    network = _Network(num_classes, sizes["vocabulary"], length, embedding_size, sizes["head_dim"], sizes["pool"])
    space = text_space(sizes)
    if distinct_layers is not None:
        if distinct_layers[-1] != max(sizes["depth"]):
            raise ValueError(f"distinct_layers end in the most blocks, {max(sizes['depth'])}, not in {distinct_layers}")
        if unknown := [part for part in shared if part not in PARTS]:
            raise ValueError(f"shared are parts of blocks, {', '.join(PARTS)}, not {unknown[0]!r}")
        space = SearchSpace({**space.choices, "distinct_layers": Choice(tuple(distinct_layers))})
    return Family(
        space=space,
        build=partial(_build, network),
        macs=partial(_macs, network),
        parameters=partial(_parameters, network) if distinct_layers is None else None,  # type: ignore[arg-type]
        rules=mixer_rules(space),
        views=no_views if distinct_layers is None else partial(_views, tuple(shared)),
        num_classes=num_classes,
        task=TextClassification(num_classes, padding=padding, vocabulary=network.vocabulary),
        inputs=partial(_inputs, network),
        weights=partial(_weights, network, space.largest, pretrained, importance) if pretrained else None,
        paper="Devlin et al. 2019, arXiv 1810.04805",
    )


def _views(shared: Sequence[str], arch: Arch) -> dict[str, View]:
    depth = arch["depth"]
    groups = [b * min(arch["distinct_layers"], depth) // depth for b in range(depth)]
    return {
        f"blocks.{b}.{name}": View(f"blocks.{source}.{name}")
        for b, first in enumerate(map(groups.index, groups))
        for source, names in _shared_tensors(shared, arch, b, first)
        if b != source
        for name in names
    }


def _shared_tensors(shared: Sequence[str], arch: Arch, block: int, first: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Names of tensors of a block that blocks of its group have as well, of which `first` is the first, each with the
    block whose they are: the first that may have them."""
    mixer = mixer_of(arch, block)
    norms = ("norm2",) if mixer == "none" else ("norm1", "norm2")
    for part, layers in (("mlp", ("mlp.fc1", "mlp.fc2")), ("norm", norms)):
        if part in shared:
            yield first, [f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]
    if "attn" in shared:
        has_choice = mixer == "own" or "blocks.0.mixer" in arch
        yield max(first, 0 if has_choice else 1), TENSORS[mixer]


def _weights(network: _Network, largest: Arch, pretrained: str, importance: Importance | None) -> dict[str, Tensor]:
    model = TextEncoder(network, largest)
    found = encoder_weights(read_bert(pretrained), network.length)
    own = model.state_dict()
    for name in ("head.weight", "head.bias"):  # the classifier, which starts anew where it is another
        if name not in found or found[name].shape != own[name].shape:
            found[name] = own[name]
    if network.pool == "mean":
        found = {name: tensor for name, tensor in found.items() if not name.startswith("pooler.")}
    elif "pooler.0.weight" not in found:
        raise ValueError(f"{pretrained!r} has no pooler: take the mean over tokens, with the option pool, mean")
    load_weights(model, found, repr(pretrained))
    return order_channels(model, text_channels(model), importance or {}).state_dict()


def _build(network: _Network, arch: Arch, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> TextEncoder:
    return TextEncoder(network, arch, drop_rate, drop_path_rate)


def _inputs(network: _Network, arch: Arch) -> tuple[Tensor, Tensor]:
    tokens = torch.empty(1, network.length, dtype=torch.int64, device="meta")
    return tokens, torch.empty_like(tokens)


def _macs(network: _Network, arch: Arch) -> int:
    dim = arch["embed_dim"]
    size, length = network.embedding_size or dim, network.length
    blocks = sum(block_sizes(arch, b, network.head_dim).macs(length) for b in range(arch["depth"]))
    projection = size * dim * length if network.embedding_size else 0
    pooler = dim * dim if network.pool == "first" else 0
    return projection + blocks + pooler + dim * network.num_classes


def _parameters(network: _Network, arch: Arch) -> int:
    dim = arch["embed_dim"]
    size = network.embedding_size or dim
    embeddings = (network.vocabulary + network.length + 2) * size
    projection = (size + 1) * dim if network.embedding_size else 0
    blocks = sum(block_sizes(arch, b, network.head_dim).parameters for b in range(arch["depth"]))
    pooler = (dim + 1) * dim if network.pool == "first" else 0
    return embeddings + projection + blocks + pooler + (dim + 1) * network.num_classes
