"""A network with exits as a chain of ONNX files, which a device runs one after another until its policy stops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from exits.network import Exits
from exits.parts import cannot_part, exits_kept, parts_of
from exits.policies import Policy, to_json
from exits.runner import DESCRIPTION
from supernet.artifacts.atomic import write_json
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
    one takes: a device skips whole files, which no runtime needs control flow for. Texts, whose example is tokens
    [1, T], may be of any length up to the network's own, without a mask. `kept` is as in `parts_of`.
    ValueError and ModuleNotFoundError as `parts_of` and `supernet.artifacts.export.export_onnx`.
    """
    folder = Path(folder)
    parts = parts_of(network, kept)
    draw = torch.Generator().manual_seed(0)
    (first,) = example
    is_text = not first.is_floating_point()
    carried = torch.randint(2, first.shape, generator=draw) if is_text else torch.randn(first.shape, generator=draw)
    length = {1: "length"} if is_text else {}
    _check_parts(network, parts, carried, kept)
    folder.mkdir(parents=True, exist_ok=True)
    files = [f"part_{index}.onnx" for index in range(len(parts))]
    for file, part in zip(files, parts):
        is_last = file == files[-1]
        names = _Names(("input",), ("logits",) if is_last else ("logits", "carried"))
        export_onnx(part, folder / file, (carried,), names=names, dynamic_axes={"input": length, "carried": length})
        with torch.no_grad():
            carried = carried if is_last else part(carried)[1]
    content = {
        "files": files,
        "policy": to_json(policy),
        "latency_ms": [] if latency_ms is None else list(map(float, latency_ms)),
    }
    write_json(folder / DESCRIPTION, content)


@torch.no_grad()
def _check_parts(network: Exits, parts: Sequence[nn.Module], inputs: Tensor, kept: Sequence[int] | None) -> None:
    """ValueError unless the parts give the logits of the network."""
    expected = network(inputs)[0]
    carried = inputs
    for exit, part in zip(exits_kept(len(expected), kept), parts):
        logits, carried = (part(carried), carried) if part is parts[-1] else part(carried)
        if not torch.allclose(logits[0], expected[exit], rtol=1e-3, atol=1e-4):
            raise cannot_part(network.after[min(exit, len(network.after) - 1)])
