"""Slicing rules of what follows patch size and resolution: resized, where other tensors are cut.

FlexiViT (Beyer et al., CVPR 2023, arXiv 2212.08013) keeps the kernel that embeds patches, and the positions, at one
size, and resizes both to what a patch size and a resolution want.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

# O output channels, I input channels, P = Q patch size in pixels, T tokens, D embedding width


@dataclass(frozen=True)
class ResizedPatches:
    """The rule for a kernel [O, I, P, P] that embeds patches: leading channels, resized by the pseudo-inverse.

    With the matrix B that resizes a patch x of P x P pixels to Q x Q (bicubic, antialiased), the resized kernel is
    (B^T)^+ w, which minimises the mean of (<x, w> - <B x, w'>)^2 over patches x of white noise; for Q >= P it is 0
    (FlexiViT, section 3.4).
    """

    resizes: ClassVar = (2, 3)

    def __call__(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        kernel = tensor[: shape[0], : shape[1]]
        if kernel.shape == shape:
            return kernel
        matrix = _pseudo_inverse(tensor.shape[-1], shape[-1]).to(kernel.device, kernel.dtype)
        return (kernel.flatten(2) @ matrix.mT).unflatten(2, shape[2:])


@lru_cache(maxsize=64)
def _pseudo_inverse(size: int, wanted: int) -> Tensor:
    """(B^T)^+ [Q * Q, P * P], for kernels of `size` P that become those of size Q."""
    basis = torch.eye(size * size, dtype=torch.float64).view(-1, 1, size, size)
    resized = F.interpolate(basis, size=(wanted, wanted), mode="bicubic", antialias=True).flatten(1)  # B^T
    return torch.linalg.pinv(resized)


@dataclass(frozen=True)
class ResizedPositions:
    """The rule for positions [1, T, D] of a square of patches: leading channels, resized as timm does for a pretrained
    model (bicubic, antialiased)."""

    resizes: ClassVar = (1,)

    def __call__(self, tensor: Tensor, shape: torch.Size) -> Tensor:
        side = round(shape[1] ** 0.5)
        return resample_abs_pos_embed(tensor[..., : shape[2]], new_size=(side, side), num_prefix_tokens=0)
