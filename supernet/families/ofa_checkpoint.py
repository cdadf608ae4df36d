"""Once-for-All's released MobileNetV3 supernets (`ofa_mbv3_*`), read into ours."""

from __future__ import annotations

import logging
import os
import re

from torch import Tensor

from supernet.artifacts.weights import read_weights, without_prefix
from supernet.supernet import Supernet, rule_name

_log = logging.getLogger(__name__)

_DEPTH = 4  # blocks of a stage; the authors number blocks through all stages, after the first
_OUTSIDE = {
    "first_conv.conv": "conv_stem",
    "first_conv.bn": "bn1",
    "final_expand_layer.conv": "blocks.6.0.conv",
    "final_expand_layer.bn": "blocks.6.0.bn1",
    "feature_mix_layer.conv": "conv_head",
    "classifier.linear": "classifier",
}
_INSIDE = {
    "inverted_bottleneck.conv": "conv_pw",
    "inverted_bottleneck.bn": "bn1",
    "depth_conv.conv": "conv_dw",
    "depth_conv.bn": "bn2",
    "depth_conv.se.fc.reduce": "se.conv_reduce",
    "depth_conv.se.fc.expand": "se.conv_expand",
    "point_linear.conv": "conv_pwl",
    "point_linear.bn": "bn3",
}
_INSIDE_FIRST = {  # a depthwise-separable block
    "depth_conv.conv": "conv_dw",
    "depth_conv.bn": "bn1",
    "point_linear.conv": "conv_pw",
    "point_linear.bn": "bn2",
}


def load_ofa_checkpoint(net: Supernet, path: str | os.PathLike) -> None:
    """Load a checkpoint of the authors' `ofa_mbv3_*` into a supernet of `ofa_mobilenet_v3` of the same width.

    The learned kernel transforms are loaded where the supernet has them (`kernel_transform=True`), and otherwise left
    out, with a warning in the log: the smaller kernels are then not the ones that were trained.

    ValueError if the file is not such a checkpoint, or is one of another width or number of classes.
    """
    weights = read_weights(path)
    known = {end for name in weights for end in _ends(name) if _is_known(end)}
    weights = without_prefix(weights, known, f"{str(path)!r}")
    found = {timm_name(name): tensor for name, tensor in weights.items()}
    expected = net.state_dict()
    transforms = [name for name in found if name.startswith("slicing_rules.") and name not in expected]
    for name in transforms:
        del found[name]
    if transforms:
        _log.warning("%d kernel transforms left out; kernel_transform=True makes a supernet with them", len(transforms))
    for name, tensor in expected.items():
        _check(name, found.get(name), tensor, path)
    if unknown := found.keys() - expected.keys():
        raise ValueError(f"{str(path)!r} has a tensor {min(unknown)!r} that this supernet has no place for")
    net.load_state_dict(found)


def _check(name: str, found: Tensor | None, expected: Tensor, path: str | os.PathLike) -> None:
    if found is None:
        raise ValueError(f"{str(path)!r} is no checkpoint of ofa_mbv3: it has nothing for {name!r}")
    if found.shape != expected.shape:
        raise ValueError(
            f"{str(path)!r} has {list(found.shape)} for {name!r}, but this supernet {list(expected.shape)}: "
            "make it with the width multiplier and the number of classes of the checkpoint"
        )


def _ends(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _is_known(name: str) -> bool:
    try:
        timm_name(name)
    except ValueError:
        return False
    return True


def timm_name(name: str) -> str:
    """The name in our state dict of the tensor that the authors call `name`; ValueError if there is none."""
    # elastic layers hold the plain one, under the same name once more
    plain = re.sub(r"\.(conv|bn|linear)\.\1\.", r".\1.", name.replace(".mobile_inverted_conv.", ".conv.", 1))
    layer, _, tensor = plain.rpartition(".")
    if layer in _OUTSIDE:
        return f"{_OUTSIDE[layer]}.{tensor}"
    if match := re.fullmatch(r"blocks\.(\d+)\.conv\.(.+)", layer):
        index = int(match[1])
        block = f"blocks.{(index - 1) // _DEPTH + 1}.{(index - 1) % _DEPTH}" if index else "blocks.0.0"
        inside = (_INSIDE if index else _INSIDE_FIRST).get(match[2])
        if inside and tensor.endswith("_matrix"):
            return f"{rule_name(f'{block}.{inside}.weight')}.{tensor}"
        if inside:
            return f"{block}.{inside}.{tensor}"
    raise ValueError(f"{name!r} is no tensor of Once-for-All's MobileNetV3")
