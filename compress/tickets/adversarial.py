"""Training on adversarial examples: the loss by which HYDRA's scores are learned (arXiv 2002.10509), or any network is.

Madry et al., *Towards deep learning models resistant to adversarial attacks*, ICLR 2018, arXiv 1706.06083.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from distill.temporary import modes
from supernet.space import Arch
from supernet.tasks import Task
from supernet.tasks.task import Output
from supernet.training.data.batch import Batch

# N examples


@dataclass(frozen=True)
class Attack:
    """Projected gradient descent within a ball of the maximum norm."""

    epsilon: float
    """The most that a value of an input is moved by, in the units of the network's input."""
    step: float
    """How far a step moves it."""
    steps: int = 7
    """Steps."""

    def __post_init__(self):
        if not (self.epsilon > 0 and self.step > 0 and self.steps >= 1):
            raise ValueError(f"an attack has an epsilon and a step above 0 and at least 1 step, not {self}")


def perturbed(model: nn.Module, inputs: Tensor, loss: Callable[[Output], Tensor], attack: Attack) -> Tensor:
    """`inputs` [N, ...], each value moved by at most epsilon, by steps along the sign of the gradient of
    `loss(model(inputs))`, from the inputs themselves. The model runs in eval mode, and no gradient of it is kept."""
    with modes(model, lambda module: False), torch.inference_mode(False), torch.enable_grad():
        moved = inputs.detach().clone()
        for _ in range(attack.steps):
            moved.requires_grad_()
            (gradient,) = torch.autograd.grad(loss(model(moved)), moved)
            moved = moved.detach() + attack.step * gradient.sign()
            moved = torch.minimum(torch.maximum(moved, inputs - attack.epsilon), inputs + attack.epsilon)
    return moved


@dataclass(frozen=True)
class Adversarial(Task):
    """A `task` of one input whose network, `model`, gets inputs that are `perturbed` by its own loss, in training and
    when it is judged."""

    task: Task
    model: nn.Module = field(compare=False)
    attack: Attack

    def __post_init__(self):
        for name in ("input_names", "output_names", "metric", "uninformed_loss", "chance"):
            object.__setattr__(self, name, getattr(self.task, name))

    def inputs(self, batch: Batch, arch: Arch | None) -> tuple[Tensor]:
        with torch.inference_mode(False):  # whose tensors, were it on, no gradient goes through
            own = tree_map_only(Tensor, Tensor.clone, batch)
            (inputs,) = self.task.inputs(own, arch)
            return (perturbed(self.model, inputs, lambda output: self.task.loss(output, own), self.attack),)

    def loss(self, output: Output, batch: Batch) -> Tensor:
        return self.task.loss(output, batch)

    def distil(self, output: Output, teacher_output: Output, batch: Batch) -> Tensor:
        return self.task.distil(output, teacher_output, batch)

    def metrics(self, outputs: Iterable[Output], batches: Iterable[Batch]) -> dict[str, float]:
        return self.task.metrics(outputs, batches)

    def per_example(self, output: Output, batch: Batch) -> Tensor | None:
        return self.task.per_example(output, batch)

    def validation_loss(self, output: Output, batch: Batch) -> Tensor:
        return self.task.validation_loss(output, batch)

    def check_batch(self, batch: Any) -> None:
        self.task.check_batch(batch)

    def check_output(self, output: Output) -> None:
        self.task.check_output(output)
