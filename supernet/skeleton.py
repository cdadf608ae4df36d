"""Building a subnet without paying for its weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _WithoutInitialisation(TorchFunctionMode):
    """While active, in-place functions leave parameters as they are: their values are about to be replaced."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        in_place = func.__name__.endswith("_") and not func.__name__.startswith("__")
        if in_place and isinstance(target, nn.Parameter) and func is not torch.Tensor.requires_grad_:
            return target
        return func(*args, **kwargs)


def build_skeleton(build, arch) -> nn.Module:
    """`build(arch)` with its parameters and persistent buffers on the meta device, uninitialised.

    Buffers outside the state dict (masks, index tables) are real: they are constants of the architecture.
    """
    with _WithoutInitialisation():
        module = build(arch)
    persistent = module.state_dict(keep_vars=True)
    on_meta = {id(t): nn.Parameter(t.to("meta"), t.requires_grad) for t in module.parameters()}
    for child_name, child in module.named_modules():
        prefix = f"{child_name}." if child_name else ""
        for name, tensor in child._parameters.items():
            if tensor is not None:
                child._parameters[name] = on_meta[id(tensor)]
        for name, tensor in child._buffers.items():
            if prefix + name in persistent:
                child._buffers[name] = tensor.to("meta")
    return module
