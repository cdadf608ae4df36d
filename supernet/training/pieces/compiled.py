"""Pieces of subnets, compiled: fewer kernels, each of which does more."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from supernet.subnets import Arrived, LentSubnet
from supernet.training.pieces.standing import Standing

# Sizes of weights and settings of modules are no constants of the compiled code, so that its variants saturate at some
# dozens, where each piece would otherwise be compiled by itself.
_SETTINGS = {
    "force_parameter_static_shapes": False,
    "force_nn_module_property_static_shapes": False,
    "allow_unspec_int_on_nn_module": True,
    "recompile_limit": 1024,
    "accumulated_recompile_limit": 8192,
}


class CompiledPieces:
    """Stands compiled code in for the pieces of subnets, by `torch.compile` with `options`."""

    def __init__(self, **options: Any) -> None:
        self._call = torch.compile(_call, **options)

    def __call__(self, name: str, lent: LentSubnet, arrived: Arrived | None = None) -> nn.Module:
        """What stands in for the piece `name` of subnets, the module of `lent`."""
        return _Compiled(self._call, lent, arrived)


class _Compiled(Standing):
    def __init__(self, call: Any, lent: LentSubnet, arrived: Arrived | None) -> None:
        super().__init__(lent, arrived)
        self._call = call

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        with self.lending() as module, torch._dynamo.config.patch(_SETTINGS):
            return self._call(module, inputs, keywords)


def _call(module: nn.Module, inputs: tuple, keywords: dict[str, Any]) -> Any:
    return module(*inputs, **keywords)
