"""Tensors as few bytes: whatever a tensor holds is kept exactly, in the smallest of the forms that can hold it.

A tensor is made small before it comes here: pruned, clustered, rounded to bits or signs (`compress.transforms`,
`compress.codebooks`). Here its few values are found again and coded, as deep compression does (Han, Mao and Dally,
ICLR 2016, arXiv 1510.00149, sections 2 to 4): positions of what is not zero as gaps, values as indices into a table,
both under a Huffman code. That is the code of deflate without matches (Z_HUFFMAN_ONLY), which any zlib decodes.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

# n entries of a tensor, s entries that are stored, O output channels, k entries of a table

DTYPES = ("float32", "float16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")
SYMBOLS = 256  # a symbol is a byte
LIMITS = (1, 3, 7, 15, 31, 63, 127, 255)

Stream = dict[str, Any]  # what the header says of a stream
Form = dict[str, tuple[Stream, bytes]]  # streams by name, in the order of the file


def encode(array: np.ndarray) -> tuple[dict[str, Any], bytes]:
    """What the header says of `array`, and its bytes, which `decode` gives back: equal, where 0 and -0 are equal.

    The streams are those of the smallest of these forms:

    values              the entries as numbers, as int8 or float16 where that is exact
    table, symbols      at most 256 different entries, and which of them each is
    ... and steps       either of these, times a step for each output channel: weights of 8 bits or fewer
    ... and gaps        any of these for the entries that are not 0 alone, and how many zeros are before each

    ValueError for a type of numbers that is none of `DTYPES`.
    """
    if array.dtype.name not in DTYPES:
        raise ValueError(f"tensors of {array.dtype} are not stored: convert them to one of {', '.join(DTYPES)}")
    entry: dict[str, Any] = {"shape": list(array.shape), "dtype": array.dtype.name}
    smallest: tuple[int, dict[str, Any], bytes] | None = None
    for limit, form in _forms(array):
        said = entry | ({} if limit is None else {"limit": limit}) | {name: own for name, (own, _) in form.items()}
        data = b"".join(coded for _, coded in form.values())
        size = len(data) + len(repr(said)) // 4  # what a compressed header spends on it, about
        if smallest is None or size < smallest[0]:
            smallest = size, said, data
    assert smallest is not None
    _, said, data = smallest
    assert np.array_equal(decode(said, data), array, equal_nan=array.dtype.kind == "f")
    return said, data


def decode(entry: Mapping[str, Any], data: bytes) -> np.ndarray:
    """The tensor that `encode` made `entry` and `data` of; ValueError, LookupError or TypeError if they are no such."""
    size, streams, begin = math.prod(entry["shape"]), {}, 0
    for name in ("gaps", "steps", "table", "symbols", "values"):
        if name in entry:
            end = begin + entry[name]["bytes"]
            streams[name] = _opened(entry[name], data[begin:end], size)
            begin = end
    if begin != len(data):
        raise ValueError(f"{len(data)} bytes are not the {begin} of its streams")
    stored = streams["values"] if "values" in streams else streams["table"][streams["symbols"]]
    stored = stored.astype(entry["dtype"])
    if "gaps" in streams:
        gaps, limit = streams["gaps"], entry["limit"]
        positions = (np.cumsum(gaps.astype(np.int64) + (gaps < limit)) - 1)[gaps < limit]
        if (gaps > limit).any() or len(positions) != len(stored) or (len(positions) and positions[-1] >= size):
            raise ValueError(f"{len(positions)} positions are not those of {len(stored)} of {size} entries")
        dense = np.zeros(size, stored.dtype)
        dense[positions] = stored
        stored = dense
    if "steps" in streams:
        steps = streams["steps"].astype(entry["dtype"])
        stored = stored.reshape(len(steps), -1) * steps[:, None]
    return stored.reshape(entry["shape"])


def _forms(array: np.ndarray) -> Iterator[tuple[int | None, Form]]:
    """The forms that hold `array` exactly, each with the limit of its gaps."""
    flat = np.ascontiguousarray(array).ravel()
    yield None, {"values": _numbers(flat)}
    if array.dtype.name != "float32" or not flat.size:
        return
    kept = flat != 0
    gaps = None if kept.all() else _gaps(np.flatnonzero(kept))
    if gaps:
        yield gaps[0], {"gaps": gaps[1], "values": _numbers(flat[kept])}
    for steps, levels in _levels(array):
        form: Form = {} if steps is None else {"steps": _numbers(steps)}
        for which, limit, first in ((slice(None), None, {}), *([(kept, gaps[0], {"gaps": gaps[1]})] if gaps else ())):
            yield limit, first | form | _tabled(levels[which])
            if steps is not None:
                yield limit, first | form | {"values": _numbers(levels[which])}


def _levels(array: np.ndarray) -> Iterator[tuple[np.ndarray | None, np.ndarray]]:
    """Steps [O], or None, and levels [n] of at most 256 values whose product `array` is."""
    flat = np.ascontiguousarray(array).ravel()
    if _is_few(flat):
        yield None, flat
    if grid := _steps(array):
        yield grid[0], grid[1].ravel()


def is_in_steps(array: np.ndarray) -> bool:
    """Whether the entries of each output channel are multiples of a step, of at most 8 bits."""
    return _steps(array) is not None


def _steps(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """The steps [O] and multiples [O, ...] of an array in float32, if it is of such."""
    by_channel = np.ascontiguousarray(array).reshape(len(array) if array.ndim > 1 else 1, -1)
    if not by_channel.size or not np.isfinite(by_channel).all():
        return None
    grids = (_grid(by_channel, 2 ** (bits - 1) - 1) for bits in range(2, 9))
    return next((grid for grid in grids if grid is not None), None)


def _grid(by_channel: np.ndarray, highest: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps [O] of which the entries of each channel are multiples, and the multiples, of which the largest is
    `highest`; None if there are none."""
    steps, levels = np.zeros((len(by_channel), 1), np.float32), np.zeros_like(by_channel)
    exact = ~by_channel.any(1)
    near = np.abs(by_channel).max(1, keepdims=True) / np.float32(highest)
    for ulps in (0, -1, 1, -2, 2):  # the largest entry is a multiple of the step, rounded
        if exact.all():
            break
        tried = (near[~exact].view(np.int32) + np.int32(ulps)).view(np.float32)
        multiples = np.rint(by_channel[~exact] / tried)
        fits = (multiples * tried == by_channel[~exact]).all(1)
        found = np.flatnonzero(~exact)[fits]
        steps[found], levels[found], exact[found] = tried[fits], multiples[fits], True
    return (steps[:, 0], levels) if exact.all() else None


def _is_few(flat: np.ndarray) -> bool:
    return len(np.unique(flat[:4096])) <= SYMBOLS and len(np.unique(flat)) <= SYMBOLS


def _tabled(levels: np.ndarray) -> Form:
    table, symbols = np.unique(levels, return_inverse=True)
    return {"table": _numbers(table), "symbols": _symbols(symbols.astype(np.uint8))}


def _gaps(positions: np.ndarray) -> tuple[int, tuple[Stream, bytes]]:
    """The limit and the stream of the numbers of zeros before each of ascending positions, the smallest there is.

    A symbol below the limit is that number of zeros and a stored entry; one that is the limit is as many zeros alone.
    """
    zeros = np.diff(positions, prepend=-1) - 1
    tried = []
    for limit in LIMITS:
        fillers, rest = np.divmod(zeros, limit)
        symbols = np.full(int(fillers.sum()) + len(zeros), limit, np.uint8)
        symbols[np.cumsum(fillers + 1) - 1] = rest
        tried.append((len(_deflated(symbols.tobytes(), zlib.Z_HUFFMAN_ONLY)), limit, symbols))
    _, limit, symbols = min(tried, key=lambda own: own[:2])
    return limit, _symbols(symbols)


def _numbers(array: np.ndarray) -> tuple[Stream, bytes]:
    """Little-endian numbers; int8 or float16 in the place of others where that is exact, deflated where that is
    smaller."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):
            for narrower in (array.astype(np.int8), array.astype(np.float16)):
                if np.array_equal(narrower, array, equal_nan=narrower.dtype.kind == "f"):
                    array = narrower
                    break
    plain = array.astype(array.dtype.newbyteorder("<")).tobytes()
    deflated = _smallest_deflated(plain)
    stream = {"type": array.dtype.name, "count": int(array.size)}
    return _smaller(stream, plain, deflated)


def _symbols(symbols: np.ndarray) -> tuple[Stream, bytes]:
    """Bytes below 2^bits, packed to `bits` each, or under a Huffman code, or deflated."""
    bits = int(symbols.max(initial=0)).bit_length()
    as_bits = np.unpackbits(symbols[:, None], axis=1, count=bits, bitorder="little") if bits else symbols[:0]
    packed, plain = np.packbits(as_bits, bitorder="little").tobytes(), symbols.tobytes()
    return _smaller({"bits": bits, "count": len(symbols)}, packed, _smallest_deflated(plain))


def _smaller(stream: Stream, plain: bytes, deflated: bytes) -> tuple[Stream, bytes]:
    if len(deflated) < len(plain):
        return stream | {"bytes": len(deflated), "deflated": True}, deflated
    return stream | {"bytes": len(plain)}, plain


def _smallest_deflated(data: bytes) -> bytes:
    return min((_deflated(data, strategy) for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY)), key=len)


def _deflated(data: bytes, strategy: int) -> bytes:
    coder = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, 9, strategy)
    return coder.compress(data) + coder.flush()


def inflated(data: bytes, size: int) -> bytes:
    """The `size` bytes that raw deflate made `data` of; ValueError if it is anything else."""
    coder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        plain = coder.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"a deflated stream is damaged: {error}") from error
    if len(plain) != size or not coder.eof or coder.unused_data:
        raise ValueError(f"a deflated stream is not of {size} bytes")
    return plain


def _opened(stream: Stream, data: bytes, most: int) -> np.ndarray:
    """The numbers or symbols of a stream, of which there are at most `most`."""
    count, is_deflated = stream["count"], stream.get("deflated", False)
    if not 0 <= count <= most:
        raise ValueError(f"a stream says {count} entries, where the tensor has {most}")
    if "type" in stream:
        if stream["type"] not in DTYPES:
            raise ValueError(f"a stream has numbers of an unknown type {stream['type']!r}")
        dtype = np.dtype(stream["type"]).newbyteorder("<")
        plain = inflated(data, count * dtype.itemsize) if is_deflated else data
        if len(plain) != count * dtype.itemsize:
            raise ValueError(f"{count} numbers of {stream['type']} are not {len(plain)} bytes")
        return np.frombuffer(plain, dtype, count).astype(dtype.newbyteorder("="))
    bits = stream["bits"]
    if not 0 <= bits <= 8:
        raise ValueError(f"a stream has symbols of {bits} bits")
    if is_deflated:
        return np.frombuffer(inflated(data, count), np.uint8)
    if len(data) != math.ceil(count * bits / 8):
        raise ValueError(f"{count} symbols of {bits} bits are not {len(data)} bytes")
    if not bits:
        return np.zeros(count, np.uint8)
    as_bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little")
    return np.packbits(as_bits.reshape(count, bits), axis=1, bitorder="little")[:, 0]
