"""Network slimming: a penalty by which training itself says which channels it can do without.

Liu et al., ICCV 2017, arXiv 1708.06519, equation 1: L + lambda * sum |gamma| over the scales of all BatchNorms.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def add_slimming(models: Iterable[nn.Module], weight: float) -> None:
    """Add the penalty's subgradient, weight * sign(gamma), to the gradients of the scales of BatchNorm in `models`.

    To be called once a step, on the gradients of the whole batch: in each of several backward passes, or processes, it
    would count as often as there are such. At 0 it is 0. Shifts have no penalty. A scale without a gradient is not in
    what was trained, and has none of this either.
    """
    if not weight:
        return
    with torch.no_grad():
        for module in (module for model in models for module in model.modules()):
            scale = module.weight if isinstance(module, _BatchNorm) else None
            if scale is not None and scale.grad is not None:
                scale.grad.add_(scale.sign(), alpha=weight)
