"""The network and images of several benchmarks: EfficientNet-Lite0 as published, and 700 photographs of ImageNet."""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Sequence
from csv import DictReader
from io import BytesIO
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from supernet import Supernet
from supernet.families import Family, from_timm

MODEL = "tf_efficientnet_lite0"


def supernet(weights: Path) -> tuple[Family, Supernet]:
    """The published network as a supernet; its tensors are in the order of timm's."""
    model = timm.create_model(MODEL)
    tensors = [t for n, t in torch.load(weights, weights_only=True).items() if "num_batches" not in n]
    names = [name for name in model.state_dict() if "num_batches" not in name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(model.state_dict() | dict(zip(names, tensors, strict=True)), path)
        family = from_timm(MODEL, width=(0.75, 0.9, 1.0), depth=(1.0,), pretrained=path)
        return family, family.supernet()


def photographs(data: Path) -> tuple[list[Image.Image], Tensor]:
    with (data / "photos" / "labels.csv").open() as file:
        labels = {row["file"]: int(row["label"]) for row in DictReader(file)}
    images, found = [], []
    with tarfile.open(data / "photos" / "images.tar") as tar:
        for member in sorted(filter(tarfile.TarInfo.isfile, tar), key=lambda member: member.name):
            images.append(Image.open(BytesIO(tar.extractfile(member).read())).convert("RGB"))
            found.append(labels[Path(member.name).name])
    return images, torch.tensor(found)


def prepared(photos: Sequence[Image.Image], size: int) -> Tensor:
    transform = create_transform(size, interpolation="bicubic", crop_pct=0.875, mean=(0.5,) * 3, std=(0.5,) * 3)
    return torch.stack([transform(photo) for photo in photos]).contiguous(memory_format=torch.channels_last)
