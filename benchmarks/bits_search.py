"""Whether to search for a network and its bits together, or for the network first, at the same bit operations.

    python benchmarks/bits_search.py [--quick] [--json FILE]

Networks of `mobilenet_v3_micro` on scikit-learn's digits, whose blocks compute in 2, 4 or 8 bits, within one limit on
bit operations (multiply-accumulates times bits of weights times bits of inputs). A network in 8 bits may have a 64th of
it as multiply-accumulates.

eight     a float supernet searched for that many multiply-accumulates; the network in 8 bits
then      a float supernet searched for 16/9 of that, as in 6 bits; then each block gets its bits, so that the summed
          divergence of blocks is least, each rounded alone without training (`compress.allocation.allocate`)
together  a supernet whose blocks choose their bits (`mixed_precision`), searched for both

Both supernets train for the same number of epochs and both searches evaluate as many. What is chosen is trained alone
in its bits, for the same epochs, and judged on the 360 digits of the test, on which nothing was chosen. Standard errors
are over seeds, of differences within a seed. Half an hour of one core; what was trained is kept in OUTPUT.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from digits_mlp import mean_and_error
from report import report
from rich.progress import track

from compress.allocation import allocate
from compress.sensitivity import divergence, logits
from compress.transforms import Bits, transformed
from search.history import best_archs
from search.run import run_search
from search.settings import SearchJob
from supernet.artifacts.atomic import write_json
from supernet.artifacts.runs import Run, open_data, run_job
from supernet.artifacts.subnet import take_out
from supernet.evaluation import accuracy
from supernet.families import FAMILIES, Family
from supernet.families.low_bits import roundable
from supernet.skeleton import copy_to
from supernet.space import Arch
from supernet.training.data.batch import take
from supernet.training.execution import Execution
from supernet.training.recipes import digits
from supernet.training.standalone import ModelJob, model_settings, run_model_job

BITS = (2, 4, 8)
ARMS = ("eight", "then", "together")
IMAGES = 128  # held-out ones that sensitivities are of


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    limit: float = 8e7
    """Bit operations; all of the largest network in 8 bits are 4.5e8."""
    epochs: int = 12
    """Of each supernet."""
    alone: int = 30
    """Of each network alone."""
    evaluations: int = 120
    """Of each search."""
    output: Path = Path("runs/bits_search")
    """Folder for what was trained before."""
    quick: bool = False
    """One seed, an epoch each, 8 evaluations."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        small = {"seeds": 1, "epochs": 1, "alone": 1, "evaluations": 8}
        measure(dataclasses.replace(arguments, **small, output=Path(folder)))


def measure(arguments: Arguments) -> None:
    found = [cells(arguments, seed) for seed in track(range(arguments.seeds), "Seeds")]
    rows = []
    for arm in ARMS:
        own = [seed[arm] for seed in found]
        middle, error = mean_and_error([cell["accuracy"] for cell in own])
        costs = {name: mean_and_error([cell[name] for cell in own])[0] for name in ("bit_operations", "macs", "bits")}
        rows.append({"arm": arm, "seeds": len(own), "accuracy (%)": middle, "its standard error": error, **costs})
    summary = {}
    for arm in ARMS[:2]:
        gains = [seed["together"]["accuracy"] - seed[arm]["accuracy"] for seed in found]
        summary[f"together_over_{arm}"], summary[f"together_over_{arm}_error"] = mean_and_error(gains)
    report(rows, summary, arguments.json)


def cells(arguments: Arguments, seed: int) -> dict[str, dict[str, float]]:
    """What each arm chose with a seed, and its accuracy in percent."""
    folder = arguments.output / f"seed-{seed}"
    file = folder / "cells.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    family = FAMILIES["mixed_precision"](bits=BITS)
    for arm in ARMS:
        if arm not in known:
            arch = chosen(arguments, arm, seed, folder, family)
            bits = [value for name, value in arch.items() if name.endswith(".bits")]
            known[arm] = {
                "accuracy": alone(arguments, arch, seed, folder / f"{arm}-alone", family),
                "bit_operations": family.counts["bit_operations"](arch),
                "macs": family.macs(arch),
                "bits": sum(bits) / len(bits),
                "arch": arch.to_json(),
            }
            write_json(file, known, indent=None)
    return known


def chosen(arguments: Arguments, arm: str, seed: int, folder: Path, family: Family) -> Arch:
    if arm == "together":
        run = supernet(arguments, "mixed_precision", json.dumps({"bits": BITS}), seed, folder / "together-supernet")
        return searched(arguments, run, {"bit_operations": arguments.limit}, seed, folder / arm)
    run = supernet(arguments, "mobilenet_v3_micro", "{}", seed, folder / "float-supernet")
    part = 1 if arm == "eight" else 16 / 9
    arch = searched(arguments, run, {"macs": part * arguments.limit / 64}, seed, folder / arm)
    if arm == "eight":
        return in_bits(family, arch, {})
    return allocated(arguments, run, arch, family)


def supernet(arguments: Arguments, space: str, options: str, seed: int, folder: Path) -> Run:
    recipe = digits()
    warmup_epochs = min(recipe.train.warmup, arguments.epochs / 4)
    train = dataclasses.replace(recipe.train, epochs=arguments.epochs, warmup_epochs=warmup_epochs, seed=seed)
    execution = Execution(workers=0, eval_epochs=0)
    job = dataclasses.replace(recipe, space=space, space_options=options, train=train, execution=execution)
    return run_job(job, folder, resume=True)


def searched(arguments: Arguments, run: Run, limits: dict[str, float], seed: int, folder: Path) -> Arch:
    population = min(30, arguments.evaluations)
    job = SearchJob(limits=limits, evaluations=arguments.evaluations, population=population, seed=seed)
    history = folder / "search.jsonl"
    run_search(job, run, {}, history, resume=history.exists())
    return best_archs(history, 1)[0]


def in_bits(family: Family, arch: Arch, bits: dict[str, int]) -> Arch:
    """`arch` with `bits` by the names of their choices, 8 where nothing is said."""
    every = {name: bits.get(name, BITS[-1]) for name in family.space.choices if name.endswith(".bits")}
    here = {name for name, layer in family.space.choices.items() if is_active(layer.when, arch)}
    return family.space.validate({**arch, **{name: value for name, value in every.items() if name in here}})


def is_active(when, arch: Arch) -> bool:
    return all(arch.get(name) in values for name, values in when.items())


def allocated(arguments: Arguments, run: Run, arch: Arch, family: Family) -> Arch:
    """Bits of least summed divergence within the limit, which 2 bits everywhere have to meet."""
    operations = family.counts["bit_operations"]
    whole = in_bits(family, arch, {})
    names = [name for name in whole if name.endswith(".bits")]
    least = dict.fromkeys(names, BITS[0])
    base = operations(in_bits(family, arch, least))
    costs = [[operations(in_bits(family, arch, {**least, name: b})) - base for b in BITS] for name in names]
    model = take_out(run, arch).model
    size = run.family.resolution(arch)
    images = list(take(run.data.evaluation_batches(run.data.holdout, size), IMAGES))
    expected = logits(model, images)
    gains = [[-rounded_alone(model, name, bits, images, expected) for bits in BITS] for name in names]
    options = allocate(gains, costs, arguments.limit - base)
    return in_bits(family, arch, {name: BITS[option] for name, option in zip(names, options)})


def rounded_alone(model, name: str, bits: int, images, expected) -> float:
    block = name.removesuffix(".bits")
    weights = [f"{layer}.weight" for layer in roundable(model) if layer.rpartition(".")[0] == block]
    rounded = transformed(copy_to(model, torch.device("cpu")), dict.fromkeys(weights, Bits(bits))).eval()
    return divergence(expected, logits(rounded, images))


def alone(arguments: Arguments, arch: Arch, seed: int, folder: Path, family: Family) -> float:
    recipe = digits()
    train = dataclasses.replace(
        model_settings(recipe.train), epochs=arguments.alone, warmup_epochs=arguments.alone / 10, seed=seed, lr=0.1
    )
    options = json.dumps({"bits": BITS})
    job = ModelJob(
        "mixed_precision", options, arch.to_json(), data=recipe.data, train=train,
        execution=Execution(workers=0, eval_epochs=0),
    )  # fmt: skip
    model = run_model_job(job, folder, resume=True).model
    data = open_data(job.data, seed, 0)
    return 100 * accuracy(model, data.evaluation_batches(data.test, family.resolution(arch)))


if __name__ == "__main__":
    main()
