"""A network in one file of few bytes: its configuration, and its tensors as `compress.coding` codes them.

    bytes     what
    8         137, then "subnet" and a line feed
    4         number of the format, unsigned and little-endian, as are the next three
    4         bytes of the header as JSON
    4         bytes of the header as it lies here, under raw deflate
    4         CRC-32 of the 20 bytes before it and these
    ...       the header: a JSON object with config, ties and tensors
    ...       the streams of all tensors, in the order of the header, each tensor with a CRC-32 in its entry

docs/methods/stored_bytes.md has a decoder of a page in NumPy. Nothing is lost: what makes weights few values or zeros
comes before (`compress.deep_compression`, `compress.transforms`), and here equal tensors come out.
"""

from __future__ import annotations

import copy
import json
import math
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compress.coding import DTYPES, decode, encode, inflated
from compress.transforms import fold
from supernet.artifacts import formats
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.subnet import Subnet, as_plain_module
from supernet.artifacts.subnet_config import subnet_config
from supernet.artifacts.weights import load_weights
from supernet.space import Arch
from supernet.views import tie_names, tied_names

MAGIC = b"\x89subnet\n"
PRELUDE = struct.Struct("<8s3I")  # MAGIC, format, bytes of the header as JSON and as it lies
CHECKSUM = struct.Struct("<I")
HEADER = PRELUDE.size + CHECKSUM.size  # where it begins
MOST_HEADER_BYTES = 2**26


def save_compressed(path: str | Path, subnet: Subnet) -> int:
    """Write `subnet` to the file `path`, whole or not at all; its bytes.

    Transforms and codebooks that are still on its parameters are made plain values first, in a copy. ValueError if
    there is a file already, or a tensor is of a type that is not stored.
    """
    path, (model, config) = Path(path), subnet
    if path.exists():
        raise ValueError(f"there is {path} already; name another file")
    state = fold(copy.deepcopy(model)).state_dict(keep_vars=True)
    ties = tied_names(state)
    entries, streams = [], []
    for name, tensor in state.items():
        if name not in ties:
            entry, data = _encoded(name, tensor.detach().cpu())
            entries.append({"name": name, **entry, "crc32": zlib.crc32(data)})
            streams.append(data)
    content = {"config": config.content(), "ties": ties, "tensors": entries}
    header = json.dumps(content, separators=(",", ":")).encode()
    coder = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS, 9)
    coded = coder.compress(header) + coder.flush()
    prelude = PRELUDE.pack(MAGIC, formats.COMPRESSED.number, len(header), len(coded))
    prelude += CHECKSUM.pack(zlib.crc32(prelude + coded))
    with write_atomically(path) as temporary:
        temporary.write_bytes(b"".join([prelude, coded, *streams]))
    return path.stat().st_size


def is_compressed(path: str | Path) -> bool:
    """Whether `path` is a file that begins as `save_compressed` writes it."""
    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def load_compressed(
    path: str | Path,
    *,
    space: str | None = None,
    build: Callable[[Arch], nn.Module] | None = None,
    most_bytes: int = 2**34,
) -> Subnet:
    """The network in the file `path` as a plain module in eval mode, as `supernet.artifacts.subnet.load_subnet` gives
    that of a folder, with `space` and `build` as there.

    ValueError, in one line that names the file, for one that is no such file, of another format, damaged, cut off, of
    another network than its configuration says, or whose tensors take more than `most_bytes`.
    """
    path = Path(path)
    header, tensors = _read(path, most_bytes)
    config = subnet_config(header["config"], path)
    model, config = as_plain_module(config, path, space, build)
    own = model.state_dict()
    for entry, _ in tensors:
        if entry["name"] in own and list(own[entry["name"]].shape) != entry["shape"]:
            raise ValueError(
                f"{path} does not fit {type(model).__name__}: its tensor {entry['name']!r} is {entry['shape']}, not "
                f"{list(own[entry['name']].shape)}"
            )
    weights = {entry["name"]: _decoded(entry, data, path) for entry, data in tensors}
    ties = {alias: name for alias, name in header["ties"].items() if name in weights}
    load_weights(model, weights | {alias: weights[name] for alias, name in ties.items()}, str(path))
    return Subnet(tie_names(model, ties).eval(), config)


def read_tensors(path: str | Path, most_bytes: int = 2**34) -> dict[str, np.ndarray]:
    """The tensors in the file `path` by name, without their module; raises what `load_compressed` does."""
    _, tensors = _read(Path(path), most_bytes)
    return {entry["name"]: _decoded(entry, data, Path(path)).numpy() for entry, data in tensors}


def _encoded(name: str, tensor: Tensor) -> tuple[dict[str, Any], bytes]:
    if str(tensor.dtype).removeprefix("torch.") not in DTYPES:
        raise ValueError(f"the tensor {name!r} is of {tensor.dtype}, which is not stored: convert it to float32")
    return encode(tensor.numpy())


def _decoded(entry: Mapping[str, Any], data: bytes, path: Path) -> Tensor:
    if zlib.crc32(data) != entry["crc32"]:
        raise ValueError(f"{path} is damaged in the tensor {entry['name']!r}: fetch it again")
    try:
        return torch.from_numpy(decode(entry, data))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} has a tensor {entry['name']!r} that is none: {error}") from error


def _read(path: Path, most_bytes: int) -> tuple[dict[str, Any], list[tuple[dict[str, Any], bytes]]]:
    """The header, and the entry and the coded bytes of each tensor, whose sizes are those that the file has."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} is no compressed subnet: it begins with other bytes")
    if len(content) < HEADER:
        raise ValueError(f"{path} is cut off after {len(content)} bytes: fetch it again")
    _, number, size, coded_size = PRELUDE.unpack_from(content)
    (checksum,) = CHECKSUM.unpack_from(content, PRELUDE.size)
    formats.COMPRESSED.number_of(number, path)
    end = HEADER + coded_size
    coded = content[HEADER:end]
    if end > len(content) or zlib.crc32(content[: PRELUDE.size] + coded) != checksum or size > MOST_HEADER_BYTES:
        raise ValueError(f"{path} is damaged or cut off in its header: fetch it again")
    try:
        header = json.loads(inflated(coded, size))
        entries = [(entry, _coded_bytes(entry)) for entry in header["tensors"]]
        decoded = sum(_decoded_bytes(entry) for entry in header["tensors"])
        header["config"], header["ties"].items()
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no compressed subnet: its header says no tensors ({error})") from error
    if decoded > most_bytes:
        raise ValueError(f"the tensors in {path} take {decoded:,} bytes, more than most_bytes = {most_bytes:,}")
    begin, tensors = end, []
    for entry, length in entries:
        tensors.append((entry, content[begin : begin + length]))
        begin += length
    if begin != len(content):
        raise ValueError(f"{path} has {len(content)} bytes and not {begin}: it is cut off or damaged, fetch it again")
    return header, tensors


def _coded_bytes(entry: Mapping[str, Any]) -> int:
    sizes = [own["bytes"] for own in entry.values() if isinstance(own, dict)]
    if not sizes or min(sizes) < 0 or not isinstance(entry["name"], str) or not isinstance(entry["crc32"], int):
        raise ValueError(f"the entry {entry}")
    return sum(sizes)


def _decoded_bytes(entry: Mapping[str, Any]) -> int:
    if entry["dtype"] not in DTYPES or not all(isinstance(size, int) and size >= 0 for size in entry["shape"]):
        raise ValueError(f"a tensor {entry['shape']} of {entry['dtype']}")
    return math.prod(entry["shape"]) * np.dtype(entry["dtype"]).itemsize
