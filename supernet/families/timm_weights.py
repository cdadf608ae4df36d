"""Where a timm model's weights come from, whether they are of that model, and for which classes."""

from __future__ import annotations

import logging
import os
import pickle
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import torch
from safetensors import SafetensorError
from timm.data import ImageNetInfo, infer_imagenet_subset
from timm.models._hub import (
    check_cached_file,
    load_model_config_from_hf,
    load_model_config_from_path,
    load_state_dict_from_path,
)
from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys, register_module_module_registration_hook

from supernet.artifacts.weights import check_names, read_weights, starts_with, tensors_in, without_prefix
from supernet.errors import first_line

logger = logging.getLogger(__name__)

SECONDS = 10.0  # to wait for a server's first answer
HUB_FILES = ("model.safetensors", "pytorch_model.bin")  # the names that timm asks the hub for


def load_pretrained(
    create: Callable[..., nn.Module],
    name: str,
    config: Mapping[str, Any],
    num_classes: int,
    weights: bool | str | os.PathLike = True,
    classifier: bool | None = None,
) -> nn.Module:
    """The timm model that `create()` makes, with the weights that its `config` says where to find, or those in the file
    `weights`.

    timm adapts them: it reads the formats of the models' authors, fits the first convolution to the images' channels
    and positions to their size. A beginning that all names have in common, such as "module.", is taken off
    (`supernet.artifacts.weights.without_prefix`). The classifier starts anew where there is none for `num_classes`,
    which the log says; if `classifier` is true that is an error, if it is false the classifier starts anew in any case.

    ValueError, in one line, if weights cannot be read, or if any other tensor is missing, left over or of another
    shape (`supernet.artifacts.weights.check_names`).
    """
    is_file = not isinstance(weights, bool)
    source = f"{str(weights)!r}" if is_file else f"what {name!r} names"
    modules = _names(config["classifier"])
    overlay: dict[str, Any] = {}
    found = _given(config, weights)
    if found is not None:
        with torch.device("meta"):
            own = create().state_dict()
        found = without_prefix(found, own, source)
        overlay = {"state_dict": found, "custom_load": False, "source": "", "label_offset": 0}
        head = next((found[key] for key in (f"{module}.weight" for module in modules) if key in found), None)
        overlay["num_classes"] = num_classes if head is None else len(head)  # timm drops those of another number
    elif is_file:  # in the authors' own format for JAX
        overlay = {"file": str(weights), "custom_load": True, "source": ""}
    else:
        check_reachable(config, name)
    if classifier is False:
        overlay["num_classes"] = -1  # timm drops what is of another number
    failure = f"cannot load weights of {name!r} from {source}"
    if found is not None:
        failure += _positions(found, own)
    try:
        model, left = _load(create, overlay, num_classes, failure)
    except ValueError as error:
        if found is None or head is not None or not any(f"size mismatch for {m}." in str(error) for m in modules):
            raise
        # the classifier, under a name that timm's converter knows, is of another number of classes
        model, left = _load(create, overlay | {"num_classes": -1}, num_classes, failure)
    model.pretrained_cfg.pop("state_dict", None)  # which would be kept, and saved, with the model
    fresh = [key for key in left.missing if starts_with(key, modules)]
    stem = _names(config.get("first_conv")) if model.in_chans != config["input_size"][0] else ()
    unexpected = [] if found is None else left.unexpected  # of its own weights, timm knows what is left out
    check_names(model, left.missing, unexpected, source, (*modules, *stem), leave_out=True)
    if fresh and classifier:
        raise ValueError(f"{source} has no classifier for {num_classes} classes, but it needs {fresh[0]!r}")
    if fresh and is_file and classifier is None:
        logger.warning("%s has no classifier for %d classes: %s start anew", source, num_classes, ", ".join(fresh))
    return model


def _positions(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """What a message says of the positions in a file, if they are of another number than a network's `own`."""
    names = (name for name in found if name.endswith(("pos_embed", "positional_embedding")))
    name = next(names, None)
    if name is None or "pos_embed" not in own or found[name].shape == own["pos_embed"].shape:
        return ""
    return f", whose positions {name!r} are {list(found[name].shape)}, to be resized to {list(own['pos_embed'].shape)}"


def _load(
    create: Callable[..., nn.Module], overlay: Mapping[str, Any], num_classes: int, failure: str
) -> tuple[nn.Module, _Left]:
    with _one_line(failure), _watched() as left:
        return create(pretrained=True, pretrained_cfg_overlay=dict(overlay), num_classes=num_classes), left


def read_source(source: str, identifier: str, name: str) -> tuple[str, dict[str, Any]]:
    """The architecture, and the arguments of `timm.create_model`, that the configuration at `hf-hub` or in a
    `local-dir` says; ValueError, in one line, if it cannot be read."""
    if source == "hf-hub":
        _check_hub(identifier, ("config.json",), f"the configuration of {name!r}")
    load = {"hf-hub": load_model_config_from_hf, "local-dir": load_model_config_from_path}[source]
    with _one_line(f"cannot read the configuration of {name!r}"):
        config, known, arguments = load(identifier)
    return known, {"pretrained_cfg": config, **(arguments or {})}


def own_classes(config: Mapping[str, Any], wanted: Sequence[str]) -> tuple[str, ...] | None:
    """The names of the classes that pretrained weights tell apart: `wanted` itself if those are the same classes, by
    the names or by the descriptions that timm knows of them, and () if they are certainly others.

    timm's weights for as many classes as a version of ImageNet has are for ImageNet's classes, by WordNet's numbers.
    None where nothing says: in a folder without names of classes, and where `wanted` are bare numbers, of a dataset
    that does not tell its classes.
    """
    if tuple(wanted) == tuple(map(str, range(config["num_classes"]))):
        return None
    names, descriptions = config.get("label_names"), config.get("label_descriptions") or {}
    if not names and config.get("source") == "local-dir":
        return None
    if not names and (subset := infer_imagenet_subset(dict(config))):
        info = ImageNetInfo(subset)
        names, descriptions = info.label_names(), info.label_descriptions(as_dict=True)
    names = tuple(names.values() if isinstance(names, Mapping) else names or ())
    described = tuple(descriptions.get(name, name) for name in names)
    return tuple(wanted) if tuple(wanted) in (names, described) else names


def check_reachable(config: Mapping[str, Any], name: str) -> None:
    """ValueError, within seconds, if the weights that `config` names are neither in a cache nor to be had.

    huggingface_hub itself tries five times, which takes a minute, and has no setting for that.
    """
    if identifier := config.get("hf_hub_id"):
        files = [config["hf_hub_filename"]] if config.get("hf_hub_filename") else HUB_FILES
        _check_hub(identifier, files, f"weights of {name!r}")
    elif (url := config.get("url")) and not check_cached_file(url, check_hash=False):
        _check_server(url if isinstance(url, str) else url[0], f"weights of {name!r}")


def _check_hub(identifier: str, files: Sequence[str], what: str) -> None:
    repository, _, revision = identifier.partition("@")
    known = [huggingface_hub.try_to_load_from_cache(repository, file, revision=revision or None) for file in files]
    if not any(isinstance(path, str) for path in known) and not huggingface_hub.constants.HF_HUB_OFFLINE:
        _check_server(huggingface_hub.constants.ENDPOINT, what)


def _check_server(url: str, what: str) -> None:
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):  # its certificates are another matter, and not those that are used
            return
        raise ValueError(
            f"cannot get {what}: {url} cannot be reached ({reason}); name a file of weights or a folder "
            "('local-dir:PATH') instead, or a cache that holds them (HF_HOME, TORCH_HOME)"
        ) from error


def _given(config: Mapping[str, Any], weights: bool | str | os.PathLike) -> dict[str, Tensor] | None:
    """The tensors in a file or a folder; None for those that timm gets itself."""
    if not isinstance(weights, bool):
        return None if Path(weights).suffix == ".npz" and Path(weights).is_file() else read_weights(weights)
    if config.get("source") == "local-dir":
        with _one_line(f"cannot read the weights in {config['file']}"):
            return tensors_in(load_state_dict_from_path(config["file"]), config["file"])
    return None


def _names(modules: str | Sequence[str] | None) -> tuple[str, ...]:
    return (modules,) if isinstance(modules, str) else tuple(modules or ())


class _Left(NamedTuple):
    """Names of tensors that loading weights left over."""

    missing: list[str]
    unexpected: list[str]


@contextmanager
def _watched() -> Iterator[_Left]:
    """Within the context, what loading into a module that is made within it leaves over is kept instead of raised, or
    of told to the log alone: timm's models load their weights as they are made."""
    left, handles = _Left([], []), {}

    def loaded(module: nn.Module, keys: _IncompatibleKeys) -> None:
        for kept, names in zip(left, keys):
            kept.extend(names)
            names.clear()

    def made(module: nn.Module, name: str, child: nn.Module | None) -> None:
        if module not in handles:
            handles[module] = module.register_load_state_dict_post_hook(loaded)

    handle = register_module_module_registration_hook(made)
    try:
        yield left
    finally:
        for each in (handle, *handles.values()):
            each.remove()


@contextmanager
def _one_line(message: str) -> Iterator[None]:
    """A ValueError with `message` for what goes wrong in reading a file or a download, or in adapting its content."""
    try:
        yield
    except (
        *(OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError),
        *(ValueError, KeyError, IndexError, AttributeError, TypeError, AssertionError),  # of timm's adaptation
    ) as error:
        raise ValueError(f"{message}: {first_line(error)}") from error
