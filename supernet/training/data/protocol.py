"""What networks are trained and judged on, whatever it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

from supernet.training.data.batch import Batch


class Data(Protocol):
    """Examples in three parts: those to train on, those held out to judge subnets by, and those that only the chosen
    subnet is tested on.

    Each gives batches in the same form, which the task understands (`supernet.tasks`). `resolution` is the size in
    which the inputs are wanted, in pixels a side of images; None where the space has none
    (`supernet.families.Family.resolution`). `supernet.training.data.ImageData` is the case of images with labels.
    """

    holdout: Any
    test: Any

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in one pass over the training examples; ValueError if there is none."""

    def training_batches(
        self, resolution: int | None, batch_size: int, seed: int, steps: range, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """What each step in `steps`, counted from 0, trains on, which follows from the seed and the step alone. Of its
        `batch_size` examples, each of `world_size` processes gets an equal part, that of its `rank`."""

    def calibration_batches(self, resolution: int | None, count: int, seed: int) -> Iterable[Batch]:
        """`count` training examples, or all if there are fewer, prepared as for evaluation; always the same for one
        seed."""

    def evaluation_batches(self, part: Any, resolution: int | None, batch_size: int = 256) -> Iterable[Batch]:
        """All examples of a part, `holdout` or `test`, always in the same order."""

    def count(self, part: Any) -> int:
        """The number of examples in a part."""

    def description(self) -> Mapping[str, Any]:
        """What a run's record says of the data, as JSON: enough to tell that they have changed."""
