"""Teachers by name or path, checked to be one for the images and classes at hand."""

from __future__ import annotations

from pathlib import Path

import timm
import torch
from torch import nn

from supernet.runs import load_run
from supernet.subnet import load_subnet, take_out


def load_teacher(name: str, num_classes: int, image_size: tuple[int, int, int]) -> nn.Module:
    """The teacher `name`, in eval mode: a pretrained model of timm's, or what lies at a path.

    A folder is an extracted subnet, or a training run, whose largest subnet is the teacher. ValueError, saying what was
    found, if there is none of that name, or if it is for other classes or images than `image_size`, channels, height
    and width.
    """
    path = Path(name)
    meant_for: tuple[int, ...] = image_size
    if (path / "supernet.safetensors").exists():
        run = load_run(path)
        model, config = take_out(run, run.family.space.largest)
        meant_for = config.input_size
    elif path.is_dir():
        model, config = load_subnet(path)
        meant_for = config.input_size
    elif timm.is_model(name.partition(".")[0]):
        model = timm.create_model(name, pretrained=True)
    else:
        near = ", ".join(timm.list_models(f"{name}*")[:5])
        raise ValueError(
            f"there is no teacher {name!r}: it is a folder of an extracted subnet or a training run, or a model of "
            f"timm's{f', such as {near}' if near else ''}"
        )
    if tuple(meant_for) != tuple(image_size):
        raise ValueError(f"the teacher {name} is for images of {_size(meant_for)}, not {_size(image_size)}")
    return check_teacher(model.eval(), name, num_classes, image_size)


def check_teacher(model: nn.Module, name: str, num_classes: int, image_size: tuple[int, int, int]) -> nn.Module:
    """`model` itself; ValueError if it does not take such images or answers with other classes."""
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            logits = model(torch.zeros(2, *image_size, device=parameter.device, dtype=parameter.dtype))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"the teacher {name} does not take images of {_size(image_size)}: {reason}") from error
    if logits.shape[1:] != (num_classes,):
        raise ValueError(f"the teacher {name} has {logits.shape[-1]} classes, the images {num_classes}")
    return model


def _size(image_size: tuple[int, ...]) -> str:
    return " x ".join(map(str, image_size))
