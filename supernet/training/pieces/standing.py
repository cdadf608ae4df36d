"""What stands in for a piece of subnets, whatever it does in the piece's place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from supernet.subnets import Arrived, LentSubnet


class Standing(nn.Module):
    """A module in the place of that of `lent`, whose attributes it shows and whose tensors are none of its own.

    In a backward pass `arrived` is called with a shared tensor that the module has a single slice of, once its gradient
    is there from every call of the module: a network may call a piece of it twice.
    """

    def __init__(self, lent: LentSubnet, arrived: Arrived | None) -> None:
        super().__init__()
        self.lent = lent
        self._arrived = arrived
        self._awaited: Counter[Tensor] = Counter()  # of calls, by the shared tensor

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.lent.module, name)

    @contextmanager
    def lending(self) -> Iterator[nn.Module]:
        """The context in which the module runs, in train mode, on parts of the shared tensors."""
        self.lent.set_mode(True)
        arrived = None
        if self.awaits_backward:
            self.await_from(self.lent.telling())
            arrived = self.came
        with self.lent.holding(self.lent.lent(accumulate=True, arrived=arrived)) as module:
            yield module

    @property
    def awaits_backward(self) -> bool:
        """Whether it is to be told when the gradients of a call are there."""
        return self._arrived is not None and torch.is_grad_enabled()

    def await_from(self, sources: Iterable[Tensor]) -> None:
        """A call has begun, of which `sources` get a gradient."""
        self._awaited.update(sources)

    def came(self, source: Tensor) -> None:
        """The gradient of a call has been added to that of `source`."""
        self._awaited[source] -= 1
        if not self._awaited[source]:
            self._arrived(source)
