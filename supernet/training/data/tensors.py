"""Examples that are tensors in memory already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from supernet.training.data.batch import Batch, examples_in, split
from supernet.training.data.protocol import Data
from supernet.training.randomness import Stream, generator


@dataclass(frozen=True)
class TensorData(Data):
    """Three batches of any form, which are given as they are, at no other resolution.

    Every epoch is a new permutation that follows from the seed. Of the joint batch of a step, rank r of w ranks gets
    every w-th example.
    """

    train: Batch
    holdout: Batch
    test: Batch
    classes: tuple[str, ...] | None = None
    family_arguments: Mapping[str, object] = field(default_factory=dict)

    def steps_per_epoch(self, batch_size: int) -> int:
        steps = examples_in(self.train) // batch_size
        if steps == 0:
            raise ValueError(f"a batch of {batch_size} is more than the {examples_in(self.train)} training examples")
        return steps

    def training_batches(
        self, resolution: int | None, batch_size: int, seed: int, steps: range, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        count, each = examples_in(self.train), self.steps_per_epoch(batch_size)
        drawn = None
        for step in steps:
            epoch, position = divmod(step, each)
            if epoch != drawn:
                drawn, order = epoch, generator(seed, Stream.ORDER, epoch).permutation(count)
            chosen = order[position * batch_size : (position + 1) * batch_size]
            yield self._chosen(chosen[rank::world_size].tolist())

    def calibration_batches(self, resolution: int | None, count: int, seed: int) -> Iterable[Batch]:
        order = generator(seed, Stream.CALIBRATION).permutation(examples_in(self.train))
        return split(self._chosen(order[:count].tolist()), 256)

    def evaluation_batches(self, part: Batch, resolution: int | None, batch_size: int = 256) -> Iterable[Batch]:
        return split(part, batch_size)

    def count(self, part: Batch) -> int:
        return examples_in(part)

    def description(self) -> dict[str, Any]:
        """The number of examples in each part, and a digest of its tensors."""
        parts = {name: getattr(self, name) for name in ("train", "holdout", "test")}
        return {
            "examples": {name: examples_in(part) for name, part in parts.items()},
            "digests": {name: _digest(part) for name, part in parts.items()},
        }

    def _chosen(self, indices: list[int]) -> Batch:
        return tree_map_only(Tensor, lambda tensor: tensor[torch.tensor(indices, device=tensor.device)], self.train)


def _digest(part: Batch) -> str:
    found = hashlib.sha256()
    for tensor in tree_leaves(part):
        if isinstance(tensor, Tensor):
            found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
