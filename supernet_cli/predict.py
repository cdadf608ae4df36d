"""What a network says of photographs: the most probable classes of each file.

    supernet predict --subnet subnets/mine photo.jpg
    supernet predict --subnet subnets/mine holidays/ --csv found.csv --json found.json
    supernet predict --subnet mobilenetv3_large_100 photo.jpg --top 3

The network is the folder of a saved subnet, a file of `supernet compress`, an ONNX file of `supernet extract`, which
says itself how images are prepared and what the classes are, or the name of a timm model with its
pretrained weights and classes. Of a folder all images at any depth are taken. Files of any format and mode that Pillow
reads are prepared as the network was trained: turned upright by their EXIF orientation, of 16 bits of grey the upper 8,
on white where they are transparent. A file that cannot be read is named, the others are answered, and the exit code is
1. A second for a photograph, most of it for starting; the rest is the network's own time.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from compress.container import load_compressed
from supernet.answers.photographs import Recognition, image_files, predictions
from supernet.artifacts import provenance
from supernet.artifacts.atomic import write_atomically, write_json
from supernet.artifacts.onnx_network import load_onnx
from supernet.artifacts.subnet import Subnet, load_network
from supernet.training.data import DataConfig
from supernet.training.execution import pick_device, tf32
from supernet_cli.command_line import DeviceFlag, console
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    places: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Photographs, and folders of such."""
    subnet: str
    """Folder of a saved subnet, a compressed file, an ONNX file, or the name of a timm model."""
    top: int = 5
    """Classes to say of each, at most."""
    csv: Path | None = None
    """File for a table: a line for each photograph, a column for each class and each probability."""
    json: Path | None = None
    """File for the same as JSON."""
    batch_size: int = 32
    """Photographs that run through the network at once."""
    workers: int = 0
    """Processes that read photographs; 0 reads in this one."""
    device: DeviceFlag = "auto"
    space: str | None = None
    """The space of a saved subnet, said again if it is code of your own: path/to/file.py:function."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    if not arguments.places:
        raise ValueError("say which photographs: files or folders")
    for name in ("top", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name} is at least 1, not {getattr(arguments, name)}")
    files = image_files(arguments.places)
    device = pick_device(arguments.device)
    subnet = opened(arguments.subnet, arguments.space)
    subnet.model.to(device)
    found = []
    with tf32(False):
        for prediction in predictions(
            subnet, files, arguments.top, batch_size=arguments.batch_size, workers=arguments.workers
        ):
            found.append(prediction)
            console.print(line(prediction), highlight=False, markup=False, soft_wrap=True)
    if arguments.csv:
        write_csv(arguments.csv, found)
    if arguments.json:
        content = {
            "command": provenance.command(),
            "date": provenance.today(),
            "subnet": arguments.subnet,
            "rows": [as_json(prediction) for prediction in found],
        }
        write_json(arguments.json, content)
    if failed := sum(prediction.error is not None for prediction in found):
        raise OSError(f"{failed} of {len(found)} files cannot be read as images")


def opened(name: str, space: str | None = None) -> Subnet:
    """The network that `name` stands for."""
    if name.endswith(".onnx"):
        return load_onnx(name)
    if os.path.isfile(name):
        return load_compressed(name, space=space)
    return load_network(name, DataConfig(), (), space=space)


def line(prediction: Recognition) -> str:
    if prediction.error is not None:
        return prediction.error
    pairs = zip(prediction.classes, prediction.probabilities)
    return f"{prediction.file}: " + ", ".join(f"{name} {probability:.1%}" for name, probability in pairs)


def as_json(prediction: Recognition) -> dict[str, object]:
    if prediction.error is not None:
        return {"file": prediction.file, "error": prediction.error}
    pairs = zip(prediction.classes, prediction.probabilities)
    return {"file": prediction.file, "classes": [{"class": name, "probability": p} for name, p in pairs]}


def write_csv(path: Path, found: Sequence[Recognition]) -> None:
    """A line for each: file, class_1, probability_1 and so on, error."""
    count = max(len(prediction.classes) for prediction in found)
    numbered = [f"{name}_{rank}" for rank in range(1, count + 1) for name in ("class", "probability")]
    with write_atomically(path) as temporary, temporary.open("w", newline="") as file:
        rows = csv.DictWriter(file, ["file", *numbered, "error"], restval="")
        rows.writeheader()
        for prediction in found:
            values = [value for pair in zip(prediction.classes, prediction.probabilities) for value in pair]
            rows.writerow({"file": prediction.file, **dict(zip(numbered, values)), "error": prediction.error or ""})
