"""What networks are trained and judged on, whatever it is."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

from supernet.training.data.batch import Batch


@runtime_checkable
class Data(Protocol):
    """Examples in three parts: those to train on, those held out to judge subnets by, and those that only the chosen
    subnet is tested on.

    Each part gives batches in the same form, which the task understands (`supernet.tasks`). `resolution` is the size in
    which the inputs are wanted, in pixels a side of images; None where the space has none
    (`supernet.families.Family.resolution`). Data of one's own are a subclass, which inherits what is not abstract here.
    `supernet.training.data.ImageData` is the case of images with labels.
    """

    holdout: Any
    test: Any
    classes: tuple[str, ...] | None = None
    """The names of the classes, in the order of their labels, of data that have classes."""
    second_classes: Sequence[str] = ()
    """Those of a second task, whose labels batches to train on then have as their third tensor."""
    family_arguments: Mapping[str, object] = MappingProxyType({})
    """What a family's function has to know of the data, as JSON, by the names of its arguments: such as `num_classes`
    of images, or the size of a vocabulary. A run and a subnet keep them, so that they load without the data."""

    def steps_per_epoch(self, batch_size: int) -> int:
        """Whole batches in one pass over the training examples; ValueError if there is none."""

    def training_batches(
        self, resolution: int | None, batch_size: int, seed: int, steps: range, rank: int = 0, world_size: int = 1
    ) -> Iterator[Batch]:
        """What each step in `steps`, counted from 0, trains on, which follows from the seed and the step alone. Of its
        `batch_size` examples, each of `world_size` processes gets an equal part, that of its `rank`. What reaches the
        task is what `supernet.training.data.batch.on` makes of it on the training's device. A GPU's next batch is asked
        for before a step is run, so that none may be made in the memory of another."""

    def calibration_batches(self, resolution: int | None, count: int, seed: int) -> Iterable[Batch]:
        """`count` training examples, or all if there are fewer, prepared as for evaluation; always the same for one
        seed."""

    def evaluation_batches(self, part: Any, resolution: int | None, batch_size: int = 256) -> Iterable[Batch]:
        """All examples of a part, `holdout` or `test`, always in the same order."""

    def compact(self) -> Data:
        """The same data, whose batches to calibrate by and to evaluate on take fewer bytes while they are kept:
        `supernet.training.data.batch.on` makes of these what networks take. The data themselves, if there is no such
        form."""
        return self

    def count(self, part: Any) -> int:
        """The number of examples in a part."""

    def description(self) -> Mapping[str, Any]:
        """What a run's record says of the data, as JSON: enough to tell that they have changed. The names are none that
        the record has for other things, such as job or date."""

    def files(self) -> Mapping[str, str]:
        """What whoever uses a network needs besides it, as text files by their names: a tokenizer, say. Runs and
        extracted subnets keep them."""
        return {}

    def check_unchanged(self, begun: Mapping[str, Any], directory: Path) -> None:
        """ValueError if the data are not what they were when the run in `directory` was begun: examples that were
        trained on could judge subnets. `begun` is the run's record, which has the data's description of that time among
        other things."""
        for name, value in json.loads(json.dumps(dict(self.description()))).items():
            if begun.get(name, value) != value:
                raise ValueError(
                    f"the data have changed since {directory} was begun: their {name} are {value}, and were "
                    f"{begun[name]}; examples that were trained on would judge the search"
                )
