"""Where precision may be low in a transformer: what it costs to have the weights of one kind of layer in few bits.

Kinds are queries, keys, values and outputs of attention, MLPs, normalisations, embeddings, and what else there is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from timm.layers import GluMlp, Mlp, SwiGLU
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from compress.quantisation.limits import drop
from compress.sensitivity import divergence
from compress.transforms import Bits
from supernet.skeleton import copy_to
from supernet.tasks import Classification
from supernet.training.data.batch import Batch

# N examples, K classes, O output channels

ATTENTION = ("query", "key", "value")
KINDS = (*ATTENTION, "output", "MLP", "norm", "embedding", "convolution", "head", "other")
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
_MLPS = (Mlp, GluMlp, SwiGLU)
_NAMES = {
    **dict.fromkeys(("qkv", "in_proj", "c_attn"), ATTENTION),  # one weight of three blocks of rows
    **dict.fromkeys(("kv",), ATTENTION[1:]),
    **dict.fromkeys(("q", "query", "q_proj", "to_q"), ("query",)),
    **dict.fromkeys(("k", "key", "k_proj", "to_k"), ("key",)),
    **dict.fromkeys(("v", "value", "v_proj", "to_v"), ("value",)),
}
_OUTPUTS = ("proj", "out_proj", "o_proj", "to_out")
_TABLES = ("pos_embed", "positions", "cls_token", "reg_token", "relative_position_bias_table")


class Part(NamedTuple):
    """A tensor of weights, or the block `index` of `count` equal ones of its rows."""

    tensor: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class KindSensitivity:
    """What it costs to have the weights of one kind in few bits, and all else in float."""

    kind: str
    bits: int
    weights: int  # of this kind
    divergence: float  # in nats, the mean of KL(p || q) over examples; p is of the network in float; lower is better
    points: float  # how many points fewer of the examples are right; lower is better
    standard_error: float  # of these points, of paired differences


def kinds_of(model: nn.Module) -> dict[str, list[Part]]:
    """The weights of `model` by kind, in the order of `KINDS`, each tensor once, under its first name.

    What a layer is is told by its type and by its name, as timm, torch and Hugging Face's transformers call it. The
    last linear layer that is in no attention and no MLP is the head. Biases are of no kind but those of
    normalisations, as they are few and are added in 32 bits.
    """
    names = {id(parameter): name for name, parameter in reversed([*model.named_parameters(remove_duplicate=False)])}
    found: dict[str, list[Part]] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        parent = model.get_submodule(name.rpartition(".")[0])
        for leaf, parameter in module.named_parameters(recurse=False):
            kinds = _kinds(name.rpartition(".")[2], module, parent, leaf)
            if kinds and id(parameter) not in seen:
                seen.add(id(parameter))
                for index, kind in enumerate(kinds):
                    found.setdefault(kind, []).append(Part(names[id(parameter)], index, len(kinds)))
    if "other" in found:
        *others, head = found.pop("other")
        found |= {"other": others, "head": [head]} if others else {"head": [head]}
    return {kind: found[kind] for kind in KINDS if kind in found}


def _kinds(name: str, module: nn.Module, parent: nn.Module, leaf: str) -> Sequence[str]:
    """Those of the equal blocks of rows of the parameter `leaf` of `module`, whose own name is `name`."""
    if isinstance(module, _NORMS) or "norm" in type(module).__name__.lower():
        return ("norm",)
    if isinstance(module, nn.Embedding) or leaf in _TABLES:
        return ("embedding",)
    if leaf == "in_proj_weight":
        return ATTENTION
    if leaf != "weight":
        return ()
    if name in _NAMES:
        return _NAMES[name]
    if name in _OUTPUTS:
        return ("embedding",) if isinstance(module, _ConvNd) else ("output",)  # of a patch's pixels
    if isinstance(module, _ConvNd):
        return ("convolution",)
    return ("MLP",) if isinstance(parent, _MLPS) else ("other",)


def kind_sensitivities(
    model: nn.Module, batches: Sequence[Batch], task: Classification, bits: Sequence[int] = (8, 4, 3, 2)
) -> Iterator[KindSensitivity]:
    """The sensitivity of each kind of weights of `model`, in each of `bits`, on `batches` of examples and labels.

    Weights are rounded as `Bits` does it: with a step for each output channel of a matrix or kernel, or row of a table,
    and one for each vector. Activations and all other weights stay in float. A pass over the examples for each.
    """
    expected = _logits(model.eval(), batches, task)
    for kind, parts in kinds_of(model).items():
        for count in bits:
            found = _logits(rounded(model, parts, count), batches, task)
            lost = drop(expected, found, batches)
            weights = sum(model.get_parameter(part.tensor).numel() // part.count for part in parts)
            yield KindSensitivity(kind, count, weights, divergence(expected, found), lost.points, lost.standard_error)


@torch.no_grad()
def rounded(model: nn.Module, parts: Sequence[Part], bits: int) -> nn.Module:
    """A copy of `model`, in eval mode, with `parts` of its weights rounded to `bits` bits, under every name they
    have."""
    copy = copy_to(model, next(model.parameters()).device).eval()
    for part in parts:
        rows = copy.get_parameter(part.tensor).chunk(part.count)[part.index]
        rows.copy_(Bits(bits)(rows))
    return copy


def _logits(model: nn.Module, batches: Sequence[Batch], task: Classification) -> Tensor:
    with torch.inference_mode():
        return torch.cat([model(*task.inputs(batch, None)) for batch in batches])
