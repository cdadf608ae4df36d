"""What a subnet is worth: its accuracy with BatchNorm statistics of its own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from supernet.calibration import calibrate
from supernet.data import resize
from supernet.space import Arch
from supernet.supernet import Supernet

# N images, C channels, R resolution in pixels


def accuracy(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Part of the images [N, C, R, R] whose highest logit is that of their label [N], from 0 to 1."""
    device = next(model.parameters()).device
    model.eval()
    correct = count = 0
    with torch.inference_mode():
        for images, labels in batches:
            correct += (model(images.to(device)).argmax(1).cpu() == labels).sum().item()
            count += len(labels)
    return correct / count


def calibrated_subnet(
    net: Supernet, arch: Arch, resolution: int, calibration_images: Tensor, batch_size: int = 256
) -> nn.Module:
    """The subnet `arch` as a plain module in eval mode, BatchNorm recalibrated on images resized to `resolution`."""
    model = net.extract(arch).eval()
    device = next(model.parameters()).device
    calibrate(model, [resize(part.to(device), resolution) for part in calibration_images.split(batch_size)])
    return model
