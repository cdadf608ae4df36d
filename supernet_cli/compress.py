"""Store a subnet in few bytes: prune it, let weights share values, tune these, and code what is left.

    supernet compress --subnet subnets/mine --run runs/mine --density 0.2 --bits 5 --output mine.compressed
    supernet compress --subnet subnets/mine --run runs/mine --post-training --bits 8 --output mine.compressed
    supernet compress --subnet subnets/mine --recipe cifar10 --root images/ --density 0.1 --prune-rounds 5 \
        --epochs 10 --output mine.compressed

Deep compression (Han et al., arXiv 1510.00149). After each round of pruning, and with codebooks, the network trains for
--epochs, by default as long and as gently as `supernet finetune` does; nothing is trained with --post-training. Prints
the bytes of the file beside those of the same network uncompressed, and the accuracy on the test images. `supernet
evaluate` takes the file, `compress.container.load_compressed` gives the module back; its runs lie beside it, in
mine.training/. It saves bytes on disk and on the way; in memory the network is as large, and as slow, as before. Half a
minute for digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from compress.container import save_compressed
from compress.deep_compression import CompressJob, run_compress_job
from compress.sizes import uncompressed_bytes
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import load_subnet
from supernet.training.execution import pick_device
from supernet_cli.command_line import console
from supernet_cli.finetune import settings as fine_tuning
from supernet_cli.model_training import Arguments as Training
from supernet_cli.model_training import as_kind, on_test_images, parse, run_with_progress, say


@dataclass(frozen=True)
class Arguments(Training):
    job: Annotated[CompressJob, tyro.conf.arg(name="")]
    output: Path
    """File for the network; its runs go to a folder beside it, whose name ends in .training."""


def main() -> None:
    compress(parse(Arguments, __doc__, settings, CompressJob, beside))


def compress(arguments: Arguments) -> None:
    """What the command does."""
    output, job = arguments.output, arguments.job
    if arguments.subnet is None and not arguments.resume:
        raise ValueError("say which subnet to compress: --subnet FOLDER")
    if output.exists():
        raise ValueError(f"there is {output} already; name another file")
    subnet = run_with_progress(arguments, beside(output), run_compress_job)
    if subnet is None:
        return
    data = open_data(job.data, job.train.seed, job.execution.workers)
    found = on_test_images(subnet, data, pick_device(job.execution.device))
    if found is not None:
        subnet.config.facts["accuracy"] = found["accuracy"]
    stored = save_compressed(output, subnet)
    before = load_subnet(job.start, space=job.space)
    say(job.start, on_test_images(before, data, pick_device(job.execution.device)))
    say(f"{output}", found)
    for name, size in uncompressed_bytes(before, onnx=arguments.onnx).items():
        console.print(f"{size:>12,} bytes  {size / stored:6.1f} x  {name}", highlight=False)
    console.print(f"{stored:>12,} bytes          {output}, all that is in it", highlight=False, soft_wrap=True)


def beside(output: Path) -> Path:
    """Where the runs for the file `output` lie."""
    return output.with_name(f"{output.name.removesuffix('.compressed')}.training")


def settings(job, known) -> CompressJob:
    """As a fine-tuning of the subnet has them."""
    return as_kind(CompressJob, fine_tuning(job, known))
