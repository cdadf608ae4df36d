"""What is written of an extracted subnet: how it is built again, what goes in and comes out, what is known of it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from supernet.artifacts import formats, provenance
from supernet.artifacts.reading import read_json, typed
from supernet.artifacts.timm_folder import KEYS, Preparation
from supernet.families import Family
from supernet.families.named import SPACES, make_family
from supernet.families.timm_models import self_contained
from supernet.space import Arch, Value
from supernet.training.data import Data, DataConfig, ImageData
from supernet.training.data.image_data import SEVERAL_LABELS
from supernet.training.data.images import evaluation_transform

COSTS = ("macs", "parameters")  # of the facts, those that are the network's own


@dataclass(frozen=True)
class Input:
    """A tensor that a subnet takes."""

    name: str
    shape: tuple[int, ...]  # of one example, without the dimension of the batch
    dtype: str  # torch's name of it, such as float32


@dataclass(frozen=True)
class SubnetConfig:
    """What config.json holds. The fields from `input_size` to `crop_pct` are of images, and None for other data."""

    space: str
    space_options: str
    arch: dict[str, Value]
    classes: tuple[str, ...] | None = None  # in the order of their labels, where the data name some
    input_size: tuple[int, int, int] | None = None  # channels, height, width in pixels
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    family_arguments: dict[str, Any] = field(default_factory=dict)  # what the data said to the family
    inputs: tuple[Input, ...] = ()  # none where they are no plain tensors
    output_names: tuple[str, ...] = ()
    facts: dict[str, float] = field(default_factory=dict)  # accuracy, latency_ms, macs, parameters, ...
    found: dict[str, str] = field(default_factory=dict)  # how it was found, and what it costs on which device
    versions: dict[str, str] = field(default_factory=provenance.versions)
    space_sha256: str | None = None  # of the file with the space's function, if that is not of this package
    weights_sha256: str | None = None  # of the file with the weights, as long as they are in a file alone

    @classmethod
    def of(cls, space: str, space_options: str, arch: Arch, data: Data) -> SubnetConfig:
        """That of the architecture `arch` of a space, for `data`.

        Options that name a folder, a file or a model of the hub are replaced by what these say.
        """
        space_options = self_contained(space, space_options)
        family = make_family(space, space_options, data.family_arguments)
        return cls(
            space=space,
            space_options=space_options,
            arch=dict(arch),
            classes=data.classes,
            **_of_images(family, arch, data),
            family_arguments=dict(data.family_arguments),
            inputs=_inputs(family, arch),
            output_names=tuple(family.task.output_names),
            facts={"macs": family.macs(arch), "parameters": family.parameters(arch)},
            space_sha256=SPACES.source_digest(space),
        )

    def content(self) -> dict[str, Any]:
        """What is written as JSON, its format included."""
        return {"format": formats.SUBNET.label, **dataclasses.asdict(self)}

    def metadata(self) -> dict[str, str]:
        """What whoever has nothing but a file with the network has to know of it, each as JSON."""
        names = ("classes", "input_size", "mean", "std", "interpolation", "crop_pct", "space", "arch")
        values = {name: getattr(self, name) for name in names} | {SEVERAL_LABELS: self.several_labels or None}
        values |= {name: self.facts.get(name) for name in COSTS}
        return {name: json.dumps(value) for name, value in values.items() if value is not None}

    @property
    def several_labels(self) -> bool:
        """Whether it says of each class by itself whether an image shows it."""
        return bool(self.family_arguments.get(SEVERAL_LABELS, False))

    @property
    def prepared(self) -> Preparation | None:
        """How its images are prepared; None of a subnet that takes none."""
        if self.input_size is None:
            return None
        return Preparation(self.input_size, self.mean, self.std, self.interpolation, self.crop_pct)

    def preparing(self, data: DataConfig) -> DataConfig:
        """`data`, whose images are prepared as this subnet, one of images, wants them, at whatever resolution."""
        own = {name: getattr(self, name) for name in ("mean", "std", "interpolation", "crop_pct")}
        return dataclasses.replace(data, **own)

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self.inputs)

    def example(self) -> tuple[Tensor, ...]:
        """What the module is called with, for one example: tensors on the meta device, of which shapes and types alone
        matter. ValueError where its inputs are no plain tensors."""
        if not self.inputs:
            raise ValueError(
                f"a subnet of {self.space} takes other inputs than plain tensors, as no exported file does: leave such "
                "files out (onnx=False, --no-onnx)"
            )
        return tuple(torch.empty(1, *own.shape, dtype=getattr(torch, own.dtype), device="meta") for own in self.inputs)

    def family(self) -> Family:
        """The family, whose code is imported."""
        return make_family(self.space, self.space_options, self.family_arguments)

    def build(self) -> nn.Module:
        """The plain module, with fresh weights."""
        family = self.family()
        return family.build(family.space.validate(self.arch))

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """What turns any PIL image into the module's input [C, H, W], as in training and evaluation
        (`supernet.training.data.images`); ValueError for a subnet that takes no images."""
        if self.input_size is None:
            raise ValueError(f"the subnet takes {', '.join(self.input_names)}, whose preparation its data know")
        return evaluation_transform(self.input_size[-1], self.interpolation, self.crop_pct, self.mean, self.std)


def read_subnet_config(directory: Path) -> SubnetConfig:
    """The configuration of the subnet in `directory`; ValueError, naming the file, if it cannot be read."""
    path = directory / "config.json"
    return subnet_config(read_json(path, dict, "configuration of a subnet"), path)


def subnet_config(content: Mapping[str, Any], path: Path) -> SubnetConfig:
    """The configuration that `content` is as JSON, its format included; ValueError, naming the file `path` that it is
    from, if it is none."""
    values = {name: value for name, value in content.items() if name not in ("format", *KEYS)}
    values = formats.SUBNET.upgraded(values, content.get("format", 1), path)
    try:
        return typed(SubnetConfig, values)
    except ValueError as error:
        raise ValueError(f"{path} is no configuration of a subnet: {error}") from error


def _of_images(family: Family, arch: Arch, data: Data) -> dict[str, Any]:
    """The fields of a configuration that are of images, none for other data."""
    resolution = family.resolution(arch)
    if not isinstance(data, ImageData) or resolution is None:
        return {}
    return {
        "input_size": (family.in_chans, resolution, resolution),
        "mean": data.config.mean,
        "std": data.config.std,
        "interpolation": data.config.interpolation,
        "crop_pct": data.config.crop_pct,
    }


def _inputs(family: Family, arch: Arch) -> tuple[Input, ...]:
    """What the subnet takes, under the names of its task; empty where that is anything else than a tensor each."""
    example = family.example(arch)
    if not all(isinstance(own, Tensor) for own in example) or len(example) != len(family.task.input_names):
        return ()
    return tuple(
        Input(name, tuple(own.shape[1:]), str(own.dtype).removeprefix("torch."))
        for name, own in zip(family.task.input_names, example)
    )
