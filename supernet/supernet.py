"""`Supernet`: one set of tensors, and every architecture's plain module running on views of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distill.untouched import untouched
from supernet.nesting import check_shape, check_structure, check_unit, covering_archs, is_kernel
from supernet.plain import floating_dtype, plain
from supernet.skeleton import Assembler, build_skeleton, build_uninitialised
from supernet.slicing import Rule, Unit, centred, leading, rule_for, take, unit
from supernet.space import Arch, SearchSpace, Value

# B batch, C channels, H height, W width, K classes

Builder = Callable[[Arch], nn.Module]

_cached = functools.lru_cache(maxsize=64)  # subnets without weights, some 2 MB each


class _Part(NamedTuple):
    """One tensor of a subnet, and where it lies in the shared tensor of that name."""

    name: str
    shape: torch.Size
    rule: Rule


class _Subnet(NamedTuple):
    """A plain module without weights, and the parts of the shared tensors that it runs on."""

    module: nn.Module
    parts: list[_Part]


class Supernet(nn.Module):
    """A weight-sharing network that holds every architecture of a search space.

    `build` makes the plain module of an architecture. The supernet stores, under each tensor's own name, one tensor of
    its largest shape; a subnet runs on views of these, so that its gradients land in them. State-dict keys, parameter
    names and weights are therefore those of the plain modules: `net.load_state_dict` takes the weights of the largest.

    `rules` maps patterns of tensor names (as in `fnmatch`; the first match counts) to slicing rules other than those of
    `slicing.rule_for`. A rule that is a module has weights of its own: every tensor it matches gets a copy, under
    `slicing_rules`.

    Around the plain modules may be DataParallel, DistributedDataParallel or torch.compile, which are taken off.

    The weights start as `build` initialises them, drawn from `seed`. ValueError, naming the tensor, the architectures
    and both shapes, if the modules of the space do not nest (see `nesting`). With an `example` of the images, of which
    the shape alone matters, a few subnets are also run on the meta device, to find connections that come and go with
    the sizes inside a `forward`.

    BatchNorm's running statistics are shared like all tensors. Once subnets have been trained, they are a mixture that
    means nothing for any of them: extract one and give it its own with `supernet.evaluation.calibrated_subnet`. Until
    then they may be right for one architecture, `statistics_of`: the largest of a family's pretrained supernet. It is
    None where they are right for none, and becomes None when weights are loaded and when a subnet runs in train mode.
    """

    statistics_of: Arch | None = None

    def __init__(
        self,
        space: SearchSpace,
        build: Builder,
        rules: Mapping[str, Rule] | None = None,
        *,
        seed: int = 0,
        example: Tensor | None = None,
        pieces: Callable[[Arch], Mapping[str, Hashable]] | None = None,
    ) -> None:
        super().__init__()
        self.space = space
        self.build = build
        self._rules = dict(rules or {})
        self._subnet = _cached(self._make_subnet)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            covering = {arch: plain(build(arch)) for arch in covering_archs(space)}
        _check_new(covering[space.largest], build_uninitialised(build, space.largest))
        self._share(covering)
        self._no_weight_decay = {name for module in covering.values() for name in _no_weight_decay(module)}
        self._parts: dict[tuple[str, torch.Size], _Part] = {}
        self._assemble = Assembler(build, pieces, space.largest) if pieces else None
        check_structure(space, lambda arch: self._subnet(arch, build).module, example, self._leads)

    def forward(
        self,
        x: Tensor,
        arch: Mapping[str, Value],
        build: Builder | None = None,
        *,
        accumulate: bool = False,
        call: Callable[[nn.Module, Mapping[str, Tensor], tuple[Tensor]], Tensor] = functional_call,
    ) -> Tensor:
        """The output of the subnet `arch` on images `x` [B, C, H, W], which are used as they are, not resized, and stay
        as they are, even if the plain module works on its input in place.

        `build` may name another builder of modules with the same tensors, such as one with dropout. `accumulate` is
        for training with `backward()`: gradients are added to the shared tensors' `.grad` by the way, which takes less
        time, but `torch.autograd.grad` and hooks do not see them. `call` runs the plain module on its tensors, such as
        `torch.compile(functional_call)` for a subnet that recurs.
        ValueError if `arch` is not of this space, or if the images are of another type than the weights.
        """
        dtype = floating_dtype(self)
        if x.dtype != dtype and not (x.is_floating_point() and torch.is_autocast_enabled(x.device.type)):
            raise ValueError(f"the images are {x.dtype} and the weights {dtype}: convert (and normalise) them")
        module, parts = self._subnet(self.space.validate(arch), build or self.build)
        shared = self._tensors()
        if self.training:
            self.statistics_of = None
        module.train(self.training)
        tensors = {p.name: take(shared[p.name], p.shape, p.rule, accumulate) for p in parts}
        return untouched(lambda images: call(module, tensors, (images,)), x)

    def load_state_dict(self, *args, **kwargs):
        self.statistics_of = None
        return super().load_state_dict(*args, **kwargs)

    def extract(self, arch: Mapping[str, Value]) -> nn.Module:
        """The subnet as a plain module with its own copy of the weights, in this network's mode and on its device.

        Bit for bit, `net(x, arch)` equals `net.extract(arch)(x)` in eval mode.
        """
        arch = self.space.validate(arch)
        module, parts = self._subnet_of(build_skeleton(self.build, arch), arch)
        module.load_state_dict({part.name: self.tensor_of(part.name, part.shape) for part in parts}, assign=True)
        return module.train(self.training)

    def skeleton(self, arch: Mapping[str, Value]) -> nn.Module:
        """The subnet in eval mode with its parameters and persistent buffers on the meta device, without values.

        To be looked at, not to be changed: it has modules in common with other skeletons, and is returned again.
        `tensor_of` gives the values of its tensors.
        """
        return self._subnet(self.space.validate(arch), self.build).module.eval()

    def tensor_of(self, name: str, shape: torch.Size) -> Tensor:
        """A copy of the part of the tensor `name` that a subnet has whose tensor of that name is of this shape.

        The subnet was extracted or run before, or its skeleton asked for.
        """
        return self.part_of(attrgetter(name)(self), name, shape).detach().clone()

    def part_of(self, tensor: Tensor, name: str, shape: torch.Size) -> Tensor:
        """The same part of another `tensor` that is shaped like the shared one `name`."""
        return take(tensor, shape, self._parts[name, shape].rule)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to decay, positions and class tokens say, as timm's models tell theirs.

        timm's optimizers ask for them. (What they ask besides, `group_matcher` for a learning rate by layer, is not
        answered: layers are as the plain modules have them.)
        """
        return set(self._no_weight_decay)

    def _make_subnet(self, arch: Arch, build: Builder) -> _Subnet:
        assemble = self._assemble if build is self.build else None
        return self._subnet_of(assemble(arch) if assemble else build_skeleton(build, arch), arch)

    def _subnet_of(self, module: nn.Module, arch: Arch) -> _Subnet:
        converted = floating_dtype(self) != floating_dtype(module)  # by `double()`, say, as constants are then, too
        for child in module.modules():
            for name, buffer in child._buffers.items():
                if buffer is not None and not buffer.is_meta:
                    dtype = floating_dtype(self) if converted and buffer.is_floating_point() else buffer.dtype
                    child._buffers[name] = buffer.to(self._device(), dtype)
        parts = []
        for name, tensor in module.state_dict(keep_vars=True).items():
            part = self._parts.get((name, tensor.shape))
            if part is None:
                part = self._parts[name, tensor.shape] = self._make_part(name, tensor, module, arch)
            parts.append(part)
        return _Subnet(module, parts)

    def _make_part(self, name: str, tensor: Tensor, module: nn.Module, arch: Arch) -> _Part:
        if name not in self._sources:
            raise ValueError(
                f"{arch!r} has a tensor {name!r} that the supernet lacks: no architecture of "
                "supernet.nesting.covering_archs(space) has it; make the choice that brings it an unordered one"
            )
        kernel = is_kernel(module, name)
        source, shared_unit = self._sources[name]
        shape = attrgetter(name)(self).shape
        check_shape(name, shape, tensor.shape, kernel, source, arch)
        if tensor.shape != shape and self._matching(name) is None:
            check_unit(name, shared_unit, unit(module, name), source, arch)
        return _Part(name, tensor.shape, self._rule(name, module))

    def _rule(self, name: str, module: nn.Module) -> Rule:
        pattern = self._matching(name)
        if pattern is None:
            return rule_for(module, name)
        rule = self._rules[pattern]
        return self.get_submodule(rule_name(name)) if isinstance(rule, nn.Module) else rule

    def _leads(self, module: nn.Module, name: str) -> bool:
        """Whether the tensor `name` of the plain `module` is of the leading rows of the shared one."""
        return self._matching(name) is None and rule_for(module, name) in (leading, centred)

    def _matching(self, name: str) -> str | None:
        return next((pattern for pattern in self._rules if fnmatchcase(name, pattern)), None)

    def _share(self, modules: Mapping[Arch, nn.Module]) -> None:
        """Register the union of the modules' tensors, each at its largest shape, with the weights it has there."""
        largest: dict[str, Tensor] = {}
        self._sources: dict[str, tuple[Arch, Unit | None]] = {}  # of every tensor, to check the others against
        for arch, module in modules.items():
            if tied := _tied_name(module):
                raise ValueError(f"parameter {tied!r} is tied to another; a supernet stores every tensor by itself")
            for name, tensor in module.state_dict(keep_vars=True).items():
                if name not in largest or tensor.numel() > largest[name].numel():
                    largest[name] = tensor
                    self._sources[name] = arch, unit(module, name)
        for name, tensor in largest.items():
            self._register(name, tensor)
        for pattern in self._rules:
            matching = [name for name in largest if self._matching(name) == pattern]
            if not matching:
                raise ValueError(f"no tensor of the supernet is named like the slicing rule {pattern!r}")
            if isinstance(rule := self._rules[pattern], nn.Module):
                for name in matching:
                    self._register(rule_name(name), copy.deepcopy(rule))

    def _register(self, name: str, value: Tensor | nn.Module) -> None:
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for depth, part in enumerate([*path, leaf]):
            if owner is self and hasattr(self, part) and part not in self._modules:
                raise ValueError(
                    f"the plain module has a member {part!r}, a name that Supernet uses itself; wrap the module "
                    "in another, for example torch.nn.Sequential(OrderedDict(model=module))"
                )
            if depth < len(path):
                if part not in owner._modules:
                    owner.add_module(part, nn.Module())
                owner = owner._modules[part]
        if isinstance(value, nn.Module):
            owner.add_module(leaf, value)
        elif isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner.register_buffer(leaf, value)

    def _tensors(self) -> dict[str, Tensor]:
        return dict([*self.named_parameters(), *self.named_buffers()])

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _apply(self, fn, recurse: bool = True):
        self._subnet.cache_clear()  # their buffers are of the former type and on the former device
        self._assemble = copy.copy(self._assemble)  # from new pieces
        return super()._apply(fn, recurse)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name != "_subnet"}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._subnet = _cached(self._make_subnet)


def _check_new(module: nn.Module, again: nn.Module) -> None:
    if {*map(id, module.parameters())} & {*map(id, again.parameters())}:
        raise ValueError(
            f"`build` gives the same {type(module).__name__} twice: it has to make a new one every time, by "
            "copy.deepcopy for example"
        )


def _no_weight_decay(module: nn.Module) -> Iterable[str]:
    return module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()


def _tied_name(module: nn.Module) -> str | None:
    own = {name for name, _ in module.named_parameters()}
    return next((name for name, _ in module.named_parameters(remove_duplicate=False) if name not in own), None)


def rule_name(name: str) -> str:
    """The name, in a supernet, of the slicing rule with weights that belongs to the tensor `name`."""
    return f"slicing_rules.{name.replace('.', '/')}"  # a module's own name holds no dots
