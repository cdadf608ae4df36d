"""Residual blocks, found in the additions of a forward pass: those that a network can do without.

A module is a residual block where what it puts out is what it took in plus something else, seen through functions that
change the values of a tensor or its shape, such as an activation after the addition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn


class _Source(NamedTuple):
    tensor: int
    added: bool  # to others
    time: int


class _Call(NamedTuple):
    taken: tuple[int, ...]
    given: int


class Residuals:
    """Follows from which tensors each tensor is made by addition. Tensors are known by their ids."""

    def __init__(self) -> None:
        self.time = 0
        self._sources: dict[int, list[_Source]] = {}
        self._calls: dict[str, list[_Call]] = {}  # of the modules that are residual blocks
        self._others: set[str] = set()  # modules that were not, in one call at least

    def follow(self, result: Tensor, sources: Iterable[Tensor], added: bool) -> None:
        """Note that `result` is made of `sources`, each as large as it: by addition, or by a function of one."""
        self.time += 1
        known = self._sources.setdefault(id(result), [])
        known.extend(_Source(id(source), added, self.time) for source in sources)

    def leave(self, name: str, since: int, taken: Iterable[Tensor], given: object) -> None:
        """Note what a module took and gave, which ran since the time `since`."""
        inputs = [t for t in taken if isinstance(given, Tensor) and t.shape == given.shape]
        residual = [tensor for tensor in inputs if self._adds_to(given, tensor, since)]
        if residual:
            self._calls.setdefault(name, []).append(_Call(tuple(map(id, residual)), id(given)))
        else:
            self._others.add(name)

    def _adds_to(self, given: Tensor, taken: Tensor, since: int) -> bool:
        """Whether `given` is `taken` plus something that was made since."""
        seen, waiting = set(), [(id(given), False)]
        while waiting:
            state = waiting.pop()
            tensor, added = state
            if tensor == id(taken) and added:
                return True
            if state in seen:
                continue
            seen.add(state)
            sources = [source for source in self._sources.get(tensor, ()) if source.time > since]
            waiting += [(source.tensor, added or source.added) for source in sources]
        return False

    def removable(self, model: nn.Module) -> Mapping[str, Mapping[str, int]]:
        """Every list of modules that ends in residual blocks, each of which takes in what the block before it puts out,
        and of each list these blocks, with their places in the list. The first module of a list is not among them."""
        removable = {}
        for name, module in model.named_modules():
            if type(module) in (nn.Sequential, nn.ModuleList):
                names = list(module._modules)
                children = [f"{name}.{child}".lstrip(".") for child in names]
                kept = len(children)
                while kept > 1 and self._is_block(children[kept - 1]):
                    if kept < len(children) and not self._follows(children[kept], children[kept - 1]):
                        break
                    kept -= 1
                if kept < len(children):
                    removable[name] = {names[place]: place for place in range(kept, len(names))}
        return removable

    def _is_block(self, name: str) -> bool:
        return name in self._calls and name not in self._others

    def _follows(self, after: str, before: str) -> bool:
        """Whether a block takes what another gives, in every call."""
        pairs = zip(self._calls[after], self._calls[before])
        return len(self._calls[after]) == len(self._calls[before]) and all(b.given in a.taken for a, b in pairs)
