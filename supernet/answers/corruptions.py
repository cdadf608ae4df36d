"""Images as a camera, a bad line or a cheap encoder spoils them, at five strengths.

Hendrycks and Dietterich, *Benchmarking neural network robustness to common corruptions and perturbations*, ICLR 2019,
arXiv 1903.12261: eight of its corruptions, with the strengths that its code has for images of 224 pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur

# N images, R resolution in pixels

STRENGTHS = (1, 2, 3, 4, 5)


def corrupted(pixels: Tensor, corruption: str, strength: int, generator: torch.Generator) -> Tensor:
    """`pixels` [N, 3, R, R] of 8 bits, spoilt by one of `CORRUPTIONS` at a strength from 1 to 5, in 8 bits again.

    Random numbers come from `generator`, which is on the CPU, as the pixels are. A blur is as wide for images of 224
    pixels as in the paper, and in proportion for others.
    """
    function, parameters = CORRUPTIONS[corruption]
    found = function(pixels.float() / 255, parameters[strength - 1], generator)
    return (found.clamp(0, 1) * 255).round().to(torch.uint8)


def _gaussian_noise(images: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    return images + deviation * torch.randn(images.shape, generator=generator)


def _shot_noise(images: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(images * photons, generator=generator) / photons


def _impulse_noise(images: Tensor, part: float, generator: torch.Generator) -> Tensor:
    """Of each colour of each pixel, with the probability `part`, black or white."""
    drawn = torch.rand(images.shape, generator=generator)
    return torch.where(drawn < part, (drawn < part / 2).float(), images)


def _gaussian_blur(images: Tensor, pixels_of_224: float, generator: torch.Generator) -> Tensor:
    sigma = pixels_of_224 * images.shape[-1] / 224
    return gaussian_blur(images, 2 * max(round(4 * sigma), 1) + 1, sigma)


def _brightness(images: Tensor, more: float, generator: torch.Generator) -> Tensor:
    """With the value of HSV raised, which all three colours are proportional to."""
    value = images.amax(1, keepdim=True)
    raised = (value + more).clamp(max=1)
    return torch.where(value > 0, images * raised / value.clamp(min=1e-6), raised)


def _contrast(images: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    mean = images.mean((2, 3), keepdim=True)
    return (images - mean) * factor + mean


def _pixelate(images: Tensor, part: float, generator: torch.Generator) -> Tensor:
    size = max(int(images.shape[-1] * part), 1)
    return F.interpolate(F.interpolate(images, size=size, mode="area"), size=images.shape[-1], mode="nearest")


def _jpeg(images: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    found = []
    for image in (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy():
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=int(quality))
        found.append(np.asarray(Image.open(stream)))
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255


CORRUPTIONS: dict[str, tuple[Callable[[Tensor, float, torch.Generator], Tensor], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "gaussian_blur": (_gaussian_blur, (1, 2, 3, 4, 6)),
    "brightness": (_brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
}
"""Functions of images [N, 3, R, R] from 0 to 1, and what each takes at the strengths 1 to 5."""
