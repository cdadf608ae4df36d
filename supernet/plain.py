"""What counts as a plain module: one whose layers can be seen, and that gives logits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.eval_frame import OptimizedModule
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

# B batch, K classes


def plain(module: nn.Module) -> nn.Module:
    """`module` without what is wrapped around it whole: DataParallel, DistributedDataParallel, torch.compile.

    ValueError, naming the part, for TorchScript, whose layers cannot be seen, and for lazy modules that have not seen
    an image yet.
    """
    while isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel | OptimizedModule):
        module = module._orig_mod if isinstance(module, OptimizedModule) else module.module
    for name, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            raise ValueError(
                f"module {name!r} is TorchScript ({child.original_name}), whose layers cannot be changed: give the "
                "module that it was made of"
            )
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"{name!r} has no shape yet: run the lazy modules on an image, or say their sizes")
    return module


def floating_dtype(module: nn.Module) -> torch.dtype:
    """The type of the first floating-point parameter of `module`, which its images have to be of."""
    dtypes = (parameter.dtype for parameter in module.parameters())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.get_default_dtype())


def inputs_like(example: Any, module: nn.Module, device: torch.device, count: int | None = None) -> tuple:
    """What `module` may be called with: zeros in the shapes of `example`, a tensor or a tuple of inputs.

    Floating point inputs are of the type of the weights, others of the example's type. With a `count` the inputs are
    those of so many examples, along the first dimension.
    """
    own = floating_dtype(module)

    def like(tensor: Tensor) -> Tensor:
        shape = tensor.shape if count is None else (count, *tensor.shape[1:])
        return torch.zeros(shape, dtype=own if tensor.is_floating_point() else tensor.dtype, device=device)

    return tree_map_only(Tensor, like, example if isinstance(example, tuple) else (example,))


def count_classes(output: object) -> int:
    """K of a model's output [B, K]; ValueError, saying what came out, for an output of another form."""
    if isinstance(output, Tensor) and output.dim() == 2:
        return output.shape[1]
    raise ValueError(
        f"this model gives {describe(output)} instead of logits [B, K]: wrap it in a module that gives those"
        + (" (and make it without auxiliary heads)" if isinstance(output, tuple) else "")
    )


def describe(output: object) -> str:
    """What a model puts out, in a line."""
    if isinstance(output, Tensor):
        return f"a tensor {list(output.shape)}"
    if isinstance(output, Mapping):
        return (
            f"a {type(output).__name__} of {', '.join(f'{name!r}: {describe(part)}' for name, part in output.items())}"
        )
    if isinstance(output, list | tuple):
        return f"a {type(output).__name__} of {', '.join(map(describe, output))}"
    return f"a {type(output).__name__}"
