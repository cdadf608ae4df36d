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
    """Names of the network's inputs in an exported file."""
    output_names: Sequence[str] = ("output",)
    """Names of the tensors of the network's output in an exported file."""
    metric: str = "score"
    """Name of the first of the metrics in searches and reports."""
    uninformed_loss: float = 1.0
    """About the loss of a network that knows nothing, by which a diverged training is told, if it is above the loss of
    the first step (`supernet.training.loop.divergence`)."""
    chance: float | None = None
    """The first metric of a network that guesses, where that metric is a part of the examples; None if it is
    unknown."""

    def inputs(self, batch: Batch, arch: Arch | None) -> tuple:
        """What the subnet `arch` is called with: the same for all architectures of one resolution. For None, which
        stands for a network that is no subnet, such as a teacher, the inputs as they are in the batch."""
        ...

    def mask(self, inputs: tuple) -> Tensor | None:
        """Where the features [N, L, C] of a network that is called with these inputs mean something [N, L], 0 where
        they do not. None, as here, for everywhere."""
        return None

    def loss(self, output: Output, batch: Batch) -> Tensor:
        """What training lowers, a scalar: the mean over the examples. Floating point outputs are in float32."""
        ...

    def distil(self, output: Output, teacher_output: Output, batch: Batch) -> Tensor:
        """What a student lowers beside `loss` or instead, a scalar; the teacher's output is as `freeze` gives it."""
        ...

    def metrics(self, outputs: Iterable[Output], batches: Iterable[Batch]) -> dict[str, float]:
        """What a network is judged by, of the outputs for all batches; higher is better. A search maximises the first
        metric.

        `outputs` and `batches` can be gone through once, side by side, so that not all of them are in memory, and are
        on one device.
        """
        ...

    def per_example(self, output: Output, batch: Batch) -> Tensor | None:
        """What the first metric is the mean of, a number for each example [N], such as 1 or 0 for right or wrong. By it
        it is known how sure the metric is, and whether two networks can be told apart. None, as here, for a metric that
        is no such mean."""
        return None

    def validation_loss(self, output: Output, batch: Batch) -> Tensor:
        """The loss that subnets are compared by: without what regularises `loss`, such as label smoothing."""
        return self.loss(output, batch)

    def freeze(self, output: Output) -> Output:
        """The output as a teacher's: without gradient, and floating point in float32."""
        return in_float32(tree_map_only(Tensor, Tensor.detach, output))

    def check_batch(self, batch: Batch) -> None:
        """ValueError if a network cannot learn from this batch; called with each one before it is used, where the data
        gave it, but with images on the training's device if they had to be normalised."""

    def check_output(self, output: Output) -> None:
        """ValueError if the task does not understand this output, which a network in train mode gives for two
        examples."""


def in_float32(output: Output) -> Output:
    """Floating point tensors in float32, all else as it is."""
    return tree_map_only(Tensor, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, output)
