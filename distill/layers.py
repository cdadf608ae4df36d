"""What a model's layers put out, by the names of modules: the features that distillation compares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distill.temporary import hooks


def stages(model: nn.Module) -> dict[int, str]:
    """The last module at each resolution, by how many times smaller it is than the image: {2: "blocks.0.0", ...}.

    These are the features of timm's `features_only=True`, found in `model.feature_info`. ValueError for a model without
    it, such as one that is not of timm's.
    """
    info = getattr(model, "feature_info", None)
    entries = getattr(info, "info", info)
    if not entries or not isinstance(entries[0], Mapping):
        raise ValueError(
            f"{type(model).__name__} does not say where its features are (timm's feature_info): name the modules to "
            "compare by"
        )
    return {entry["reduction"]: entry["module"] for entry in entries}


def outermost(model: nn.Module, name: str) -> str:
    """The sequence that the module `name` ends, or that ends with this sequence, and so on; the module itself if it
    ends none. What it puts out is the same."""
    outer, _, child = name.rpartition(".")
    parent = dict(model.named_modules()).get(outer)
    if outer and isinstance(parent, nn.Sequential) and child == list(dict(parent.named_children()))[-1]:
        return outermost(model, outer)
    return name


@contextmanager
def recorded(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Within the context, what the named modules put out in a forward pass lands in the dictionary, by name: copies,
    since the next module may work on it in place, as many activations do.

    ValueError, naming it, for a module that `model` does not have.
    """
    outputs: dict[str, Tensor] = {}
    modules = dict(model.named_modules())
    if unknown := [name for name in names if name not in modules]:
        raise ValueError(
            f"{type(model).__name__} has no module {unknown[0]!r}; the outermost are "
            f"{', '.join(name for name, _ in model.named_children())}"
        )

    def keep(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        outputs[name] = tree_map_only(Tensor, Tensor.clone, output)

    with hooks(modules[name].register_forward_hook(partial(keep, name)) for name in names):
        yield outputs
