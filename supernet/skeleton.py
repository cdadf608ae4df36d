"""Building and running a subnet without paying for its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from supernet.errors import first_line
from supernet.plain import plain
from supernet.space import Arch
from supernet.views import Views, no_views, tied_names

T = TypeVar("T")


class _WithoutInitialisation(TorchFunctionMode):
    """While active, in-place functions leave parameters as they are: their values are about to be replaced."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        target = args[0] if args else kwargs.get("tensor")
        in_place = func.__name__.endswith("_") and not func.__name__.startswith("__")
        if in_place and isinstance(target, nn.Parameter) and func is not torch.Tensor.requires_grad_:
            return target
        return func(*args, **kwargs)


class _CopyTo(TorchFunctionMode):
    """While active, `copy.deepcopy` of a tensor, wherever it hides in a module, lands on a device, without gradient
    history; values that a tensor on the meta device lacks are zeros."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.__deepcopy__:
            tensor, memo = args
            if id(tensor) not in memo:
                memo[id(tensor)] = self._copy(tensor)
            return memo[id(tensor)]
        if func is torch.Tensor.clone:  # by which parameters are copied
            return self._copy(args[0])
        return func(*args, **(kwargs or {}))

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "meta" or tensor.is_meta:
            return torch.zeros_like(tensor, device=self._device, requires_grad=False)
        return tensor.detach().to(self._device, copy=True)


def copy_to(module: nn.Module, device: torch.device) -> nn.Module:
    """A copy of `module` with all its tensors on `device`: parameters, buffers, and tensors that are mere attributes.

    On the meta device it takes no memory. Unlike `copy.deepcopy(module).to(device)` it does not copy weights to drop
    them, moves plain attributes too, and takes what is computed from parameters (by torch.nn.utils.weight_norm).
    """
    with _CopyTo(device):
        return copy.deepcopy(module)


def without_data(module: nn.Module, use: Callable[[nn.Module, torch.device], T]) -> T:
    """`use(copy, device)`, which runs a copy of `module`, in eval mode and without gradients, on inputs that it makes.

    On the meta device, which takes neither memory nor time; on the CPU if the meta device fails, since code may ask for
    values. ValueError, in one line, if the CPU fails, too.
    """

    def used(device: torch.device) -> T:
        with torch.random.fork_rng(()), torch.no_grad(), device:  # what a forward pass makes lands there as well
            return use(copy_to(module, device).requires_grad_(False).eval(), device)

    try:
        return used(torch.device("meta"))
    except Exception as unfollowed:  # the code is not ours
        try:
            return used(torch.device("cpu"))
        except Exception as error:
            raise ValueError(f"{type(module).__name__} does not run: {first_line(error)}") from unfollowed


def build_uninitialised(build, arch) -> nn.Module:
    """The plain module of `build(arch)`, in whose tensors, where `build` would initialise them in place, there is
    whatever was in memory."""
    with _WithoutInitialisation():
        return plain(build(arch))


def build_skeleton(build, arch) -> nn.Module:
    """The plain module of `build(arch)`, with its parameters and persistent buffers on the meta device, uninitialised.

    Buffers outside the state dict (masks, index tables) are real: they are constants of the architecture.
    """
    module = build_uninitialised(build, arch)
    persistent = module.state_dict(keep_vars=True)
    on_meta = {id(t): nn.Parameter(t.to("meta"), t.requires_grad) for t in module.parameters()}
    for child_name, child in module.named_modules():
        prefix = f"{child_name}." if child_name else ""
        for name, tensor in child._parameters.items():
            if tensor is not None:
                child._parameters[name] = on_meta[id(tensor)]
        for name, tensor in child._buffers.items():
            if prefix + name in persistent:
                if id(tensor) not in on_meta:
                    on_meta[id(tensor)] = tensor.to("meta")
                child._buffers[name] = on_meta[id(tensor)]
    return module


class Assembler:
    """Skeletons put together from pieces of earlier ones, in a tenth of the time that building takes.

    `pieces(arch)` names submodules, and for each of them what it is determined by: modules of one name and one key are
    interchangeable. What `pieces` does not name is the same in every architecture. Skeletons may have pieces in common;
    an assembled one runs like one that was built, but attributes of the modules around the pieces, such as timm's
    `num_features`, are those of the first skeleton. Modules in which `views` gives tensors another source, or in which
    pieces have a tensor in common with others, are built whole.
    """

    def __init__(
        self,
        build: Callable[[Arch], nn.Module],
        pieces: Callable[[Arch], Mapping[str, Hashable]],
        first: Arch,
        views: Views = no_views,
    ):
        self._build, self._pieces_of, self._first, self._views = build, pieces, first, views
        self._frame: nn.Module | None = None
        self._frame_names: set[str] = set()
        self._pieces: dict[tuple[str, Hashable], nn.Module] = {}
        self(first)

    def __reduce__(self):
        return Assembler, (self._build, self._pieces_of, self._first, self._views)

    def __call__(self, arch: Arch) -> nn.Module:
        if any(view.source for view in self._views(arch).values()):
            return build_skeleton(self._build, arch)
        wanted = self._pieces_of(arch)
        if not self._knows(wanted):
            module = build_skeleton(self._build, arch)
            ties = tied_names(module.state_dict(keep_vars=True))
            if any(_piece(wanted, alias) != _piece(wanted, name) for alias, name in ties.items()):
                return module
            if self._frame is None:
                self._frame, self._frame_names = module, set(wanted)
            for name, key in wanted.items():
                self._pieces.setdefault((name, key), module.get_submodule(name))
            if not self._knows(wanted):
                return module
        return self._put_together(self._frame, "", {name: self._pieces[name, key] for name, key in wanted.items()})

    def with_stand_ins(self, arch: Arch, stand_in: Callable[[str, nn.Module], nn.Module]) -> nn.Module | None:
        """A skeleton of `arch` with `stand_in(name, piece)` for each of its pieces; None where it is built whole."""
        wanted = self._pieces_of(arch)
        if not self._knows(wanted):
            return None
        pieces = {name: stand_in(name, self._pieces[name, key]) for name, key in wanted.items()}
        return self._put_together(self._frame, "", pieces)

    def _knows(self, wanted: Mapping[str, Hashable]) -> bool:
        known = self._pieces.keys() >= wanted.items() and self._frame_names >= wanted.keys()
        return self._frame is not None and known

    def _put_together(self, frame: nn.Module, prefix: str, pieces: Mapping[str, nn.Module]) -> nn.Module:
        module = copy.copy(frame)
        module._modules = {}
        for child_name, child in frame._modules.items():
            name = f"{prefix}{child_name}"
            if name in pieces:
                module._modules[child_name] = pieces[name]
            elif name in self._frame_names:
                continue  # a block that this architecture does not have
            elif any(piece.startswith(f"{name}.") for piece in self._frame_names):
                module._modules[child_name] = self._put_together(child, f"{name}.", pieces)
            else:
                module._modules[child_name] = child
        return module


def _piece(pieces: Iterable[str], tensor: str) -> str | None:
    """The piece that the tensor belongs to, if any."""
    return next((name for name in pieces if tensor.startswith(f"{name}.")), None)
