"""Spaces all of whose networks were trained, and what is known of their networks, for the benchmarks."""

from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch.utils.data import Subset

from supernet import Arch
from supernet.artifacts.atomic import write_atomically
from supernet.families import nas_bench_201, nas_bench_macro
from supernet.training.data import DataConfig, ImageData, open_images


class Names(NamedTuple):
    """How the networks of a space are written in its table."""

    parse: Callable[[str], Arch]
    write: Callable[[Mapping[str, str]], str]


SPACES = {
    "nasbench_macro": Names(nas_bench_macro.from_string, nas_bench_macro.to_string),
    "nasbench201": Names(nas_bench_201.from_string, nas_bench_201.to_string),
}


def published_accuracy(space: str, data: Path, trainings: int | None = None) -> dict[Arch, float]:
    """Test accuracy in percent of every architecture in the table of a space: the mean over so many `trainings`, or all
    that the table has. `data` is the folder of the data."""
    with gzip.open(data / "accuracy" / f"{space}_cifar10.csv.gz", "rt") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or () if "accuracy" in name][:trainings]
        return {
            SPACES[space].parse(line["arch"]): float(np.mean([float(line[name]) for name in columns]))
            for line in reader
        }


def drawn(table: Mapping[Arch, float], count: int, seed: int = 0) -> list[Arch]:
    """`count` random architectures of a table."""
    archs = list(table)
    return [archs[index] for index in np.random.default_rng(seed).choice(len(archs), count, replace=False)]


def cifar10(data: Path, images: int, seed: int, workers: int) -> ImageData:
    """CIFAR-10 with the first `images` of its training images."""
    config = DataConfig(
        "folder",
        str(data / "cifar10" / "train.tar"),
        str(data / "cifar10" / "val.tar"),
        scale=(0.6, 1.0),
        color_jitter=0.0,
        crop_pct=1.0,
    )
    opened = open_images(config, seed, workers=workers)
    return dataclasses.replace(opened, train=Subset(opened.train, range(images)))


class Known:
    """Numbers by name and architecture with the seconds that they took, kept as JSON lines."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._entries: dict[tuple[str, str], tuple[float, float]] = {}
        for line in path.read_text().splitlines() if path.exists() else ():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:  # of a process that was killed
                continue
            self._entries[entry["name"], entry["arch"]] = entry["value"], entry["seconds"]

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._entries

    def value(self, name: str, arch: str, compute: Callable[[], float]) -> float:
        if (name, arch) not in self._entries:
            begun = time.perf_counter()
            self.add(name, arch, compute(), time.perf_counter() - begun)
        return self._entries[name, arch][0]

    def add(self, name: str, arch: str, value: float, seconds: float) -> None:
        self._entries[name, arch] = value, seconds
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a") as file:
            entry = {"name": name, "arch": arch, "value": value, "seconds": seconds}
            file.write("\n" + json.dumps(entry) if file.tell() else json.dumps(entry))

    def seconds(self, name: str) -> float:
        """The median over architectures."""
        return float(np.median([seconds for (own, _), (_, seconds) in self._entries.items() if own == name]))


@contextmanager
def timed(path: Path) -> Iterator[None]:
    """Note in `path` how long a training took, over all attempts that came to an end or were interrupted by Ctrl-C."""
    before = json.loads(path.read_text()) if path.exists() else {"seconds": 0.0, "done": False}
    begun, done = time.monotonic(), False
    try:
        yield
        done = True
    finally:
        if not before["done"]:
            content = {"seconds": before["seconds"] + time.monotonic() - begun, "done": done}
            with write_atomically(path) as temporary:
                temporary.write_text(json.dumps(content))


def seconds_of(path: Path) -> float:
    """How long the training took that `timed` noted in `path`."""
    return json.loads(path.read_text())["seconds"]
