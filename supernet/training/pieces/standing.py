"""What stands in for a piece of subnets, whatever it does in the piece's place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from supernet.subnets import LentSubnet


class Standing(nn.Module):
    """A module in the place of that of `lent`, whose attributes it shows and whose tensors are none of its own."""

    def __init__(self, lent: LentSubnet) -> None:
        super().__init__()
        self.lent = lent

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.lent.module, name)

    @contextmanager
    def lending(self) -> Iterator[nn.Module]:
        """The context in which the module runs, in train mode, on parts of the shared tensors."""
        self.lent.set_mode(True)
        with self.lent.holding(self.lent.lent(accumulate=True)) as module:
            yield module
