"""What a convolution costs a GPU the first time that it meets a shape, and from then on.

    python benchmarks/gpu/new_shapes.py --json benchmarks/results/new_shapes_CARD.json    # half a minute

Every subnet and every resolution brings convolutions of new shapes. For each kind of convolution, five new numbers of
channels: milliseconds of the first forward and the first backward pass, with cuDNN and with torch's own kernels
(`torch.backends.cudnn.enabled`), 64 images of 28 pixels. Then microseconds a pass of depthwise convolutions once their
shapes are known, as they occur in `ofa_mobilenet_v3` at 224 pixels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import tyro
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from report import report

CHANNELS = (48, 64, 80, 96, 112)
KINDS = {"1x1": (1, False), "3x3": (3, False), "depthwise 3x3": (3, True), "depthwise 5x5": (5, True)}
KNOWN = ((144, 5, 56), (240, 7, 28), (480, 3, 14), (960, 7, 7))  # channels, kernel size, pixels a side
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Arguments:
    device: str = "cuda"
    """cuda, or cpu to try the script out."""
    batch_size: int = 64
    """Images."""
    json: Path | None = None
    """Write the result here."""


def main(arguments: Arguments) -> None:
    device = torch.device(arguments.device)
    torch.zeros(1, device=device)
    rows = []
    for cudnn in (True, False):
        with torch.backends.cudnn.flags(enabled=cudnn):
            for kind, (size, depthwise) in KINDS.items():
                for precision, dtype in TYPES.items():
                    for name, memory_format in FORMATS.items():
                        found = []
                        for channels in CHANNELS:
                            x, conv = layer(
                                channels, size, 28, depthwise, arguments.batch_size, dtype, memory_format, device
                            )
                            found.append(first(x, conv, device))
                        rows.append(
                            {
                                "kernels": "cudnn" if cudnn else "torch",
                                "convolution": kind,
                                "precision": precision,
                                "memory_format": name,
                                "first_forward_ms": median(forward for forward, _ in found),
                                "first_backward_ms": median(backward for _, backward in found),
                            }
                        )
            for channels, size, pixels in KNOWN:
                for name, memory_format in FORMATS.items():
                    case = layer(
                        channels, size, pixels, True, arguments.batch_size, torch.bfloat16, memory_format, device
                    )
                    rows.append(
                        {
                            "kernels": "cudnn" if cudnn else "torch",
                            "convolution": f"depthwise {size}x{size}, {channels} channels, {pixels} pixels",
                            "precision": "bf16",
                            "memory_format": name,
                            "known_pass_us": known(*case, device),
                        }
                    )
    gpu = torch.cuda.get_device_name() if device.type == "cuda" else "none"
    report(rows, summary(rows), arguments.json, gpu=gpu)


def layer(channels, size, pixels, depthwise, batch_size, dtype, memory_format, device) -> tuple[Tensor, nn.Module]:
    groups = channels if depthwise else 1
    conv = nn.Conv2d(channels, channels, size, padding=size // 2, groups=groups, bias=False)
    x = torch.randn(batch_size, channels, pixels, pixels, device=device, dtype=dtype)
    conv = conv.to(device, dtype, memory_format=memory_format)
    return x.contiguous(memory_format=memory_format).requires_grad_(), conv


def first(x: Tensor, conv: nn.Module, device: torch.device) -> tuple[float, float]:
    """Milliseconds of one forward and one backward pass."""
    begun = now(device)
    y = conv(x)
    forward = now(device)
    y.sum().backward()
    return (forward - begun) * 1e3, (now(device) - forward) * 1e3


def known(x: Tensor, conv: nn.Module, device: torch.device, runs: int = 20) -> float:
    """Microseconds of a forward and a backward pass of a shape that is known."""
    gradient = torch.ones_like(conv(x))

    def step() -> None:
        conv(x).backward(gradient)

    def timed(run: Callable[[], None]) -> float:
        begun = now(device)
        for _ in range(runs):
            run()
        return (now(device) - begun) / runs * 1e6

    timed(step)
    return timed(step)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def summary(rows: list[dict]) -> dict[str, float]:
    """Milliseconds that a new shape of a depthwise convolution costs in a training step, channels last in bf16."""
    found = {}
    for kernels in ("cudnn", "torch"):
        found[f"new_depthwise_shape_{kernels}_ms"] = median(
            row["first_forward_ms"] + row["first_backward_ms"]
            for row in rows
            if row["kernels"] == kernels
            and row["convolution"].startswith("depthwise")
            and (row["precision"], row["memory_format"]) == ("bf16", "channels_last")
            and "first_forward_ms" in row
        )
    return found


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
