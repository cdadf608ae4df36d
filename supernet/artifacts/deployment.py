"""A network as it is deployed: what only training needs is merged into the layers."""

from __future__ import annotations

import torch
from timm.utils import reparameterize_model
from torch import nn
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from supernet.skeleton import copy_to


def deployed(model: nn.Module) -> nn.Module:
    """A copy of `model` in eval mode that computes the same, to rounding, with fewer layers.

    Branches that timm's models have for training alone (RepVGG, MobileOne, FastViT, ...) become single convolutions by
    their own `reparameterize`, and weights under a parametrisation (`torch.nn.utils.parametrizations`) the values that
    they have. In this form a network is measured and exported. `model` stays as it is, as do its weights on disk; its
    MACs and parameters are counted as it is built.
    """
    parameter = next(model.parameters(), torch.empty(0))
    merged = copy_to(model, parameter.device).eval()
    for module in list(merged.modules()):
        if is_parametrized(module):
            settle(module)
    return reparameterize_model(merged, inplace=True)


def settle(module: nn.Module) -> None:
    """Give `module` the weights that its parametrisations make, in their place.

    `torch.nn.utils.parametrize.remove_parametrizations` would take them from the module that this one was copied from,
    too, since the two have one class.
    """
    values = {name: getattr(module, name).detach() for name in module.parametrizations}
    kind = type_before_parametrizations(module)
    del module.parametrizations
    module.__class__ = kind
    for name, value in values.items():
        module.register_parameter(name, nn.Parameter(value, requires_grad=False))
