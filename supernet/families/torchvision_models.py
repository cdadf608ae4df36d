"""torchvision's models for images, made and configured as timm makes and configures its own: `torchvision/NAME`.

timm lacks some of them, such as SqueezeNet, ShuffleNetV2 and GoogLeNet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
import torchvision
from timm.models import build_model_with_cfg
from torch import Tensor, nn

PREFIX = "torchvision/"
FIXED_SIZE = ("vit_", "maxvit_")  # beginnings of names of models that are made for one size of images
NORMALISING = ("googlenet", "inception_v3")
"""Names of models whose weights are for images of another normalisation, which the models then see to; they have
auxiliary classifiers, which only help in training."""
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")


def torchvision_names() -> list[str]:
    """Without the prefix."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [name for name in names if not name.startswith(FIXED_SIZE)]


def create_torchvision(
    name: str,
    pretrained: bool = False,
    pretrained_cfg: Mapping[str, Any] | None = None,
    pretrained_cfg_overlay: Mapping[str, Any] | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
) -> nn.Module:
    """The model `name`, a name without the prefix, as `timm.create_model` gives its own: with `pretrained_cfg`,
    `num_classes` and `in_chans`, and with torchvision's weights if it is to be `pretrained`.

    `drop_rate` is that of its dropout, wherever it has one, which is none unless it is said.
    TypeError for a `drop_rate` of a model without dropout.
    """
    return build_model_with_cfg(
        _model,
        name,
        pretrained,
        dict(pretrained_cfg or _config(name)),
        dict(pretrained_cfg_overlay or {}),
        pretrained_filter_fn=todays_names,
        name=name,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_rate=drop_rate,
    )


def _model(name: str, num_classes: int, in_chans: int, drop_rate: float) -> nn.Module:
    options: dict[str, Any] = {}
    if name in NORMALISING:
        options = {"aux_logits": False, "init_weights": False, "transform_input": in_chans == 3}
    model = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    if drop_rate and not dropouts:
        raise TypeError(f"{PREFIX}{name} has no dropout")
    for dropout in dropouts:
        dropout.p = drop_rate
    if in_chans != 3:
        first = _first_conv(model)
        model.set_submodule(first, _with_inputs(model.get_submodule(first), in_chans))
    model.num_classes, model.in_chans = num_classes, in_chans
    return model


@lru_cache
def _config(name: str) -> Mapping[str, Any]:
    """What timm knows of its own models: where the weights are, and how images are prepared for them."""
    weights = torchvision.models.get_model_weights(name).DEFAULT
    images = weights.transforms()
    classes = len(weights.meta["categories"])
    with torch.device("meta"):
        model = _model(name, classes, 3, 0.0)
    outputs = {layer: getattr(m, "out_features", getattr(m, "out_channels", 0)) for layer, m in model.named_modules()}
    (crop,) = images.crop_size
    return {
        "url": weights.url,
        "num_classes": classes,
        "input_size": (3, crop, crop),
        "crop_pct": crop / images.resize_size[0],
        "interpolation": images.interpolation.value,
        "mean": tuple(images.mean),
        "std": tuple(images.std),
        "first_conv": _first_conv(model),
        "classifier": [layer for layer, width in outputs.items() if width == classes][-1],
    }


def _first_conv(model: nn.Module) -> str:
    return next(layer for layer, module in model.named_modules() if isinstance(module, nn.Conv2d))


def _with_inputs(conv: nn.Conv2d, in_chans: int) -> nn.Conv2d:
    """A new convolution like `conv`, of images with so many channels."""
    return nn.Conv2d(
        in_chans,
        conv.out_channels,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )


def todays_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Weights as torchvision published them, without auxiliary classifiers and by the names that layers have now."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(("aux1.", "aux2.", "AuxLogits."))}
    return {_OLD_DENSENET.sub(r"\1\2.", name): tensor for name, tensor in kept.items()}
