"""What makes a family of plain modules a supernet: every subnet's tensors nest in the shared ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.overrides import TorchFunctionMode

from supernet.channels.divisions import DimUse, Division, Divisions, check_divisions
from supernet.plain import inputs_like
from supernet.skeleton import without_data
from supernet.slicing import Unit, layer_of
from supernet.space import Arch, SearchSpace, Value

Example = Tensor | tuple | Callable[[Arch], Tensor | tuple]  # of the input, for all architectures or by architecture

MODULES_RUN = 600  # of all random architectures together, in `check_structure`


def covering_archs(space: SearchSpace) -> list[Arch]:
    """Architectures whose tensors, together, include every tensor of the space at its largest shape.

    Ordered choices make tensors larger, so each occurs at its last value; unordered ones exchange parts of the network,
    so each of their values occurs. The first architecture is `space.largest`.
    """
    unordered = [choice for choice in space.choices.values() if not choice.ordered]
    count = max((len(choice.values) for choice in unordered), default=1)
    archs = [
        space.validate(
            {n: c.values[-1 if c.ordered else max(len(c.values) - 1 - i, 0)] for n, c in space.choices.items()}
        )
        for i in range(count)
    ]
    occurring = {item for arch in archs for item in arch.items()}
    for name, choice in space.choices.items():  # what none of these has, because another choice rules it out
        for value in choice.values[-1:] if choice.ordered else choice.values:
            if (name, value) not in occurring:
                archs.append(_arch_with(space, name, value))
                occurring.update(archs[-1].items())
    return list(dict.fromkeys(archs))


def _arch_with(space: SearchSpace, name: str, value: Value) -> Arch:
    """The architecture of the last values, changed where the choice `name` needs it to be active with `value`."""
    values = {n: c.values[-1] for n, c in space.choices.items()}

    def require(name: str, value: Value) -> None:
        values[name] = value
        for parent, allowed in space.choices[name].when.items():
            if allowed:
                require(parent, values[parent] if values[parent] in allowed else allowed[-1])

    require(name, value)
    return space.validate(values)


def probing_archs(space: SearchSpace, count: int = 8) -> list[Arch]:
    """The smallest architecture and `count` random ones, always the same, to check a builder on.

    The random ones are a Latin hypercube sample: each value of a choice with up to `count` values occurs.
    """
    generator = np.random.default_rng(0)
    levels = np.arange(count) + 0.5
    columns = [generator.permutation(levels * len(choice.values) // count) for choice in space.choices.values()]
    return list(dict.fromkeys([space.smallest, *space.decode(np.stack(columns, axis=1).astype(int))]))


def check_shape(
    name: str,
    shared: torch.Size,
    shape: torch.Size,
    is_kernel: bool,
    shared_arch: Arch,
    arch: Arch,
    resized: Collection[int] = (),
) -> None:
    """ValueError unless a tensor of `shape`, in the subnet `arch`, is a part of a shared tensor of size `shared`, the
    size that it has in `shared_arch`. Along the dimensions `resized` it may have any size."""
    if len(shape) != len(shared):
        remedy = ": the number of dimensions must not depend on the architecture"
    elif any(part > whole for dim, (part, whole) in enumerate(zip(shape, shared)) if dim not in resized):
        remedy = ", so it is no part of it: no ordered choice may make a tensor larger than its last value does"
    elif is_kernel and not resized and any((part - whole) % 2 for part, whole in zip(shape[2:], shared[2:])):
        remedy = ": a kernel is the centre of a larger one, so their sizes are all odd or all even"
    else:
        return
    raise ValueError(f"tensor {name!r} is {list(shape)} in {arch!r} but {list(shared)} in {shared_arch!r}{remedy}")


def check_unit(name: str, shared: Unit | None, unit: Unit | None, shared_arch: Arch, arch: Arch) -> None:
    """ValueError unless the heads or groups of the layer that has the tensor `name` in `arch` are as large as those in
    `shared_arch`, where that tensor is larger; a single head or group may be smaller."""
    if shared is None or unit is None or shared.size == unit.size or shared.count == unit.count == 1:
        return
    sizes, shared_sizes = (" x ".join(map(str, u.size)) for u in (unit, shared))
    raise ValueError(
        f"the layer of tensor {name!r} has {unit.kind}s of {sizes} channels in {arch!r} but of {shared_sizes} in "
        f"{shared_arch!r}, of which they are no part: vary the number of {unit.kind}s alone, or give slicing rules by "
        "name"
    )


def check_structure(
    space: SearchSpace,
    module_of: Callable[[Arch], nn.Module],
    example: Example | None = None,
    leads: Callable[[Arch, str], bool] = lambda arch, name: False,
) -> None:
    """ValueError if modules of the same name are of two types, or if what a module does follows the sizes. A type that
    is made of the other may come with other values of unordered choices, as a block that does a further thing.

    Between architectures that differ in ordered choices alone, a module's switches must stay as they are: attributes
    that are true or false, and children or tensors that are there or None, such as a residual connection or a bias.
    With an `example` of the input, the smallest module and two to eight random ones (the more, the smaller they are)
    are run without data too, a fraction of a second each, and those with the same children must also call the same
    functions, which finds `if x.shape == y.shape: y = y + x`. And a tensor of which a smaller module keeps the leading
    entries, as `leads` tells, is not of a layer whose outputs the forward pass divides into blocks that begin elsewhere
    in the smaller module, nor of a layer whose inputs the forward pass puts together of such blocks (see `divisions`).

    Where two architectures differ, the smaller one has to agree with an architecture that is larger in its sizes alone:
    of the same depth and with the same exits, so that a `forward` may repeat a module, or leave early. Sizes are the
    choices that change the shape of a tensor.
    """
    probing = probing_archs(space)
    modules = sum(1 for _ in module_of(space.largest).modules())
    runs = set(probing[: 1 + max(2, min(len(probing), MODULES_RUN // modules))]) if example is not None else set()
    types: dict[str, tuple[type, Arch]] = {}  # without what parametrisations add
    seen: dict[Arch, _Run] = {}

    def look(arch: Arch) -> _Run:
        if arch not in seen:
            seen[arch] = _look(module_of(arch), example(arch) if callable(example) else example)
        return seen[arch]

    def check(arch: Arch, larger_arch: Arch) -> None:
        module, larger = module_of(arch), module_of(larger_arch)
        larger_modules = dict(larger.named_modules())
        for name, child in module.named_modules():
            if name in larger_modules:
                _check_switches(name, child, larger_modules[name], arch, larger_arch)
        if arch in runs:
            run, larger_run = look(arch), look(larger_arch)
            _check_calls(module, larger, run.calls, larger_run.calls, arch, larger_arch)
            check_divisions(module, run.divisions, larger, larger_run.divisions, partial(leads, arch))

    for arch in [*covering_archs(space), *probing]:
        for name, child in module_of(arch).named_modules():
            kind = type_before_parametrizations(child)
            other, other_arch = types.setdefault(name, (kind, arch))
            if not (issubclass(kind, other) or issubclass(other, kind)):
                raise ValueError(
                    f"module {name!r} is a {kind.__name__} in {arch!r} but a {other.__name__} in "
                    f"{other_arch!r}: give operations of different types different names"
                )
        larger_arch = _changed(space, arch, {n: c.values[-1] for n, c in space.choices.items() if c.ordered})
        if larger_arch == arch:
            continue
        try:
            check(arch, larger_arch)
        except ValueError:
            sizes = {n: larger_arch[n] for n in arch if _is_size(space, n, arch, larger_arch, module_of)}
            alike = _changed(space, arch, sizes)
            if alike == larger_arch:
                raise
            check(arch, alike)


def _changed(space: SearchSpace, arch: Arch, values: Mapping[str, Value]) -> Arch:
    """`arch` with other `values`; choices that become active have their last one."""
    return space.validate({n: c.values[-1] for n, c in space.choices.items()} | dict(arch) | dict(values))


def _is_size(
    space: SearchSpace, name: str, arch: Arch, larger_arch: Arch, module_of: Callable[[Arch], nn.Module]
) -> bool:
    """Whether the choice `name`, with the value it has in `arch`, makes a tensor of `larger_arch` smaller."""
    if larger_arch.get(name, arch[name]) == arch[name]:
        return False
    shapes = {n: t.shape for n, t in module_of(larger_arch).state_dict().items()}
    changed = module_of(_changed(space, larger_arch, {name: arch[name]})).state_dict()
    return any(shapes.get(n, t.shape) != t.shape for n, t in changed.items())


def _check_switches(name: str, module: nn.Module, larger: nn.Module, arch: Arch, larger_arch: Arch) -> None:
    kinds = type_before_parametrizations(module), type_before_parametrizations(larger)
    if kinds[0] is not kinds[1]:
        raise ValueError(
            f"module {name!r} is a {kinds[0].__name__} in {arch!r} but a {kinds[1].__name__} in {larger_arch!r}: what "
            "a module does must not follow the sizes; let the builder pin it"
        )
    switches, larger_switches = _switches(module), _switches(larger)
    for switch in switches.keys() & larger_switches.keys():
        if switches[switch] != larger_switches[switch]:
            raise ValueError(
                f"module {name!r} has {switch}={switches[switch]} in {arch!r} but {larger_switches[switch]} in "
                f"{larger_arch!r}: a connection must not come and go with the sizes; let the builder pin it"
            )


def _switches(module: nn.Module) -> Mapping[str, bool]:
    """Boolean attributes, and for every optional child or tensor whether it is there."""
    attributes = {name: value for name, value in vars(module).items() if isinstance(value, bool) and name != "training"}
    optional = {name: False for name, value in vars(module).items() if value is None}
    for members in (module._modules, module._parameters, module._buffers):
        optional.update({name: member is not None for name, member in members.items() if not name.isdigit()})
    return attributes | optional


def _check_calls(
    module: nn.Module,
    larger: nn.Module,
    calls: Mapping[str, list[str]],
    larger_calls: Mapping[str, list[str]],
    arch: Arch,
    larger_arch: Arch,
) -> None:
    for name, own in calls.items():
        if name not in larger_calls or own == larger_calls[name]:
            continue
        if module.get_submodule(name)._modules.keys() == larger.get_submodule(name)._modules.keys():
            fewer, more = Counter(own), Counter(larger_calls[name])
            odd = ", ".join((fewer - more) + (more - fewer)) or "functions in another order"
            raise ValueError(
                f"module {name!r} calls {odd} in one of {arch!r} and {larger_arch!r} alone: "
                "what a module does must not follow the sizes; let the builder pin it"
            )


class _Run(NamedTuple):
    """What was seen in a forward pass."""

    calls: Mapping[str, list[str]]  # the torch functions that every submodule calls itself, in order
    divisions: Mapping[DimUse, list[Division]]


def _look(module: nn.Module, example: Tensor | tuple) -> _Run:
    """A forward pass in eval mode on an input like `example`; see `skeleton.without_data` for how."""
    return without_data(module, partial(_run, example))


def _run(example: Tensor | tuple, module: nn.Module, device: torch.device) -> _Run:
    calls: dict[str, list[str]] = {}
    running: list[str] = []
    divisions = Divisions(module)

    def enter(name: str) -> None:
        running.append(name)
        calls.setdefault(name, [])

    for name, child in module.named_modules():
        child.register_forward_pre_hook(lambda *_, name=name: enter(name))
        child.register_forward_hook(lambda *_: running.pop() and None)

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            calls[running[-1]].append(func.__name__)
            result = func(*args, **(kwargs or {}))
            divisions.follow(running[-1], func.__name__.strip("_"), args, kwargs or {}, result)
            return result

    inputs = inputs_like(example, module, device)
    with Recorder():
        module(*inputs)
    return _Run(calls, divisions.found)


def is_kernel(module: nn.Module, name: str) -> bool:
    """Whether the tensor `name` of `module` is, or is made into, the weight of a convolution."""
    layer, tensor_name = layer_of(module, name)
    return isinstance(layer, _ConvNd) and tensor_name == "weight"
