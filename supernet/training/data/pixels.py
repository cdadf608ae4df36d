"""Images of 8 bits a value on their way to where they are normalised: a quarter of the bytes of floating point."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node

# N images, C channels, H height, W width in pixels


@dataclass(frozen=True)
class Pixels:
    """Images of a batch that are still to be normalised, which `supernet.training.data.batch.on` does.

    In trees of tensors it stands for its `values`.
    """

    values: Tensor  # [N, C, H, W], uint8
    mean: tuple[float, ...]  # of each channel, subtracted after division by 255
    std: tuple[float, ...]  # of each channel, divided by

    def normalised(self, memory_format: torch.memory_format = torch.preserve_format) -> Tensor:
        """The images [N, C, H, W] in float32, where the values lie: (values / 255 - mean) / std, rounded after each of
        the three, as torchvision's ToTensor and Normalize do."""
        largest, mean, std = _constants(self.mean, self.std, self.values.device)
        images = self.values.to(torch.float32, memory_format=memory_format)
        return images.div_(largest).sub_(mean).div_(std)


register_pytree_node(
    Pixels,
    lambda pixels: ([pixels.values], (pixels.mean, pixels.std)),
    lambda values, constants: Pixels(*values, *constants),
    serialized_type_name="supernet.Pixels",
)


@lru_cache  # since to make them on a GPU is to wait for it
def _constants(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """255, mean and std, as tensors: a GPU would multiply by the rounded inverse of a number."""
    columns = (torch.tensor(values, dtype=torch.float32).view(-1, 1, 1) for values in (mean, std))
    return tuple(tensor.to(device) for tensor in (torch.tensor(255.0), *columns))
