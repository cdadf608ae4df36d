"""`Supernet`: one set of tensors, and every architecture's plain module running on views of them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys
from torch.utils._pytree import tree_leaves, tree_map_only

from distill.untouched import untouched
from supernet.nesting import Example, check_shape, check_structure, check_unit, covering_archs, is_kernel
from supernet.plain import floating_dtype, plain
from supernet.skeleton import Assembler, build_skeleton, build_uninitialised
from supernet.slicing import Rule, Unit, centred, layer_rule, leading, resized_dims, take, unit
from supernet.space import Arch, SearchSpace, Value
from supernet.subnets import Alias, Arrived, LentSubnet, Part, Plan, Slot, Tensors
from supernet.views import PLAIN, View, Views, no_views, tie_names, tied_builder, tied_names

Builder = Callable[..., nn.Module]  # of an architecture, with the options of `DropRates`
# for a piece of a subnet, by its name: what runs in its place, and tells of shared tensors that have all their gradient
StandIn = Callable[[str, LentSubnet, Arrived | None], nn.Module]

_CACHES = ("_known_subnet", "_assemblers", "_plans", "_tree")  # what a copy of a supernet begins anew
_cached = functools.lru_cache(maxsize=64)  # subnets without weights, some 2 MB each


class DropRates(NamedTuple):
    """How much of what it computes a subnet drops in train mode, from 0 to below 1."""

    drop_rate: float = 0.0  # dropout before the classifier
    drop_path_rate: float = 0.0  # stochastic depth, of the last block

    @property
    def options(self) -> dict[str, float]:
        """Those of a builder, which are said where they are not 0."""
        return {name: rate for name, rate in self._asdict().items() if rate}


NO_DROP = DropRates()


class _Whole(NamedTuple):
    """Where a shared tensor is as large as it is stored, to check its parts against."""

    arch: Arch
    unit: Unit | None
    rule: Rule


class Supernet(nn.Module):
    """A weight-sharing network that holds every architecture of a search space.

    `build` makes the plain module of an architecture; with `DropRates`, as options, one that drops in train mode but
    has the same tensors, if it is asked for. The supernet stores, under each tensor's own name, one tensor of its
    largest shape; a subnet runs on views of these, so that its gradients land in them. State-dict keys, parameter names
    and weights are therefore those of the plain modules: `net.load_state_dict` takes the weights of the largest.

    `rules` maps patterns of tensor names (as in `fnmatch`; the first match counts) to slicing rules other than those of
    `slicing.layer_rule`. A rule that is a module has weights of its own: every tensor it matches gets a copy, under
    `slicing_rules`.

    `views(arch)` gives those of a subnet's tensors that are no mere slices of the shared ones of their names: layers
    with one source, and weights that are transformed after they are sliced (see `views`). Names for one and the same
    tensor of a plain module have one shared tensor as well, under the first of them. Extracted modules are tied again.

    Around the plain modules may be DataParallel, DistributedDataParallel or torch.compile, which are taken off.

    The weights start as `build` initialises them, drawn from `seed`. ValueError, naming the tensor, the architectures
    and both shapes, if the modules of the space do not nest (see `nesting`). With an `example` of the input, or a tuple
    of several, or a function from an architecture to these, of which shapes and types alone matter, a few subnets are
    also run on the meta device, to find connections that come and go with the sizes inside a `forward`.

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
        example: Example | None = None,
        pieces: Callable[[Arch], Mapping[str, Hashable]] | None = None,
        views: Views = no_views,
    ) -> None:
        super().__init__()
        self.space = space
        self.build = build = tied_builder(build, views)
        self.views = views
        self._rules = dict(rules or {})
        leaves = tree_leaves(example(space.largest) if callable(example) else example)
        self._example_dtypes = [t.dtype for t in leaves if isinstance(t, Tensor)] if example is not None else None
        self._begin_caches()
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            covering = {arch: plain(build(arch)) for arch in covering_archs(space)}
        _check_new(covering[space.largest], build_uninitialised(build, space.largest))
        self._share(covering)
        self._parts: dict[tuple[str, torch.Size, View | None], Part] = {}
        self.pieces_of = pieces
        check_structure(space, lambda arch: self._subnet(arch).module, example, self._leads)

    def forward(
        self,
        *inputs: Any,
        arch: Mapping[str, Value] | None = None,
        rates: DropRates = NO_DROP,
        accumulate: bool = False,
        arrived: Arrived | None = None,
        stand_in: StandIn | None = None,
        **keywords: Any,
    ) -> Any:
        """The output of the subnet `arch`, which may also be the last of the positional arguments: `net(images, arch)`,
        or `net(tokens, mask, arch=arch, causal=True)`.

        The plain module is called with `inputs` and `keywords`, trees of tensors and anything else, which are used as
        they are, not resized, and stay as they are, even if the module works on its input in place.

        `rates` are those of dropout and stochastic depth in train mode. `accumulate` is for training with `backward()`:
        gradients are added to the shared tensors' `.grad` by the way, which takes less time, but `torch.autograd.grad`
        and hooks do not see them; `arrived` is then called, in the backward pass, with shared tensors as soon as all of
        their gradient is there, as `LentSubnet.lent` says. `stand_in` gives what runs in the place of the pieces that
        subnets have in common, or of a whole subnet where they have none, adds to gradients as `accumulate` does and
        calls `arrived`; it is for train mode, and asked where no other gradients are wanted.
        ValueError if `arch` is not of this space, or if an input is of another floating point type than the weights,
        or of integers where the example was not.
        """
        if arch is None:
            *inputs, arch = inputs
        self._check_types((inputs, keywords))
        stands_in = self.training and (accumulate or not torch.is_grad_enabled())
        stand_in = stand_in if stands_in else None
        subnet = self._subnet(self.space.validate(arch), rates, stand_in, arrived if stand_in else None)
        if self.training:
            self.statistics_of = None
        subnet.set_mode(self.training)
        tensors = subnet.lent(accumulate, arrived)
        with subnet.holding(tensors) as module:
            output = untouched(lambda inputs, keywords: module(*inputs, **keywords), tuple(inputs), keywords)
        # what stands in may use its memory again for the next subnet
        return output if stand_in is None else tree_map_only(Tensor, Tensor.clone, output)

    def _check_types(self, inputs: tuple) -> None:
        dtype = floating_dtype(self)
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
        like_example = self._example_dtypes is not None and len(self._example_dtypes) == len(tensors)
        wanted = self._example_dtypes if like_example else [None] * len(tensors)
        for tensor, example_dtype in zip(tensors, wanted):
            if tensor.is_floating_point():
                fits = tensor.dtype == dtype or torch.is_autocast_enabled(tensor.device.type)
            else:
                fits = example_dtype is None or not example_dtype.is_floating_point
            if not fits:
                what = "images" if tensor.dim() == 4 else "inputs"
                raise ValueError(f"the {what} are {tensor.dtype} and the weights {dtype}: convert (and normalise) them")

    def load_state_dict(self, state_dict: Mapping[str, Tensor], *args, **kwargs) -> _IncompatibleKeys:
        """As `nn.Module` does, also from the weights of the largest plain module, with names that are not stored here.
        ValueError if such a tensor is no part of its source."""
        self.statistics_of = None
        return super().load_state_dict(self._stored(state_dict), *args, **kwargs)

    def extract(self, arch: Mapping[str, Value]) -> nn.Module:
        """The subnet as a plain module with its own copy of the weights, in this network's mode and on its device.

        Bit for bit, `net(*inputs, arch=arch)` equals `net.extract(arch)(*inputs)` in eval mode.
        """
        arch = self.space.validate(arch)
        subnet = self._subnet_of(build_skeleton(self.build, arch), arch)
        tensors = {name: self._copy(part) for name, part in subnet.parts.items()}
        tensors |= {alias: tensors[name] for alias, name in subnet.ties.items()}
        subnet.module.load_state_dict(tensors, assign=True)
        return tie_names(subnet.module, subnet.ties).train(self.training)

    def skeleton(self, arch: Mapping[str, Value], rates: DropRates = NO_DROP) -> nn.Module:
        """The subnet in eval mode with its parameters and persistent buffers on the meta device, without values.

        To be looked at, not to be changed: it has modules in common with other skeletons, and is returned again.
        `tensor_of` gives the values of its tensors. A forward pass with the same `rates` calls it, so that hooks on its
        modules, which are to be removed again, see what the subnet computes.
        """
        subnet = self._subnet(self.space.validate(arch), rates)
        subnet.set_mode(False)
        return subnet.module

    def tensor_of(self, name: str, shape: torch.Size, view: View | None = None) -> Tensor:
        """A copy of what a subnet has as the tensor `name`, if it is of this shape there and of that `view`, if any.

        The subnet was extracted or run before, or its skeleton asked for.
        """
        return self._copy(self._parts[name, shape, view])

    def part_of(self, tensor: Tensor, name: str, shape: torch.Size) -> Tensor:
        """The part of another `tensor`, shaped like the shared one `name`, that a subnet's tensor of `shape` is."""
        return take(tensor, shape, self._parts[name, shape, None].rule)

    def sources(self, arch: Mapping[str, Value]) -> dict[str, str]:
        """For every tensor of the subnet `arch`, the name of the shared tensor that it is of."""
        subnet = self._subnet(self.space.validate(arch))
        sources = {name: part.source for name, part in subnet.parts.items()}
        return sources | {alias: sources[name] for alias, name in subnet.ties.items()}

    def without(self, arch: Mapping[str, Value]) -> list[nn.Parameter]:
        """The shared parameters that the subnet `arch` has no part of."""
        sources = self._subnet(self.space.validate(arch)).sources
        return [p for name, p in self.named_parameters() if name in self._wholes and name not in sources]

    def late_parameters(self) -> list[nn.Parameter]:
        """Those whose gradients come at the end of a backward pass: slicing rules' own, and of the shared ones those
        that the largest or the smallest subnet has several parts of, or a part that is no mere slice."""
        subnets = [self._subnet(arch) for arch in (self.space.largest, self.space.smallest)]
        late = set().union(*(subnet.sources - subnet.early for subnet in subnets))
        return [p for name, p in self.named_parameters() if name in late or name not in self._wholes]

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not to decay, positions and class tokens say, as timm's models tell theirs.

        timm's optimizers ask for them. (What they ask besides, `group_matcher` for a learning rate by layer, is not
        answered: layers are as the plain modules have them.)
        """
        return set(self._no_weight_decay)

    def _copy(self, part: Part) -> Tensor:
        tensor = attrgetter(part.source)(self)
        return take(tensor, part.shape, part.rule, transform=part.transform).detach().clone()

    def _stored(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights` without those that the largest subnet has of shared tensors of other names."""
        largest = self._subnet(self.space.largest)
        parts = largest.parts | {alias: largest.parts[name] for alias, name in largest.ties.items()}
        stored = dict(weights)
        for name, part in parts.items():
            if name in weights and name not in self._wholes:
                value = stored.pop(name)
                source = stored.setdefault(part.source, value)
                if value.shape != part.shape or not torch.equal(take(source, part.shape, part.rule), value):
                    raise ValueError(f"the weights of {name!r} are no part of {part.source!r}, which has them here")
        return stored

    def _begin_caches(self) -> None:
        self._known_subnet = _cached(self._make_subnet)
        self._assemblers: dict[DropRates, Assembler] = {}
        self._plans: WeakKeyDictionary[nn.Module, Plan] = WeakKeyDictionary()
        self._tree: list[tuple[dict[str, nn.Module | None], str, nn.Module | None]] = []

    def _subnet(
        self, arch: Arch, rates: DropRates = NO_DROP, stand_in: StandIn | None = None, arrived: Arrived | None = None
    ) -> LentSubnet:
        """The subnet `arch`, with `stand_in` for its pieces, which call `arrived`.

        What is known of subnets is forgotten where a module of the shared tensors is another."""
        if not all(modules.get(name) is module for modules, name, module in self._tree):
            self._known_subnet.cache_clear()
            self._plans.clear()
            self._tree.clear()
        if not self._tree:
            self._tree += [(owner._modules, *item) for owner in self.modules() for item in owner._modules.items()]
        return self._known_subnet(arch, rates, stand_in, arrived)

    def _make_subnet(
        self, arch: Arch, rates: DropRates, stand_in: StandIn | None, arrived: Arrived | None
    ) -> LentSubnet:
        assemble = self._assembler(rates)
        if stand_in is None:
            module = assemble(arch) if assemble else build_skeleton(partial(self.build, **rates.options), arch)
            return self._subnet_of(module, arch)
        whole = self._known_subnet(arch, rates, None, None)
        module = None
        if assemble and not self.views(arch):  # by which a piece may be of this subnet alone
            module = assemble.with_stand_ins(
                arch, lambda name, piece: stand_in(name, LentSubnet(piece, self._plans[piece]), arrived)
            )
        if module is None:
            return LentSubnet(stand_in("", whole, arrived), Plan("", (), (), (), {}))
        return self._subnet_of(module, arch)

    def _assembler(self, rates: DropRates) -> Assembler | None:
        """What puts subnets together; None without pieces, and with stochastic depth, where the rate of a piece follows
        from its place among all of the subnet's."""
        if self.pieces_of is None or rates.drop_path_rate:
            return None
        if rates not in self._assemblers:
            build = partial(self.build, **rates.options)
            self._assemblers[rates] = Assembler(build, self.pieces_of, self.space.largest, self.views)
        return self._assemblers[rates]

    def _subnet_of(self, module: nn.Module, arch: Arch) -> LentSubnet:
        views = self.views(arch)
        subnet = LentSubnet(module, self._plan(module, "", module, arch, views, {}))
        for alias, name in subnet.ties.items():
            _check_tied(alias, name, views, arch)
        return subnet

    def _plan(
        self,
        module: nn.Module,
        prefix: str,
        root: nn.Module,
        arch: Arch,
        views: Mapping[str, View],
        names: dict[int, str],
    ) -> Plan:
        """That of a module of `root`, the subnet `arch`, in which names begin with `prefix`; `names`, to which its own
        are added, are those of the tensors before it, by identity."""
        known = self._plans.get(module)
        if known is not None and known.prefix == prefix and not views and names.keys().isdisjoint(known.names):
            names.update(known.names)
            return known
        before = len(names)
        modules, slots, aliases = [], [], []
        for kept in (module._parameters, module._buffers):
            for key, tensor in kept.items():
                name = f"{prefix}{key}"
                if tensor is None:
                    continue
                if key in module._non_persistent_buffers_set:
                    kept[key] = self._constant(tensor, root)
                elif id(tensor) in names:
                    aliases.append(Alias(name, kept, key, tensor, names[id(tensor)]))
                else:
                    names[id(tensor)] = name
                    part = self._part(name, tensor, views.get(name), root, arch)
                    slots.append(Slot(name, kept, key, part, *self._place(part.source)))
        for child_name, child in module._modules.items():
            if child is not None:
                plan = self._plan(child, f"{prefix}{child_name}.", root, arch, views, names)
                modules += [child, *plan.modules]
                slots += plan.slots
                aliases += plan.aliases
        plan = Plan(prefix, tuple(modules), tuple(slots), tuple(aliases), dict(islice(names.items(), before, None)))
        if not views:
            self._plans[module] = plan
        return plan

    def _constant(self, buffer: Tensor, root: nn.Module) -> Tensor:
        """A buffer outside the state dict, where the supernet is and of its type, to which it may have been converted,
        by `double()` say."""
        dtype = floating_dtype(self)
        converted = buffer.is_floating_point() and dtype != floating_dtype(root)
        return buffer if buffer.is_meta else buffer.to(self._device(), dtype if converted else buffer.dtype)

    def _place(self, source: str) -> tuple[Tensors, str]:
        """Where a shared tensor is kept, and by what key."""
        owner, _, key = source.rpartition(".")
        module = self.get_submodule(owner)
        return module._parameters if key in module._parameters else module._buffers, key

    def _part(self, name: str, tensor: Tensor, view: View | None, root: nn.Module, arch: Arch) -> Part:
        key = name, tensor.shape, view
        if key not in self._parts:
            self._parts[key] = self._make_part(name, tensor, view or PLAIN, root, arch)
        return self._parts[key]

    def _make_part(self, name: str, tensor: Tensor, view: View, module: nn.Module, arch: Arch) -> Part:
        source = view.source or name
        if source not in self._wholes:
            raise ValueError(
                f"{arch!r} has a tensor {source!r} that the supernet lacks: no architecture of "
                "supernet.nesting.covering_archs(space) has it; make the choice that brings it an unordered one"
            )
        whole, shape = self._wholes[source], attrgetter(source)(self).shape
        rule = self._rule(source, module, name)
        check_shape(name, shape, tensor.shape, is_kernel(module, name), whole.arch, arch, resized_dims(rule))
        if tensor.shape != shape and self._matching(source) is None:
            check_unit(name, whole.unit, unit(module, name), whole.arch, arch)
        if source != name:
            _check_rule(name, source, rule, whole.rule, arch)
        return Part(source, tensor.shape, rule, view.transform)

    def _rule(self, source: str, module: nn.Module, name: str) -> Rule:
        """That of the shared tensor `source`, which `module` has parts of as `name`."""
        pattern = self._matching(source)
        if pattern is None:
            return layer_rule(module, name)
        rule = self._rules[pattern]
        return self.get_submodule(rule_name(source)) if isinstance(rule, nn.Module) else rule

    def _leads(self, arch: Arch, name: str) -> bool:
        """Whether the tensor `name` of the subnet `arch` is of the leading rows of a shared one."""
        part = self._subnet(arch).parts.get(name)  # none of a constant, which is not sliced
        return part is not None and self._matching(part.source) is None and part.rule in (leading, centred)

    def _matching(self, source: str) -> str | None:
        return next((pattern for pattern in self._rules if fnmatchcase(source, pattern)), None)

    def _share(self, modules: Mapping[Arch, nn.Module]) -> None:
        """Register the union of the modules' tensors, each at its largest shape, with the weights it has there."""
        largest: dict[str, tuple[Tensor, Arch, str]] = {}  # by source; the name in the architecture
        self._no_weight_decay: set[str] = set()
        for arch, module in modules.items():
            tensors, views, sources = module.state_dict(keep_vars=True), self.views(arch), {}
            ties = tied_names(tensors)
            for name, tensor in tensors.items():
                first = ties.get(name, name)
                source = sources[name] = views.get(first, PLAIN).source or first
                if source not in largest or tensor.numel() > largest[source][0].numel():
                    largest[source] = tensor, arch, name
            self._no_weight_decay.update(sources.get(name, name) for name in _no_weight_decay(module))
        for source, (tensor, _, _) in largest.items():
            self._register(source, tensor)
        for pattern in self._rules:
            matching = [source for source in largest if self._matching(source) == pattern]
            if not matching:
                raise ValueError(f"no tensor of the supernet is named like the slicing rule {pattern!r}")
            if isinstance(rule := self._rules[pattern], nn.Module):
                for source in matching:
                    self._register(rule_name(source), copy.deepcopy(rule))
        self._wholes = {
            source: _Whole(arch, unit(modules[arch], name), self._rule(source, modules[arch], name))
            for source, (_, arch, name) in largest.items()
        }
        for arch, module in modules.items():
            for alias, name in tied_names(module.state_dict(keep_vars=True)).items():
                source = self.views(arch).get(name, PLAIN).source or name
                _check_rule(alias, source, self._rule(source, module, alias), self._wholes[source].rule, arch)

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

    def _device(self) -> torch.device:
        return next(self.parameters()).device

    def _apply(self, fn, recurse: bool = True):
        self._known_subnet.cache_clear()  # their buffers are of the former type and on the former device
        self._assemblers.clear()
        self._plans.clear()
        return super()._apply(fn, recurse)

    def __getstate__(self):
        return {name: value for name, value in self.__dict__.items() if name not in _CACHES}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._begin_caches()


def _check_new(module: nn.Module, again: nn.Module) -> None:
    if {*map(id, module.parameters())} & {*map(id, again.parameters())}:
        raise ValueError(
            f"`build` gives the same {type(module).__name__} twice: it has to make a new one every time, by "
            "copy.deepcopy for example"
        )


def _no_weight_decay(module: nn.Module) -> Iterable[str]:
    return module.no_weight_decay() if hasattr(module, "no_weight_decay") else ()


def _check_rule(name: str, source: str, rule: Rule, shared_rule: Rule, arch: Arch) -> None:
    if rule != shared_rule:
        raise ValueError(
            f"tensor {name!r} of {arch!r} is not sliced as others are that have the source {source!r}: give that a "
            "slicing rule by name, or take another source"
        )


def _check_tied(alias: str, name: str, views: Mapping[str, View], arch: Arch) -> None:
    own, first = (views.get(n, PLAIN) for n in (alias, name))
    if alias in views and (own.source or alias, own.transform) != (first.source or name, first.transform):
        raise ValueError(
            f"tensors {alias!r} and {name!r} are one in the module of {arch!r}, and cannot be {own} and {first}: give "
            f"{alias!r} no view of its own"
        )


def rule_name(name: str) -> str:
    """The name, in a supernet, of the slicing rule with weights that belongs to the tensor `name`."""
    return f"slicing_rules.{name.replace('.', '/')}"  # a module's own name holds no dots
