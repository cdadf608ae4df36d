"""Prioritised paths (Cream of the Crop, Peng et al., NeurIPS 2020, arXiv 2010.15821)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from supernet.space import Arch, SearchSpace
from supernet.training import distributed
from supernet.training.data.batch import examples_in, split
from supernet.training.methods.sampling import Learner, Method, Step

# P paths on the board, S images of each, C channels, R resolution in pixels, K classes


@dataclass
class BoardEntry:
    """A path on the board."""

    arch: Arch
    accuracy: float  # on the batch that the path was last trained on, 0 to 1
    macs: int
    images: Tensor  # [S, C, R, R], the first of the batch it was last trained on
    probabilities: Tensor  # [S, K] that the path gave these images


class PrioritizedPaths(Method):
    """One random path a step, which learns from the best of a board of the most accurate paths so far.

    A linear function M scores how well each path on the board would teach the random one, x: s = M(p_t - p_x), with
    the probabilities p that either gives S images of the board's path t. The one of the highest score teaches, with
    weight m = sigmoid(s):

        loss = (m * distillation + (2 - m) * cross_entropy) / 2        (section 3.2)

    Every `update_steps` steps M descends the loss on S images that x has after a step of gradient descent on S others
    with the loss m * distillation (the step is taken back). From `start_epoch` on a path joins the board while that
    has less than `board_size`; then it takes the place of the least accurate one if it is more accurate by
    `accuracy_gap`, or more accurate at all with fewer MACs. The same path is on it once, with its latest accuracy.

    Published: a board of 10, from epoch 20 of 120, updates every 200 steps at a learning rate of 1e-4, S = 4. The
    authors' code weighs by sigmoid of -s of the last path on the board and keeps the step on which M is judged; here
    both follow the paper.
    """

    def __init__(
        self,
        space: SearchSpace,
        macs: Callable[[Arch], int],
        num_classes: int,
        *,
        board_size: int = 10,
        start_epoch: int = 20,
        update_steps: int = 200,
        images: int = 4,
        accuracy_gap: float = 0.05,
        lr: float = 1e-4,
    ) -> None:
        self.space = space
        self.board: list[BoardEntry] = []  # the most accurate first
        self.weight = torch.zeros(images * num_classes)  # of M, [S * K]
        self.bias = torch.zeros(())
        self._macs = macs
        self._board_size = board_size
        self._start_epoch = start_epoch
        self._update_steps = update_steps
        self._images = images
        self._accuracy_gap = accuracy_gap
        self._lr = lr

    def learners(self, step: Step) -> list[Learner]:
        arch = step.sample(self.space)
        if not self.board:
            return [Learner(arch)]
        if (count := examples_in(step.batch)) < 2 * self._images:
            raise ValueError(f"cream needs batches of {2 * self._images} images in every process, not {count}")
        if step.number % self._update_steps == 0:
            self._learn_to_match(step, arch)
        teacher, matching, _ = self.match(step, arch)
        m = matching.item()
        return [
            Learner(teacher.arch, label_weight=0.0),
            Learner(arch, 0, label_weight=(2 - m) / 2, teacher_weight=m / 2),
        ]

    def finish(self, step: Step, learners: Sequence[Learner], outputs: Sequence[Tensor]) -> None:
        if step.epoch < self._start_epoch:
            return
        images, logits, arch = step.batch[0], outputs[-1], learners[-1].arch
        found = step.task.metrics([logits], [step.batch])["accuracy"]
        accuracy = distributed.average(torch.tensor(found, device=images.device)).item()
        probabilities = logits[: self._images].softmax(1)
        self.enter(BoardEntry(arch, accuracy, self._macs(arch), images[: self._images].clone(), probabilities))

    def enter(self, entry: BoardEntry) -> None:
        """Put a path on the board, if it is good enough."""
        others = [other for other in self.board if other.arch != entry.arch]
        if len(others) == self._board_size:
            last = others[-1]
            gap = 0.0 if entry.macs < last.macs else self._accuracy_gap
            if entry.accuracy <= last.accuracy + gap:
                return
            others.pop()
        self.board = sorted([*others, entry], key=lambda e: e.accuracy, reverse=True)

    @torch.no_grad()
    def match(self, step: Step, arch: Arch) -> tuple[BoardEntry, Tensor, Tensor]:
        """The path on the board that is to teach `arch`, its weight m, and the difference [S * K] that gave it."""
        device = step.batch[0].device  # a checkpoint is loaded on the CPU
        images = torch.cat([entry.images.to(device) for entry in self.board])
        own = step.output(arch, (images,)).softmax(1)
        theirs = torch.cat([entry.probabilities.to(device) for entry in self.board])
        differences = (theirs - own).view(len(self.board), -1)
        self.weight, self.bias = self.weight.to(differences), self.bias.to(differences)
        scores = distributed.average(differences @ self.weight + self.bias)  # the same teacher in every process
        best = int(scores.argmax())
        return self.board[best], scores[best].sigmoid(), differences[best]

    def _learn_to_match(self, step: Step, arch: Arch) -> None:
        """A step of gradient descent of M.

        With the gradient g of the distillation and the learning rate r, the lookahead is w'(m) = w - r m g, so that
        the loss L on the other images has dL(w'(m))/dm = -r <grad L(w'), g>.
        """
        teacher, matching, difference = self.match(step, arch)
        first, second, *_ = split(step.batch, self._images)
        with torch.no_grad():
            soft_labels = step.output(teacher.arch, first)
        parameters = list(step.net.parameters())
        gradients = _gradients(step, step.task.distil(step.output(arch, first), soft_labels, first), parameters)
        before = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            torch._foreach_add_(parameters, [-step.lr * matching * gradient for gradient in gradients])
        ahead = _gradients(step, step.task.validation_loss(step.output(arch, second), second), parameters)
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)
            slope = -step.lr * sum((a * g).sum() for a, g in zip(ahead, gradients)) * matching * (1 - matching)
            descent = distributed.average(torch.cat([slope * difference, slope[None]]))
            descent *= self._lr / descent.norm().clamp_min(1.0)  # the authors clip it to a norm of 1
            self.weight, self.bias = self.weight - descent[:-1], self.bias - descent[-1]

    def state_dict(self) -> dict[str, Any]:
        board = [vars(entry) | {"arch": dict(entry.arch)} for entry in self.board]
        return {"board": board, "weight": self.weight, "bias": self.bias}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.board = [BoardEntry(**entry | {"arch": Arch(entry["arch"])}) for entry in state["board"]]
        self.weight, self.bias = state["weight"], state["bias"]


def _gradients(step: Step, loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Those of a loss; zeros if one is not finite, as in fp16, where they are found at the training's scale."""
    found = torch.autograd.grad(step.scale(loss), parameters, allow_unused=True, materialize_grads=True)
    scale = step.scale(torch.ones_like(loss))
    finite = torch.stack([gradient.isfinite().all() for gradient in found]).all()
    return [torch.where(finite, gradient / scale, 0.0) for gradient in found]
