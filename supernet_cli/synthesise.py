"""Images from a trained network instead of the data that it was trained on, as a folder that one can train with.

    supernet synthesise --teacher subnets/big --output images/
    supernet train-standalone --model tinynet_e --input-size 32 --recipe cifar10 --root images/ \
        --teacher subnets/big --labels 0 --kl 1 --output models/small

DeepInversion (Yin et al., arXiv 1912.08795): images are sought that the network is sure of, whose means and variances
are those that its BatchNorm layers keep. OUTPUT has train/CLASS/*.png, and val/ with a tenth of the images, which are
no test of anything: say --test-root for photographs of your own, if there are some. What a network remembers may show
in such images: they are to be kept as the data would be. A batch is written when it is done; the same command goes on
after the last one. Of networks without BatchNorm, such as transformers, there are no such images.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from distill.inversion import InversionConfig, invert
from supernet.artifacts.atomic import write_atomically
from supernet.artifacts.ownership import owned
from supernet.artifacts.settings import note_settings
from supernet.artifacts.subnet import Subnet, load_network
from supernet.training.data import DataConfig
from supernet.training.execution import pick_device
from supernet.training.randomness import Stream, part_seed
from supernet_cli.command_line import DeviceFlag, console, progress_bar
from supernet_cli.flags import parse_flags


@dataclass(frozen=True)
class Arguments:
    teacher: str
    """The network that is asked: the folder of a saved subnet, or a pretrained model of timm's by name."""
    output: Path
    """Folder for the images."""
    count: int = 2560
    """Images, as many of each class as of any other, or one more."""
    batch_size: int = 256
    """Images that are sought together, whose statistics are compared."""
    inversion: InversionConfig = field(default_factory=InversionConfig)
    seed: int = 0
    """All that is random follows from it."""
    device: DeviceFlag = "auto"

    def __post_init__(self):
        if self.batch_size < 2:
            raise ValueError(f"batch_size is at least 2 images, not {self.batch_size}")


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    network = load_network(arguments.teacher, DataConfig(), ())
    if network.config.input_size is None or network.config.classes is None:
        raise ValueError(f"{arguments.teacher} tells no classes of images apart")
    classes = len(network.config.classes)
    if arguments.count < 2 * classes:
        raise ValueError(f"count is at least 2 images of each of {classes} classes, not {arguments.count}")
    with owned(arguments.output):
        note_settings(arguments.output / "inversion.json", arguments, but=("count", "device", "output"))
        labels = torch.arange(arguments.count) % classes
        batches = labels.split(arguments.batch_size)
        network.model.to(pick_device(arguments.device)).requires_grad_(False)
        with progress_bar() as progress:
            task = progress.add_task("Images", total=len(batches) * arguments.inversion.iterations, note="")
            for index, own in enumerate(batches):
                done = index * arguments.inversion.iterations

                def show(step: int, loss: float, done: int = done) -> None:
                    progress.update(task, completed=done + step, note=f"loss {loss:.3f}")

                first = index * arguments.batch_size
                if not all(path.exists() for path in paths(arguments, network, own, first)):
                    generator = torch.Generator().manual_seed(part_seed(arguments.seed, Stream.INVERSION, index))
                    size = network.config.input_size
                    images = invert(network.model, own, size, arguments.inversion, generator, show)
                    write(images, network, paths(arguments, network, own, first))
    console.print(f"The images are in {arguments.output}; keep them as the data would be.", highlight=False)


def paths(arguments: Arguments, network: Subnet, labels: Tensor, first: int) -> list[Path]:
    """Where the images of a batch go; of every class the first one and then every tenth is for val/."""
    names = network.config.classes
    return [
        arguments.output / ("train" if number // len(names) % 10 else "val") / names[label] / f"{number:06}.png"
        for number, label in enumerate(labels.tolist(), first)
    ]


def write(images: Tensor, network: Subnet, places: list[Path]) -> None:
    """Images as PNG files, without the network's normalisation."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (network.config.mean, network.config.std))
    for image, path in zip(images.cpu(), places):
        picture = to_pil_image((image * std + mean).clamp(0, 1))
        with write_atomically(path) as temporary:
            picture.save(temporary, format="png")
