"""A model card: a README.md, with the head in YAML that hubs read, of a subnet's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.export import Agreement
from supernet.artifacts.subnet_config import SubnetConfig

FILE = "README.md"
MOST_CLASSES = 20  # that are named
UNITS = {
    "macs": "multiply-accumulates of an example",
    "parameters": "parameters",
    "accuracy": "accuracy on test images",
}


def model_card(config: SubnetConfig, name: str, *, by_timm: bool, files: Mapping[str, Agreement | None]) -> str:
    """The card of the subnet of `config`, called `name`: what it is, what it costs and on which device, how it was
    found, and how it is loaded, `by_timm` too or by this package alone. `files` are what else is in its folder, each
    with how it agrees with the module where that is known."""
    is_classifier = config.input_size is not None and config.classes is not None
    head = {
        "library_name": "timm" if by_timm else "supernet",
        "tags": [
            "neural-architecture-search",
            *(["image-classification", "timm"] if is_classifier and by_timm else []),
        ],
    } | ({"pipeline_tag": "image-classification"} if is_classifier else {})
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n# {_plain(name)}",
        _what(config),
        "## What it costs\n\n" + _table(("", ""), [(UNITS.get(n, n), f"{v:.6g}") for n, v in config.facts.items()]),
        "## How it was found\n\n" + ("\n".join(_found(config)) or "Nothing is known of it."),
        "## How it is loaded\n\n" + _use(by_timm),
    ]
    if files:
        rows = [(f"`{file}`", _agrees(own)) for file, own in files.items()]
        parts.append("## Other files\n\n" + _table(("file", "its outputs, and those of the module"), rows))
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, text: str) -> None:
    with write_atomically(folder / FILE) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _what(config: SubnetConfig) -> str:
    inputs = ", ".join(f"{own.name} [N, {', '.join(map(str, own.shape))}] in {own.dtype}" for own in config.inputs)
    lines = [f"A subnet of the space `{_plain(config.space)}`. It takes {inputs or 'inputs of its own kind'}."]
    if config.classes is not None:
        named = ", ".join(map(_plain, config.classes[:MOST_CLASSES]))
        more = f" and {len(config.classes) - MOST_CLASSES} more" if len(config.classes) > MOST_CLASSES else ""
        lines.append(f"It tells {len(config.classes)} classes apart: {named}{more}.")
    if config.input_size is not None:
        lines.append(
            f"Images are resized by {config.interpolation} interpolation and cropped to {config.input_size[-1]} pixels "
            f"(crop {config.crop_pct:g}), from 0 to 1, less {list(config.mean)} and divided by {list(config.std)}."
        )
    return "\n".join(lines)


def _found(config: SubnetConfig) -> list[str]:
    return [f"- {_plain(what)}: {_plain(which)}" for what, which in config.found.items()]


def _use(by_timm: bool) -> str:
    timms = (
        'import timm\n\nmodel = timm.create_model("local-dir:FOLDER", pretrained=True).eval()  # or hf-hub:USER/NAME'
    )
    own = 'from supernet import load_subnet\n\nmodel, config = load_subnet("FOLDER")'
    why = "" if by_timm else "timm cannot build it by a name and arguments: its layers' sizes are its own.\n\n"
    return why + "\n\n".join(f"```python\n{code}\n```" for code in ([timms] if by_timm else []) + [own])


def _agrees(found: Agreement | None) -> str:
    return "" if found is None else f"differ by at most {found.difference:.1e}"


def _table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    return "\n".join(f"| {a} | {b} |" for a, b in [head, ("---", "---"), *rows])


def _plain(text: object) -> str:
    """`text` in one line, without what Markdown and HTML would read."""
    line = " ".join(str(text).split())
    for sign in "\\`*_[]<>|#":
        line = line.replace(sign, f"\\{sign}")
    return line
