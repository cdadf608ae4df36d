"""Say what holds a network back on a device (compute, bandwidth, overhead, memory, flash), and what would help.

    supernet diagnose mobilenetv2_035 --image-size 144 --precision int8 --limits activation_bytes=262144
    supernet diagnose subnets/mine --device xeon-onnxruntime-fp32-1t-b1 --limits latency_ms=0.3
    supernet diagnose runs/mine --history runs/mine/search.jsonl --output runs/mine
    supernet diagnose mobilenetv2_035 --device camera --peak-gmacs 0.1 --bandwidth-gb 0.2 --precision int8

Trains and runs nothing of the network: each of its layers, as it is deployed, takes no less than its
multiply-accumulates at the device's peak, and than the bytes that it moves at the device's bandwidth. Both are measured
once, by the device's own runtime in half a minute, and kept in DEVICES/DEVICE/roofline.json; of a device that is not
this machine, say them. What each piece of advice would bring is computed, what it costs in accuracy is not. With
--output, writes diagnosis.json, which the report of a search in that folder shows, and roofline.svg.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import tyro
from rich.table import Column, Table
from torch import nn

from compress.advice import Advice, advise
from compress.diagnosis import FLASH, MEMORY, Diagnosis, diagnose
from compress.diagnosis_record import FILE, PICTURE, plot_roofline, record, write_record
from compress.roofline import FILE as ROOFLINE
from compress.roofline import Roofline
from predictors import is_this_machine, this_device
from predictors.device import BITS, Device
from predictors.measuring import runtimes
from predictors.roofline import measure_roofline
from supernet.artifacts.runs import read_family
from supernet.artifacts.subnet import load_subnet
from supernet.families.timm_models import timm_model
from supernet_cli.command_line import console, progress_bar
from supernet_cli.extract import arch_of
from supernet_cli.flags import parse_flags
from supernet_cli.search import parse_limit, say

SLOWEST = 12  # layers that the table shows


@dataclass(frozen=True)
class Arguments:
    model: tyro.conf.Positional[str]
    """A model of timm's, the folder of an extracted subnet, or that of a training run: its largest subnet, unless
    --arch or --history says which."""
    device: str | None = None
    """Name of a device, a folder beneath --devices; by default this machine, as the next flags say. A new name with
    --peak-gmacs and --bandwidth-gb describes one that is elsewhere."""
    devices: Path = Path("runs/latency")
    """Folder with one folder a device, as supernet measure-latency writes it."""
    runtime: str = "onnxruntime"
    """What runs networks on this machine: torch, torch_compile, onnxruntime, openvino, executorch, litert, tensorrt,
    cuda or cuda_graph."""
    precision: str = "fp32"
    """fp32, fp16, int8 or int4, as far as the runtime of this machine measures it."""
    threads: int = 1
    """Threads of the runtime."""
    peak_gmacs: float | None = None
    """Instead of measuring: billions of multiply-accumulates a second that the device does at most."""
    bandwidth_gb: float | None = None
    """Instead of measuring: billions of bytes a second that the device moves at most."""
    limits: tuple[str, ...] = ()
    """NAME=VALUE, the largest admissible value: activation_bytes and stored_bytes, both as deployed at the device's
    precision, or latency_ms."""
    image_size: int | None = None
    """Pixels a side of the images of a timm model; by default its own."""
    arch: str | None = None
    """Architecture of a run, as a JSON object."""
    history: Path | None = None
    """History of a search of the run to take the architecture from."""
    line: int | None = None
    """Which evaluation of the history, counted from 1; by default the one of the highest first score."""
    space: str | None = None
    """The space of a run or a subnet, said again if it is code of your own."""
    output: Path | None = None
    """Folder for diagnosis.json and roofline.svg, that of a search say."""


class Network(NamedTuple):
    name: str
    model: nn.Module
    example: Sequence[int] | tuple


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    limits = dict(map(parse_limit, arguments.limits))
    network = network_of(arguments)
    device = device_of(arguments)
    roofline = roofline_of(arguments, device)
    fused = device.runtime not in ("torch", "cuda", "cuda_graph")
    found = diagnose(network.model, network.example, roofline, device.bits, limits, fused)
    advice, problems = advise(network.model, network.example, found, fused)
    show(found, network.name, device, advice)
    for problem in problems:
        say(f"not computed: {problem}")
    if arguments.output is not None:
        content = record(found, advice, network.name, device.name)
        write_record(arguments.output, content)
        plot_roofline(arguments.output / PICTURE, content)
        say(f"The diagnosis is in {arguments.output / FILE} and {arguments.output / PICTURE}.")


def network_of(arguments: Arguments) -> Network:
    """The network that was named, without weights where it can be had so."""
    folder = Path(arguments.model)
    chosen = arguments.arch is not None or arguments.history is not None
    if not folder.is_dir():
        if chosen:
            raise ValueError(f"--arch and --history are of a training run, and {arguments.model} is no folder")
        own = timm_model(arguments.model, input_size=arguments.image_size)
        with torch.device("meta"):
            return Network(arguments.model, own.create().eval(), (3, own.input_size, own.input_size))
    if arguments.image_size is not None:
        raise ValueError("--image-size is of a timm model; a subnet has its own")
    if (folder / "model.safetensors").exists():
        if chosen:
            raise ValueError(f"--arch and --history are of a training run, and {folder} holds a subnet")
        subnet = load_subnet(folder, space=arguments.space)
        return Network(str(folder), subnet.model, subnet.config.example())
    family = read_family(folder, space=arguments.space)
    arch = arch_of(family.space, arguments.arch, arguments.history, arguments.line, largest=not chosen)
    with torch.device("meta"):
        return Network(str(folder), family.build(arch).eval(), family.example(arch))


def device_of(arguments: Arguments) -> Device:
    """The device of that name, or this machine."""
    said = arguments.peak_gmacs is not None and arguments.bandwidth_gb is not None
    if arguments.precision not in BITS:
        raise ValueError(f"there is no precision {arguments.precision!r}; there are {', '.join(BITS)}")
    if (arguments.peak_gmacs is None) != (arguments.bandwidth_gb is None):
        raise ValueError("say both --peak-gmacs and --bandwidth-gb, or neither")
    if arguments.device is None:
        name = "elsewhere" if said else ""
        return this_device(arguments.runtime, arguments.precision, arguments.threads, name=name)
    path = arguments.devices / arguments.device / "device.json"
    if path.exists():
        return Device.load(path)
    if said:
        return Device(arguments.device, "elsewhere", arguments.precision)
    known = sorted(file.parent.name for file in arguments.devices.glob("*/device.json"))
    raise ValueError(
        f"there is no device {arguments.device!r} in {arguments.devices}, only {', '.join(known) or 'none'}: leave out "
        "--device for this machine, or say --peak-gmacs and --bandwidth-gb"
    )


def roofline_of(arguments: Arguments, device: Device) -> Roofline:
    """What was said, or measured before, or is measured now and kept."""
    if arguments.peak_gmacs is not None and arguments.bandwidth_gb is not None:
        return Roofline(1e9 * arguments.peak_gmacs, {1: 1e9 * arguments.bandwidth_gb})
    folder = arguments.devices / device.name
    if (folder / ROOFLINE).exists():
        return Roofline.load(folder)
    if not is_this_machine(device):
        raise ValueError(f"{device.name} is not this machine: say its --peak-gmacs and --bandwidth-gb")
    runtimes.check(device)
    with progress_bar() as progress:
        task = progress.add_task(f"Measuring peak and bandwidth of {device.name}", total=None, note="")
        roofline = measure_roofline(device, lambda done, total: progress.update(task, completed=done, total=total))
    roofline.save(folder)
    if (load := os.getloadavg()[0]) > (os.cpu_count() or 1):
        say(f"{load:.0f} processes were at work meanwhile: delete {folder / ROOFLINE} to measure when fewer are")
    if not (folder / "device.json").exists():
        device.save(folder / "device.json")
    return roofline


def show(found: Diagnosis, name: str, device: Device, advice: Sequence[Advice]) -> None:
    peak, rate = found.roofline.peak_macs / 1e9, found.roofline.memory_bandwidth / 1e9
    say(f"{device.name}: at most {peak:.3g} GMAC/s and {rate:.3g} GB/s from memory, {device.precision}")
    layer_column = Column("layer", overflow="fold")
    table = Table(
        layer_column, "MACs", "bytes", "FLOP/byte", "at least (ms)", "bound by", title=f"Slowest layers of {name}"
    )
    for layer in sorted(found.layers, key=lambda layer: -layer.estimate_ms)[:SLOWEST]:
        moved = f"{layer.moved_bytes:,.0f}"
        table.add_row(
            layer.name, f"{layer.macs:,}", moved, f"{layer.intensity:.1f}", f"{layer.bound_ms:.4f}", layer.bound_by
        )
    console.print(table)
    shares = ", ".join(f"{name} {share:.0%}" for name, share in found.shares.items())
    say(f"{found.macs:,} MACs: at least {found.bound_ms:.3g} ms, with overhead {found.estimate_ms:.3g} ms ({shares})")
    eager = f"{found.eager_activation_bytes:,} in PyTorch in fp32"
    say(f"activations: {found.activation_bytes:,} bytes at {', '.join(found.peak_layers[-2:])} as deployed ({eager})")
    say(f"weights: {found.stored_bytes:,} bytes")
    for limit, times in found.exceeded.items():
        say(f"{limit} is {found.value(limit):,.6g}, {times:.2f} times its limit of {found.limits[limit]:,.6g}")
    say(f"What holds it back: {verdict(found)}")
    rows = Table("change", "why", "ms", "activation bytes", "stored bytes", title="What would help")
    for row in advice:
        rows.add_row(row.change, row.reason, *outcomes(found, row))
    console.print(rows)


def verdict(found: Diagnosis) -> str:
    words = {MEMORY: "memory for activations", FLASH: "flash for weights"}
    first, *others = (words.get(name, name) for name in found.bottlenecks)
    return first + (f", then {', '.join(others)}" if others else "")


def outcomes(found: Diagnosis, row: Advice) -> tuple[str, str, str]:
    """What a change makes of each, as a number and a part of what it is now."""
    pairs = (
        (f"{row.estimate_ms:.3g}", row.estimate_ms / max(found.estimate_ms, 1e-12)),
        (f"{row.activation_bytes:,}", row.activation_bytes / max(found.activation_bytes, 1)),
        (f"{row.stored_bytes:,}", row.stored_bytes / max(found.stored_bytes, 1)),
    )
    ms, activations, stored = (f"{value} ({part:.0%})" for value, part in pairs)
    return ms, activations, stored
