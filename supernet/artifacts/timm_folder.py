"""A subnet's folder as one that timm reads: `timm.create_model("local-dir:FOLDER", pretrained=True)`.

timm builds a model from a name that it knows and arguments. Subnets whose sizes vary from layer to layer are none of
these models; such a folder is read by `supernet.artifacts.subnet.load_subnet` alone.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from timm.models import ResNet, VisionTransformer
from timm.models._hub import save_config_for_hf
from torch import nn

from distill.untouched import untouched

KEYS = (
    *("architecture", "num_classes", "num_features", "global_pool", "label_names", "model_args", "pretrained_cfg"),
    "label_descriptions",
)
"""What timm reads of a folder's config.json, and `load_subnet` does not."""


class Preparation(NamedTuple):
    """How a model's images are prepared, under timm's names."""

    input_size: tuple[int, int, int]  # channels, height, width in pixels
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_pct: float


def timm_config(model: nn.Module, prepared: Preparation, classes: tuple[str, ...] | None) -> dict[str, Any] | None:
    """What timm wants in config.json to build `model`, which images prepared like that go into, by a name and
    arguments; None if none of those that are tried gives a model with the same tensors that computes the same, bit for
    bit."""
    named = (getattr(model, "pretrained_cfg", None) or {}).get("architecture", "")
    if not timm.is_model(named):
        return None
    for arguments in _arguments(model):
        content = _content(model, arguments, prepared, classes)
        if content is not None and _gives(content, model, prepared):
            return content
    return None


def _arguments(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Beside those that the model was made with."""
    yield {}
    if type(model) is ResNet:
        yield {"layers": [len(getattr(model, f"layer{stage}")) for stage in (1, 2, 3, 4)]}
    if type(model) is VisionTransformer:
        block = model.blocks[0]
        yield {
            "embed_dim": model.embed_dim,
            "depth": len(model.blocks),
            "num_heads": block.attn.num_heads,
            "mlp_ratio": block.mlp.fc1.out_features / model.embed_dim,
            "patch_size": model.patch_embed.patch_size[0],
        }


def _content(
    model: nn.Module, arguments: dict[str, Any], prepared: Preparation, classes: tuple[str, ...] | None
) -> dict[str, Any] | None:
    """What timm writes itself, without arguments that are no JSON, such as classes; None if it cannot."""
    model = copy.copy(model)  # which has the same tensors
    given = getattr(model, "_model_args", {})
    model._model_args = {name: value for name, value in given.items() if _is_json(value)}
    labels = {"label_names": list(classes)} if classes else {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        try:
            save_config_for_hf(model, str(path), labels, arguments, prepared._asdict())
        except (ValueError, AttributeError):  # arguments that disagree, models that lack what timm asks for
            return None
        return json.loads(path.read_text())


def _is_json(value: object) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True


def _gives(content: dict[str, Any], model: nn.Module, prepared: Preparation) -> bool:
    """Whether timm makes of `content` a model that computes what `model` does."""

    def create() -> nn.Module:
        cfg = {**content["pretrained_cfg"], "num_classes": content["num_classes"]}
        return timm.create_model(content["architecture"], pretrained_cfg=cfg, **content.get("model_args", {}))

    own = model.state_dict()
    try:
        with torch.device("meta"):
            shapes = {name: tensor.shape for name, tensor in create().state_dict().items()}
        if shapes != {name: tensor.shape for name, tensor in own.items()}:
            return False
        with torch.random.fork_rng(devices=()):
            made = create()
    except (TypeError, ValueError, AssertionError, RuntimeError):  # of arguments that this model does not take
        return False
    made.load_state_dict(own)
    images = torch.rand(2, *prepared.input_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return torch.equal(untouched(made.eval(), images), untouched(model.eval(), images))
