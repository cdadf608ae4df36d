"""Files of weights: reading them, and refusing those that are of another network.

Loaded all the same, such a file leaves a network with random weights, and nothing says so.
"""

from __future__ import annotations

import hashlib
import logging
import os
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from timm.models import clean_state_dict
from torch import Tensor, nn

from supernet.artifacts.atomic import write_atomically
from supernet.errors import first_line
from supernet.views import tied_names

logger = logging.getLogger(__name__)

WITHIN = ("state_dict_ema", "model_ema", "ema", "teacher", "state_dict", "model", "net")  # of a training's checkpoint


COUNTER = "num_batches_tracked"
DIGEST = "tensors_sha256"
CHANGED = "{} was changed or damaged after it was saved: fetch it again, or save it anew"


def read_weights(path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors in a file of safetensors, or of torch (.pth, .pth.tar, .bin, ...), by name.

    A training's checkpoint gives the tensors of the moving average if there is one, such as the teacher of DINO, else
    of the network: what it holds under the first of the names `WITHIN`. What torch's wrappers of networks put before
    all names, "module." and "_orig_mod.", is taken off. Tensors alone are read, no code is run. ValueError, in one
    line, for a file that is not there, cannot be read, holds no tensors by name, or values that are NaN.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of weights {str(path)!r}; for a directory, the name is 'local-dir:{path}'")
    try:
        if path.suffix == ".safetensors":
            content, _ = read_safetensors(path)
        else:
            with torch.serialization.safe_globals([Namespace]):  # timm's trainings write their arguments as well
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what an unpickler raises for a file of another kind is of any type
        raise ValueError(f"cannot read the weights in {str(path)!r}: {first_line(error)}") from error
    return tensors_in(content, path)


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to the file at `path`, with a digest in its metadata by which `read_safetensors` knows them.

    What is one tensor under several names, as in a module's `state_dict(keep_vars=True)`, is written once.
    """
    ties = tied_names(tensors)
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items() if name not in ties}
    with write_atomically(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(content, {DIGEST: digest_of(content), **ties}))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of names, types, shapes and values."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def read_safetensors(path: str | os.PathLike, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors in a file, by name, also under names whose tensor the file has once under another name; and which
    names these are, each with that other name (as `safetensors.torch.save_model` writes them, too).

    ValueError, naming the file, if it cannot be read, is not the one with the digest `sha256`, where that is known, or
    holds others than its own digest says, where `save_weights` wrote one.
    """
    try:
        if sha256 is not None and sha256 != _digest(path):
            raise ValueError(CHANGED.format(path))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read: {first_line(error)}") from error
    if DIGEST in metadata and metadata[DIGEST] != digest_of(tensors):
        raise ValueError(CHANGED.format(path))
    ties = {alias: name for alias, name in metadata.items() if name in tensors}
    return tensors | {alias: tensors[name] for alias, name in ties.items()}, ties


def _digest(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tensors_in(content: object, path: str | os.PathLike) -> dict[str, Tensor]:
    """The tensors, as `read_weights` gives them, in what the file at `path` holds, by name; ValueError for values that
    are NaN as well."""
    content = content if isinstance(content, Mapping) else {f"a {type(content).__name__}": None}
    while key := next((key for key in WITHIN if isinstance(content.get(key), Mapping)), None):
        content = content[key]
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"{str(path)!r} holds no tensors by name, but {', '.join(map(str, content)) or 'nothing'}: save the state "
            "dict of the network"
        )
    if broken := [name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.isnan().any()]:
        raise ValueError(
            f"{str(path)!r} has values that are no numbers (NaN), first in {broken[0]!r}: it was saved when its "
            "training had diverged, name an earlier file"
        )
    return clean_state_dict(tensors)


def without_prefix(weights: Mapping[str, Tensor], own: Collection[str], source: str) -> dict[str, Tensor]:
    """`weights` without what stands before the names of a network's tensors, `own`, such as "module." or "backbone.".

    What stands before is the beginning, up to a dot, behind which most of `own` are found: more than half of them, and
    more than without it. Weights with another beginning are left out. The log says both, and calls the weights
    `source`. Where there is no such beginning, the weights are given as they are.
    """
    wanted = set(own)
    found = Counter(prefix for name in weights for prefix in _beginnings(name) if name[len(prefix) :] in wanted)
    prefix, count = max(found.items(), key=lambda item: item[1], default=("", 0))
    if 2 * count <= len(wanted) or count <= len(wanted & weights.keys()):
        return dict(weights)
    inside = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
    others = [name for name in weights if not name.startswith(prefix)]
    left_out = f"; {len(others)} others are left out, the first {others[0]!r}" if others else ""
    logger.warning("the names of the tensors in %s begin with %r, which is taken off%s", source, prefix, left_out)
    return inside


def _beginnings(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[:count]) + "." for count in range(1, len(parts)))


def check_names(
    model: nn.Module,
    missing: Collection[str],
    unexpected: Collection[str],
    source: str,
    optional: Collection[str] = (),
    leave_out: bool = False,
) -> None:
    """ValueError unless names of tensors that a file lacks, or has too many, do no harm to `model`.

    Missing may be what starts anew, the tensors of the modules `optional`, and what a model counts or computes itself:
    buffers of integers or truth values, such as BatchNorm's num_batches_tracked and tables of relative positions. The
    moving statistics of normalisation layers and all other buffers are learned, and may not be missing. Too many may be
    tensors of `optional` as well, counters, and what the model holds but does not save, such as masks that earlier
    versions saved; and, with `leave_out` and if nothing is missing, modules of which the model has nothing, such as
    auxiliary heads, which the log says.
    """
    own, buffers = model.state_dict(), dict(model.named_buffers())
    missing = [name for name in missing if not starts_with(name, optional) and _is_learned(own.get(name))]
    unexpected = [
        name
        for name in unexpected
        if not starts_with(name, optional) and name not in buffers and not name.endswith(COUNTER)
    ]
    parts = {name.partition(".")[0] for name in own}
    beside = [name for name in unexpected if leave_out and name.partition(".")[0] not in parts]
    if not missing and len(beside) == len(unexpected):
        if beside:
            logger.warning("%d tensors in %s are left out, the first %r", len(beside), source, beside[0])
        return
    found = []
    if missing:
        found.append(f"{len(missing)} of its {len(own)} tensors are missing, the first {missing[0]!r}")
    if unexpected:
        found.append(f"{len(unexpected)} tensors are none of its, the first {unexpected[0]!r}")
    raise ValueError(f"{source} does not fit {type(model).__name__}: {', and '.join(found)}; name the model it is of")


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    """Put `weights` into `model`; ValueError, in one line, if a name or a shape does not fit. `source` names them."""
    own = model.state_dict()
    for name, tensor in weights.items():
        if name in own and tensor.shape != own[name].shape:
            raise ValueError(
                f"{source} does not fit {type(model).__name__}: its tensor {name!r} is {list(tensor.shape)}, not "
                f"{list(own[name].shape)}"
            )
    found = model.load_state_dict(weights, strict=False)
    check_names(model, found.missing_keys, found.unexpected_keys, source)


def starts_with(name: str, modules: Collection[str]) -> bool:
    """Whether the tensor `name` belongs to one of `modules`."""
    return any(name.startswith(f"{module}.") for module in modules)


def _is_learned(tensor: Tensor | None) -> bool:
    return tensor is None or isinstance(tensor, nn.Parameter) or tensor.is_floating_point() or tensor.is_complex()
