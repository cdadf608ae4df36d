"""What training for few bits brings over rounding afterwards, at the same number of epochs.

    python benchmarks/quantisation_training.py [--quick] [--json FILE]

The smallest network of `mobilenet_v3_micro` is trained on scikit-learn's digits, then for as long again at a tenth of
the learning rate: in float, and with its weights rounded to 8, 4, 3 and 2 bits and its activations to 8 in every step
(`compress.quantisation.QuantisationAware`). What was trained on in float is rounded to the same bits afterwards. Both
are judged on the 360 digits of the test as they compute rounded, and neither was chosen by anything.

float    trained on in float, not rounded
after    that, rounded, with ranges of least squared error
trained  trained on for these bits

Seeds decide on first weights and on the order of digits; standard errors are over seeds, those of gains of differences
within a seed. Ten minutes of one core for three seeds. Every network is kept in OUTPUT and not trained again.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from digits_mlp import mean_and_error
from report import report
from rich.progress import track
from torch import nn

from compress.quantisation import Quantisation, Quantised, activation_ranges
from compress.quantisation.aware import QuantisationAware
from supernet.artifacts.atomic import write_json
from supernet.artifacts.deployment import deployed
from supernet.artifacts.runs import open_data
from supernet.artifacts.subnet import load_subnet, save_subnet
from supernet.evaluation import accuracy
from supernet.families.mobilenet_v3 import mobilenet_v3_micro
from supernet.training.data import ImageData
from supernet.training.execution import Execution
from supernet.training.recipes import digits
from supernet.training.standalone import ModelJob, Trainee, model_settings, run_model_job

CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    bits: tuple[int, ...] = (8, 4, 3, 2)
    """Of weights."""
    epochs: int = 30
    """Of the first training, and of each that goes on from it."""
    output: Path = Path("runs/quantisation_training")
    """Folder for what was trained before."""
    quick: bool = False
    """One seed, 3 epochs, weights of 8 and 2 bits."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        measure(dataclasses.replace(arguments, seeds=1, epochs=3, bits=(8, 2), output=Path(folder)))


def measure(arguments: Arguments) -> None:
    found = [accuracies(arguments, seed) for seed in track(range(arguments.seeds), "Training")]
    rows = [row(arm, [own[arm] for own in found]) for arm in found[0]]
    summary = {}
    for bits in arguments.bits:
        gains = [own[f"trained, {bits} bits"] - own[f"after, {bits} bits"] for own in found]
        summary[f"gain_{bits}_bits"], summary[f"gain_{bits}_bits_error"] = mean_and_error(gains)
    report(rows, summary, arguments.json)


def row(arm: str, values: Sequence[float]) -> dict[str, object]:
    middle, error = mean_and_error(values)
    return {"network": arm, "seeds": len(values), "accuracy (%)": middle, "its standard error": error}


def accuracies(arguments: Arguments, seed: int) -> dict[str, float]:
    """In percent, of each arm."""
    file = arguments.output / f"seed-{seed}.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    job, folder = first_job(arguments.epochs, seed), arguments.output / f"seed-{seed}"
    data = open_data(job.data, seed, 0)

    def kept(arm: str, network) -> None:
        if arm not in known:
            known[arm] = judged(network(), data)
            write_json(file, known, indent=None)

    start = folder / "first"
    if not (start / "config.json").exists():
        save_subnet(start, run_model_job(job, folder / "first-run", resume=True), onnx=False)
    train = dataclasses.replace(job.train, lr=job.train.lr / 10, warmup_epochs=0.0)
    further = dataclasses.replace(job, start=str(start), train=train)
    in_float = folder / "float"
    if not (in_float / "config.json").exists():
        save_subnet(in_float, run_model_job(further, folder / "float-run", resume=True), onnx=False)
    kept("float", lambda: load_subnet(in_float).model)
    for bits in arguments.bits:
        kept(f"after, {bits} bits", lambda bits=bits: rounded(load_subnet(in_float).model, data, bits, seed))
        kept(f"trained, {bits} bits", lambda bits=bits: trained(further, folder / f"{bits}-run", bits))
    return known


def first_job(epochs: int, seed: int) -> ModelJob:
    recipe = digits()
    warmup_epochs = min(recipe.train.warmup, epochs / 4)
    train = dataclasses.replace(
        model_settings(recipe.train), epochs=epochs, warmup_epochs=warmup_epochs, seed=seed, lr=0.1
    )
    arch = mobilenet_v3_micro().space.smallest.to_json()
    return ModelJob(arch=arch, data=recipe.data, train=train, execution=Execution(workers=0, eval_epochs=0))


def rounded(model: nn.Module, data: ImageData, bits: int, seed: int) -> nn.Module:
    plain = deployed(model)
    size = resolution()
    ranges = activation_ranges(plain, [b[0] for b in data.calibration_batches(size, CALIBRATION_IMAGES, seed)])
    return Quantised(plain, Quantisation(ranges, weight_bits=bits))


def trained(job: ModelJob, folder: Path, bits: int) -> nn.Module:
    def aware(trainee: Trainee, data: ImageData) -> nn.Module:
        images = [batch[0] for batch in data.calibration_batches(resolution(), CALIBRATION_IMAGES, job.train.seed)]
        return QuantisationAware(trainee.model, activation_ranges(deployed(trainee.model), images, "extremes"), bits)

    return run_model_job(job, folder, resume=True, around=aware).model.quantised()


def judged(network: nn.Module, data: ImageData) -> float:
    return 100 * accuracy(network.eval(), data.evaluation_batches(data.test, resolution()))


def resolution() -> int:
    family = mobilenet_v3_micro()
    return family.resolution(family.space.smallest)


if __name__ == "__main__":
    main()
