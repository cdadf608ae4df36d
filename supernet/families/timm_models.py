"""timm's models by name, with weights from their source or from a file, and each as a family of its own."""

from __future__ import annotations

import difflib
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import timm
import torch
from timm.models import load_state_dict, parse_model_name
from timm.models._hub import load_model_config_from_hf, load_model_config_from_path
from torch import Tensor, nn

from supernet.complexity import count_macs, count_parameters
from supernet.errors import first_line
from supernet.families.family import Family
from supernet.skeleton import build_skeleton
from supernet.space import Arch, SearchSpace


class TimmModel(NamedTuple):
    """A model that timm knows, not made yet."""

    name: str
    create: Callable[..., nn.Module]  # takes timm's other options, such as drop_rate
    input_size: int  # pixels a side
    config: Mapping[str, object]  # timm's `pretrained_cfg`: how images are prepared, among other things

    def load(self, weights: bool | str | os.PathLike = True) -> nn.Module:
        """The model with timm's weights, or with those in a file, adapted by timm to the number of classes.

        ValueError, in one line, if they cannot be read.
        """
        file = None if isinstance(weights, bool) else Path(weights)
        with _one_line(f"cannot load weights of {self.name!r} from {'its source' if file is None else file}"):
            overlay = None if file is None else _overlay(file, self.config["classifier"])
            options = self.create.keywords
            return timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay, **options)


def timm_model(
    name: str, num_classes: int | None = None, in_chans: int = 3, input_size: int | None = None
) -> TimmModel:
    """The model that `timm.create_model` makes of `name`: a name, with or without the tag of its weights, `hf-hub:ID`,
    or `local-dir:PATH`; with its own number of classes and size of images where they are None.

    ValueError for a name that timm does not know.
    """
    source, known = parse_model_name(name)
    options: dict[str, object] = {}
    if source:
        load_config = {"hf-hub": load_model_config_from_hf, "local-dir": load_model_config_from_path}[source]
        with _one_line(f"cannot read the configuration of {name!r}"):
            _, known, saved = load_config(known)
        options.update(saved or {})
    if not timm.is_model(known):
        similar = difflib.get_close_matches(known, timm.list_models(), n=3)
        raise ValueError(f"timm has no model {known!r}; similar ones: {', '.join(similar) or 'none'}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    options["in_chans"] = in_chans
    with torch.device("meta"):
        config = timm.create_model(known, **options).pretrained_cfg
    if input_size is None:
        input_size = config["input_size"][-1]
    elif config.get("fixed_input_size"):  # a transformer's positions are as many as its patches
        options["img_size"] = input_size
    return TimmModel(name, partial(timm.create_model, known, **options), input_size, config)


def just_timm(
    name: str = "mobilenetv3_small_050",
    *,
    pretrained: bool | str | os.PathLike = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    input_size: int | None = None,
) -> Family:
    """The family whose one architecture is the timm model `name` as it is, whatever that is made of.

    The options are those of `from_timm`. So a model can be trained, measured, exported and saved like a subnet.
    """
    model = timm_model(name, num_classes, in_chans, input_size)

    skeleton = build_skeleton(partial(_build, model), None)
    macs = count_macs(skeleton, (in_chans, model.input_size, model.input_size))
    return Family(
        space=SearchSpace({"resolution": (model.input_size,)}),
        build=partial(_build, model),
        num_classes=skeleton.num_classes,
        in_chans=in_chans,
        macs=partial(_constant, macs),
        parameters=partial(_constant, count_parameters(skeleton)),
        weights=partial(_weights, model, pretrained) if pretrained else None,
    )


def create_regularised(create: Callable[..., nn.Module], drop_rate: float, drop_path_rate: float) -> nn.Module:
    """`create()`, with the rates that are not 0 as options; ValueError if it does not take them."""
    rates = {name: rate for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)) if rate}
    try:
        return create(**rates)
    except TypeError as error:
        if rates:
            raise ValueError(f"this model does not take {' and '.join(rates)}; set them to 0 ({error})") from error
        raise


def _build(model: TimmModel, arch: Arch | None, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
    return create_regularised(model.create, drop_rate, drop_path_rate)


def _weights(model: TimmModel, weights: bool | str | os.PathLike) -> Mapping[str, Tensor]:
    return model.load(weights).state_dict()


def _constant(value: int, arch: Arch) -> int:
    return value


@contextmanager
def _one_line(message: str) -> Iterator[None]:
    """A ValueError with `message` for what goes wrong in reading a file or a download."""
    try:
        yield
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{message}: {first_line(error)}") from error


def _overlay(path: Path, classifier: str | Sequence[str]) -> dict[str, object]:
    """What makes timm's loader take the weights in this file, whose classifier has the given name."""
    if not path.is_file():
        raise ValueError(f"there is no file of weights {str(path)!r}; for a directory, the name is 'local-dir:{path}'")
    if path.suffix == ".npz":
        return {"file": str(path), "custom_load": True}
    weights = load_state_dict(str(path))
    overlay: dict[str, object] = {"state_dict": weights, "custom_load": False}
    head = weights.get(f"{classifier if isinstance(classifier, str) else classifier[0]}.weight")
    return overlay if head is None else {**overlay, "num_classes": len(head)}  # others are dropped by timm
