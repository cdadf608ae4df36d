"""How right a classifier still is on images that are spoilt, and on such as an attacker makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import IterableDataset, Subset

from compress.tickets.adversarial import Attack, perturbed
from supernet.answers.answers import answers_of
from supernet.answers.corruptions import CORRUPTIONS, STRENGTHS, corrupted
from supernet.training.data import ImageData
from supernet.training.data.batch import take
from supernet.training.data.pixels import Pixels
from supernet.training.randomness import Stream, generator

# N images, R resolution in pixels

PGD_STEPS = 10

Batches = Iterable[tuple[Pixels, Tensor]]


@dataclass(frozen=True)
class Robustness:
    """Accuracies from 0 to 1, higher is better, on the same images as each other."""

    images: int
    clean: float
    by_corruption: dict[str, list[float]]  # at the strengths 1 to 5
    pgd: float

    @property
    def corrupted(self) -> float:
        """The mean over all corruptions and strengths."""
        values = [value for row in self.by_corruption.values() for value in row]
        return sum(values) / len(values)


def robustness(
    model: nn.Module, data: ImageData, resolution: int, count: int, epsilon: float, seed: int = 0
) -> Robustness:
    """What `model`, in eval mode, is worth on `count` of the test images that are drawn from `seed` (all, if there are
    fewer; the first of a stream): as they are, in each of `supernet.answers.corruptions`, and under attack.

    The attack is projected gradient descent on the cross-entropy (Madry et al., arXiv 1706.06083) from the image
    itself: 10 steps of a quarter of `epsilon`, which is the most that a value between 0 and 1 is moved by.
    """
    device = next(model.parameters()).device
    part = data.test
    if not isinstance(part, IterableDataset):
        part = Subset(part, generator(seed, Stream.CALIBRATION).permutation(len(part))[:count].tolist())
    pixels: list[tuple[Pixels, Tensor]] = list(take(data.compact().evaluation_batches(part, resolution), count))

    def accuracy(batches: Batches) -> float:
        normalised = ((own.normalised(), labels) for own, labels in batches)
        return answers_of(model, normalised).quality.top1

    by_corruption = {
        name: [accuracy(_corrupted(pixels, name, strength, seed)) for strength in STRENGTHS] for name in CORRUPTIONS
    }
    attacked = _attacked(_Normalising(model, pixels[0][0]).to(device).eval(), pixels, epsilon)
    return Robustness(sum(len(labels) for _, labels in pixels), accuracy(pixels), by_corruption, attacked)


def _corrupted(pixels: Batches, name: str, strength: int, seed: int) -> Iterator[tuple[Pixels, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    for own, labels in pixels:
        yield Pixels(corrupted(own.values, name, strength, draw), own.mean, own.std), labels


def _attacked(model: nn.Module, pixels: Batches, epsilon: float) -> float:
    attack = Attack(epsilon, epsilon / 4, PGD_STEPS)
    device = next(model.parameters()).device

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for own, labels in pixels:
            with torch.inference_mode(False):  # whose tensors, were it on, no gradient goes through
                images, target = own.values.to(device).float() / 255, labels.to(device)
                moved = perturbed(model, images, lambda logits, target=target: F.cross_entropy(logits, target), attack)
            yield moved, labels

    return answers_of(model, batches()).quality.top1


class _Normalising(nn.Module):
    """A network of images [N, 3, R, R] from 0 to 1, which are cut off there."""

    def __init__(self, model: nn.Module, like: Pixels) -> None:
        super().__init__()
        self.model = model
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(getattr(like, name)).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.model((images.clamp(0, 1) - self.mean) / self.std)
