"""Which linear piece of each activation every image falls on: the pattern that tells linear regions apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import Tensor, nn

from distill.temporary import hooks

# B batch, N units

# where the slope of each piecewise linear activation changes
_KINKS: dict[type[nn.Module], Callable[[nn.Module], tuple[float, ...]]] = {
    nn.ReLU: lambda module: (0.0,),
    nn.LeakyReLU: lambda module: (0.0,),
    nn.PReLU: lambda module: (0.0,),
    nn.RReLU: lambda module: (0.0,),
    nn.Threshold: lambda module: (module.threshold,),
    nn.Hardtanh: lambda module: (module.min_val, module.max_val),  # ReLU6 is one
    nn.Hardsigmoid: lambda module: (-3.0, 3.0),
    nn.Hardshrink: lambda module: (-module.lambd, module.lambd),
    nn.Softshrink: lambda module: (-module.lambd, module.lambd),
}


@contextlib.contextmanager
def watch_patterns(model: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """While the context lasts, `see` gets a boolean [B, N] whenever `model` applies a piecewise linear activation.

    An entry says whether a unit's input lies above a kink of its activation: 0 for ReLU, 0 and 6 for ReLU6. Inputs
    without spatial dimensions, as in squeeze-and-excitation, count like all others. ValueError if the model has no
    piecewise linear activation among its modules.
    """
    kinks = {module: _kinks(module) for module in model.modules()}
    if not any(kinks.values()):
        known = ", ".join(sorted(kind.__name__ for kind in _KINKS))
        raise ValueError(
            f"a {type(model).__name__} has no piecewise linear activation whose patterns could be told apart; "
            f"it needs one of {known}"
        )

    def before(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        for kink in kinks[module]:
            see((args[0].detach() > kink).flatten(1))

    with hooks(module.register_forward_pre_hook(before) for module in kinks if kinks[module]):
        yield


def _kinks(module: nn.Module) -> tuple[float, ...]:
    return next((kinks(module) for kind, kinks in _KINKS.items() if isinstance(module, kind)), ())
