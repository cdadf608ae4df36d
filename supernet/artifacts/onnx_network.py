"""An ONNX file that says of itself which classes it tells apart and how images are prepared, as a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from supernet.artifacts.export import onnx_runner
from supernet.artifacts.reading import typed
from supernet.artifacts.subnet import Subnet
from supernet.artifacts.subnet_config import COSTS, Input, SubnetConfig
from supernet.errors import first_line
from supernet.imports import require
from supernet.training.data.image_data import SEVERAL_LABELS

# N images, C channels, R resolution in pixels, K classes

NEEDED = ("classes", "input_size", "mean", "std", "interpolation", "crop_pct")


class OnnxNetwork(nn.Module):
    """The network in the ONNX file `path`, from images [N, C, R, R] to logits [N, K], on the CPU wherever the images
    are."""

    def __init__(self, path: str | Path, batch_size: int | None = None) -> None:
        super().__init__()
        self.path = Path(path)
        self._run, self._batch_size = onnx_runner(path), batch_size

    def forward(self, images: Tensor) -> Tensor:
        parts = images.cpu().split(self._batch_size or len(images))
        return torch.cat([self._run(part) for part in parts]).to(images.device)


def load_onnx(path: str | Path) -> Subnet:
    """The network in an ONNX file that `supernet extract` wrote, with the configuration that its metadata say, whose
    facts lack what they do not say.

    ValueError, naming the file, if it cannot be read or says no classes or no preparation of images;
    ModuleNotFoundError without the extra `onnx`.
    """
    onnxruntime = require("onnxruntime")
    if not Path(path).is_file():
        raise ValueError(f"there is no ONNX file {path}")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # of classes of its own, which have no other in common
        raise ValueError(f"{path} is no ONNX file that ONNX Runtime reads: {first_line(error)}") from error
    said = session.get_modelmeta().custom_metadata_map
    if missing := [name for name in NEEDED if name not in said]:
        raise ValueError(
            f"{path} does not say its {missing[0]}, as files of supernet extract do: take its folder instead"
        )
    try:
        values = {name: json.loads(text) for name, text in said.items() if name in (*NEEDED, "space", "arch")}
        arguments, facts = (
            {name: json.loads(said[name]) for name in names if name in said} for names in ((SEVERAL_LABELS,), COSTS)
        )
        defaults = {"space": "", "arch": {}, "space_options": "{}", "family_arguments": arguments, "facts": facts}
        config = typed(SubnetConfig, {**defaults, **values})
        config.transform()
        (feed,) = session.get_inputs()
        inputs, outputs = (Input(feed.name, config.input_size, "float32"),), session.get_outputs()
        config = replace(config, inputs=inputs, output_names=tuple(output.name for output in outputs))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} says something else than how images are prepared: {first_line(error)}") from error
    size = feed.shape[0]
    return Subnet(OnnxNetwork(path, size if isinstance(size, int) else None).eval(), config)
