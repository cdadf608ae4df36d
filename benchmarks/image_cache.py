"""What does it save to keep decoded images in memory (`--cache-bytes`)?

    python benchmarks/image_cache.py [--quick] [--json FILE] [--data ../shared/data]

Loading alone, without a network: passes over 550 photographs of ImageNet (JPEG, shorter side 256 pixels), cropped at
random, flipped and normalised as for training, in this process, at several resolutions. Passes without a cache and with
one that is full take turns, and see the same crops. Seconds are of the processor, so that other processes matter
little; the ratio is the mean of those of neighbouring passes, with its standard error.

A minute of one core; --quick has one resolution and two passes in a quarter of it.
"""

from __future__ import annotations

import dataclasses
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro
from report import report

from supernet.training.data import DataConfig, ImageData, open_images

RESOLUTIONS = (64, 128, 224)
BATCH = 50


@dataclasses.dataclass(frozen=True)
class Arguments:
    quick: bool = False
    json: Path | None = None
    data: Path = Path("../shared/data")
    """Folder with photos/images.tar."""
    passes: int = 7
    """Passes of each kind at each resolution, after the one that fills the cache."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    passes, resolutions = (2, RESOLUTIONS[-1:]) if arguments.quick else (arguments.passes, RESOLUTIONS)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        unpack(arguments.data / "photos" / "images.tar", Path(folder))
        plain = open_images(DataConfig("folder", root=folder, holdout=0.01, color_jitter=0.0))
        rows = [row(plain, resolution, passes) for resolution in resolutions]
    summary = {f"ratio_{own['resolution']}": own["ratio"] for own in rows}
    summary["bytes_an_image"] = rows[0]["bytes kept"] / rows[0]["images"]
    report(rows, summary, arguments.json, passes=passes)


def unpack(archive: Path, folder: Path) -> None:
    """Folders of two classes, of which the split val has a seventh of the photographs."""
    with tarfile.open(archive) as tar:
        members = sorted(filter(tarfile.TarInfo.isfile, tar), key=lambda member: member.name)
        for index, member in enumerate(members):
            split = "val" if index % 7 == 0 else "train"
            path = folder / split / "ab"[index % 2] / Path(member.name).name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar.extractfile(member).read())


def row(plain: ImageData, resolution: int, passes: int) -> dict[str, float]:
    cached = plain.cached(2**31)
    filling, _ = passed(cached, resolution, 0)
    kept = cached.train.dataset.bytes_kept
    pairs = []
    for seed in range(1, passes + 1):
        (without, first), (with_it, second) = passed(plain, resolution, seed), passed(cached, resolution, seed)
        assert first == second, "cached images are others"
        pairs.append((without, with_it))
    ratios = [with_it / without for without, with_it in pairs]
    images = plain.steps_per_epoch(BATCH) * BATCH
    return {
        "resolution": resolution,
        "images": images,
        "ms an image": 1e3 * mean(own for own, _ in pairs) / images,
        "ms an image, cached": 1e3 * mean(own for _, own in pairs) / images,
        "ms an image, filling": 1e3 * filling / images,
        "ratio": mean(ratios),
        "standard error": stdev(ratios) / len(ratios) ** 0.5,
        "bytes kept": kept,
    }


def passed(data: ImageData, resolution: int, seed: int) -> tuple[float, float]:
    """Seconds of the processor for one pass, and the sum of all values that it gives."""
    begun, total = time.process_time(), 0.0
    for images, _ in data.training_batches(resolution, BATCH, seed, range(data.steps_per_epoch(BATCH))):
        total += float(images.double().sum()) if isinstance(images, torch.Tensor) else float(images.values.sum())
    return time.process_time() - begun, total


if __name__ == "__main__":
    main()
