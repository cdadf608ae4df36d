"""Damage to files as disks, networks and hands do it: bytes changed, values of JSON and cells of CSV replaced."""

from __future__ import annotations

import json
import random
import string
from typing import Any

VALUES = [
    None, True, False, 0, 1, -1, 2**63, 10**400, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "0", "NaN", "\0",
    "../..", "x" * 1000, [], [[]], [1, "a", None], {}, {"a": {}}, {"": []},
]  # fmt: skip


def damaged(content: bytes, generator: random.Random, kind: str) -> bytes:
    """`content` of a file of that `kind`, its suffix, after one to three changes that the `generator` draws."""
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        if kind in (".json", ".jsonl") and generator.random() < 0.75:
            content = _damaged_json(content, generator)
        elif kind == ".csv" and generator.random() < 0.6:
            content = _damaged_csv(content, generator)
        else:
            content = _damaged_bytes(content, generator)
    return content


def _damaged_bytes(content: bytes, generator: random.Random) -> bytes:
    begin = (
        generator.randrange(len(content) + 1)
        if generator.random() < 0.6
        else generator.randrange(min(len(content), 512) + 1)
    )
    end = min(len(content), begin + generator.choice((1, 1, 2, 8, 100, 5000)))
    way = generator.randrange(6)
    if way == 0:
        return content[:begin]
    if way == 1:
        return content[:begin] + content[end:]
    if way == 2:
        return content[:begin] + generator.randbytes(end - begin) + content[end:]
    if way == 3:
        return content[:begin] + generator.randbytes(generator.choice((1, 3, 50))) + content[begin:]
    if way == 4:
        return content[:end] + content[begin:]
    flipped = bytes([content[begin] ^ (1 << generator.randrange(8))]) if begin < len(content) else b""
    return content[:begin] + flipped + content[begin + 1 :]


def _damaged_json(content: bytes, generator: random.Random) -> bytes:
    lines = content.splitlines() if content.count(b"\n{") else [content]
    index = generator.randrange(len(lines)) if lines else 0
    try:
        value = json.loads(lines[index])
        lines[index] = json.dumps(_damaged_value(value, generator)).encode()
    except (ValueError, IndexError, RecursionError):  # damaged before
        return _damaged_bytes(content, generator)
    return b"\n".join(lines) + b"\n"


def _damaged_value(value: Any, generator: random.Random) -> Any:
    """A JSON value with a change somewhere in it."""
    if not isinstance(value, dict | list) or not value or generator.random() < 0.05:
        return _other(value, generator)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = generator.choice(keys)
    changed = value.copy()
    way = generator.random()
    if way < 0.7:
        changed[key] = _damaged_value(value[key], generator)
    elif way < 0.8:
        del changed[key]
    elif isinstance(changed, dict):
        name = generator.choice((f"{key} ", "", "format", "".join(generator.choices(string.printable, k=5))))
        changed[name] = changed.pop(key) if way < 0.9 else generator.choice(VALUES)
    else:
        changed.insert(key, generator.choice([value[key], *VALUES]))
    return changed


def _other(value: Any, generator: random.Random) -> Any:
    if isinstance(value, int | float) and generator.random() < 0.5:
        return generator.choice((-value, value + 1, value * 1000, value // 3, str(value), [value]))
    return generator.choice(VALUES)


def _damaged_csv(content: bytes, generator: random.Random) -> bytes:
    rows = content.split(b"\n")
    row = generator.randrange(len(rows))
    cells = rows[row].split(b",")
    cell = generator.randrange(len(cells))
    way = generator.randrange(4)
    if way == 0:
        del cells[cell]
    elif way == 1:
        cells.insert(cell, cells[cell])
    else:
        cells[cell] = generator.choice((b"", b"nan", b"-1", b"1e999", b'"', b"{}", b"\xff", b"x" * 200_000, b"\0"))
    rows[row] = b",".join(cells)
    return b"\n".join(rows)
