"""A network with exits as a chain of ONNX files, which a device runs one after another until its policy stops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from exits.network import Exits
from exits.parts import parts_of
from exits.policies import Policy, to_json
from exits.runner import DESCRIPTION
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.export import export_onnx


@dataclass(frozen=True)
class _Names:
    input_names: Sequence[str]
    output_names: Sequence[str]


def export_chain(
    network: Exits,
    folder: str | Path,
    example: tuple,
    policy: Policy | None = None,
    kept: Sequence[int] | None = None,
    latency_ms: Sequence[float] | None = None,
) -> None:
    """Write a network with exits to `folder` as an ONNX file for each part, `part_0.onnx` and so on, and what
    `exits.runner.Chain` reads beside them: the policy, and what it takes to leave at each exit, if that is given.

    Every part takes one tensor, of one example like `example`, and all but the last give the logits and what the next
    one takes: a device skips whole files, which no runtime needs control flow for. `kept` is as in `parts_of`.
    ValueError and ModuleNotFoundError as `parts_of` and `supernet.artifacts.export.export_onnx`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = parts_of(network, kept)
    (carried,) = (torch.zeros(tensor.shape) for tensor in example)
    files = [f"part_{index}.onnx" for index in range(len(parts))]
    for file, part in zip(files, parts):
        is_last = file == files[-1]
        names = _Names(("input",), ("logits",) if is_last else ("logits", "carried"))
        export_onnx(part, folder / file, (carried,), names=names)
        with torch.no_grad():
            carried = carried if is_last else part(carried)[1]
    content = {"files": files, "policy": to_json(policy), "latency_ms": list(map(float, latency_ms or ()))}
    with write_atomically(folder / DESCRIPTION) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
