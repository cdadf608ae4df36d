"""timm's and torchvision's models by name, with weights from their source or from a file, and each as a family of its
own."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
from timm.models import filter_pretrained_cfg, parse_model_name
from torch import Tensor, nn

from supernet.artifacts.reading import parse_json
from supernet.costs import count_macs, count_parameters
from supernet.families.family import Family
from supernet.families.text.bert import bert_options
from supernet.families.text.gpt2 import gpt2_options
from supernet.families.timm_weights import load_pretrained, own_classes, read_source
from supernet.families.torchvision_models import PREFIX, create_torchvision, torchvision_names
from supernet.skeleton import build_skeleton, build_uninitialised
from supernet.space import Arch, SearchSpace

SPACES = ("timm", "from_timm", "vit")  # whose models have names of timm's
SIZES_OF = {"text_encoder": bert_options, "text_decoder": gpt2_options}  # what pretrained weights say of a space
LABELS = ("label_names", "label_descriptions")  # of timm's configurations: long, and no matter to a model


class TimmModel(NamedTuple):
    """A model that timm or torchvision knows, not made yet."""

    name: str
    create: Callable[..., nn.Module]  # takes timm's other options, such as drop_rate
    input_size: int  # pixels a side
    num_classes: int
    config: Mapping[str, Any]  # timm's `pretrained_cfg`: how images are prepared, where weights are, among other things

    def load(self, weights: bool | str | os.PathLike = True, *, classifier: bool | None = None) -> nn.Module:
        """The model with timm's weights, or with those in a file, adapted by timm to images and number of classes.

        All tensors have to be there but those of the classifier, which starts anew where there is none for as many
        classes; with `classifier` true it has to be there as well, with false it starts anew in any case. ValueError,
        in one line, if weights cannot be read or do not fit.
        """
        return load_pretrained(self.create, self.name, self.config, self.num_classes, weights, classifier)

    def classes(self, weights: bool | str | os.PathLike, wanted: Sequence[str] = ()) -> tuple[str, ...] | None:
        """The names of the classes that the classifier in `weights` tells apart, None if nothing says: see
        `timm_weights.own_classes`. A file says nothing."""
        return own_classes(self.config, wanted) if isinstance(weights, bool) else None

    def self_contained(self) -> dict[str, Any]:
        """The options `name` and `saved_config` of `timm_model` that give this model without its folder or a
        connection."""
        cfg = {key: value for key, value in self.config.items() if key not in LABELS}
        args = {
            key: value for key, value in self.create.keywords.items() if key not in ("pretrained_cfg", "num_classes")
        }
        saved = {"model_args": args, "pretrained_cfg": filter_pretrained_cfg(cfg, remove_source=True)}
        return {"name": self.create.args[0], "saved_config": json.loads(json.dumps(saved))}


def timm_model(
    name: str,
    num_classes: int | None = None,
    in_chans: int = 3,
    input_size: int | None = None,
    saved_config: Mapping[str, Any] | None = None,
) -> TimmModel:
    """The model that `timm.create_model` makes of `name`: a name, with or without the tag of its weights, `hf-hub:ID`,
    or `local-dir:PATH`; or torchvision's, of the name in `torchvision/NAME`; with its own number of classes and size of
    images where `num_classes` and `input_size` are None.

    `saved_config` is what such an ID or PATH says beside the name, as `TimmModel.self_contained` gives it.
    ValueError for a name that is not known, and for a size that images cannot have.
    """
    if not isinstance(name, str):
        raise ValueError(f"name is that of a model of timm's, such as 'resnet18', not {name!r}")
    if input_size is not None and not (isinstance(input_size, int) and input_size > 0):
        raise ValueError(f"input_size is a number of pixels, at least 1, not {input_size!r}")
    options: dict[str, object] = {}
    if name.startswith(PREFIX):
        source, known = None, name.removeprefix(PREFIX)
        create, names, whose = (
            create_torchvision,
            torchvision_names(),
            "torchvision has no model for images of any size",
        )
    elif "/" in name and ":" not in name:
        raise ValueError(
            f"{name!r} is neither a folder with a subnet nor a model's name; a model as timm saves it is "
            "local-dir:PATH, or hf-hub:ID"
        )
    else:
        source, known = parse_model_name(name)
        create, names = timm.create_model, timm.list_models()
        whose = "timm has no model"
    if source:
        known, options = read_source(source, known, name)
    elif saved_config is not None:
        options = {"pretrained_cfg": dict(saved_config["pretrained_cfg"]), **saved_config["model_args"]}
    if not (known in names or (create is timm.create_model and timm.is_model(known))):
        similar = difflib.get_close_matches(known, names, n=3)
        raise ValueError(f"{whose} {known!r}; similar ones: {', '.join(similar) or 'none'}")
    if num_classes is not None:
        options["num_classes"] = num_classes
    options["in_chans"] = in_chans
    with torch.device("meta"):
        model = build_uninitialised(partial(create, **options), known)
    config = model.pretrained_cfg
    if input_size is None:
        input_size = config["input_size"][-1]
    elif config.get("fixed_input_size"):  # a transformer's positions are as many as its patches
        options["img_size"] = input_size
    return TimmModel(name, partial(create, known, **options), input_size, model.num_classes, config)


def self_contained(space: str, options: str) -> str:
    """The `options` of a `space`, a JSON object, so that a saved model needs no folder, file or connection for them.

    Where a timm model's `name` is a folder or an ID, it is replaced by what the folder or ID says; `pretrained`, which
    names weights to start from, is left out if it is a file or belongs to such a name: the saved model has weights of
    its own.
    """
    if space not in (*SPACES, *SIZES_OF):
        return options
    given, options = options, parse_json(options, dict)
    if space in SIZES_OF:
        pretrained = options.pop("pretrained", None)
        return json.dumps(SIZES_OF[space](pretrained) | options) if pretrained else given
    has_source = ":" in str(options.get("name", ""))
    if has_source:
        options |= timm_model(options["name"]).self_contained()
    if has_source or not isinstance(options.get("pretrained", True), bool):
        options.pop("pretrained", None)
    return given if options == json.loads(given) else json.dumps(options)


def just_timm(
    name: str = "mobilenetv3_small_050",
    *,
    pretrained: bool | str | os.PathLike = False,
    num_classes: int | None = None,
    in_chans: int = 3,
    input_size: int | None = None,
    saved_config: Mapping[str, Any] | None = None,
) -> Family:
    """The family whose one architecture is the timm model `name` as it is, whatever that is made of.

    The options are those of `from_timm`. So a model can be trained, measured, exported and saved like a subnet.
    """
    model = timm_model(name, num_classes, in_chans, input_size, saved_config)

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
        weights_classes=partial(model.classes, pretrained),
    )


def create_regularised(create: Callable[..., nn.Module], drop_rate: float, drop_path_rate: float) -> nn.Module:
    """`create()`, with the rates that are not 0 as options; ValueError if `create` does not take them."""
    rates = {name: rate for name, rate in (("drop_rate", drop_rate), ("drop_path_rate", drop_path_rate)) if rate}
    try:
        return create(**rates)
    except TypeError as error:
        if rates:
            raise ValueError(f"this model does not take {' and '.join(rates)}; set them to 0 ({error})") from error
        raise


def _build(model: TimmModel, arch: Arch | None, drop_rate: float = 0.0, drop_path_rate: float = 0.0) -> nn.Module:
    return create_regularised(model.create, drop_rate, drop_path_rate)


def _weights(model: TimmModel, weights: bool | str | os.PathLike, **options: bool) -> Mapping[str, Tensor]:
    return model.load(weights, **options).state_dict()


def _constant(value: int, arch: Arch) -> int:
    return value
