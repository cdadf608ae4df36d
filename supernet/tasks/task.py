"""`Task`: what training, search and export ask instead of assuming images and cross-entropy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.utils._pytree import tree_map_only

from supernet.space import Arch
from supernet.training.data.batch import Batch

Output = Any  # a tree of tensors, whose first dimension are the examples


class Task(Protocol):
    """What a network learns. A task of one's own is a subclass, which inherits what is not abstract here.

    Batches are trees of tensors as `supernet.training.data.Data` gives them, outputs those that the network gives.
    """

    input_names: Sequence[str] = ("input",)
    """Of the network's inputs, in an exported file."""
    output_names: Sequence[str] = ("output",)
    """Of the tensors of its output, likewise."""
    uninformed_loss: float = 1.0
    """About the loss of a network that knows nothing, by which a diverged training is told, if it is above that of the
    first step (`supernet.training.divergence`)."""
    chance: float | None = None
    """What the first of the metrics is of a network that guesses, where it is a part of the examples; None: unknown."""

    def inputs(self, batch: Batch, arch: Arch | None) -> tuple:
        """What the subnet `arch` is called with; of several architectures of one resolution, the same. For None, which
        stands for a network that is no subnet, such as a teacher, the inputs as they are in the batch."""
        ...

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """What training lowers, a scalar: the mean over the examples. Floating point outputs are in float32."""
        ...

    def distil(self, output: Output, teacher_output: Output, batch: Batch) -> Tensor:
        """What a student lowers beside it or instead, a scalar; the teacher's output is as `freeze` gives it."""
        ...

    def metrics(self, outputs: Iterable[Output], batches: Iterable[Batch]) -> dict[str, float]:
        """What a network is judged by, of the outputs for all batches; higher is better. The first one is what a search
        maximises.

        Both can be gone through once, side by side, so that not all of them are in memory, and are on one device.
        """
        ...

    def validation_loss(self, output: Output, batch: Batch) -> Tensor:
        """The loss that subnets are compared by: without what regularises `loss`, such as label smoothing."""
        return self.loss(output, batch)

    def freeze(self, output: Output) -> Output:
        """The output as a teacher's: without gradient, and floating point in float32."""
        return in_float32(tree_map_only(Tensor, Tensor.detach, output))

    def check_batch(self, batch: Batch) -> None:
        """ValueError if a network cannot learn from this batch; called with each one before it is used."""

    def check_output(self, output: Output) -> None:
        """ValueError if this is no output that the task understands; of a network in train mode, on two examples."""


def in_float32(output: Output) -> Output:
    """Floating point tensors in float32, all else as it is."""
    return tree_map_only(Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, output)
