"""The main job from start to end, on handwritten digits: train, measure, search, extract.

    supernet quickstart                # within 5 minutes on 2 cores
    supernet quickstart --output runs/mine

Trains a supernet on scikit-learn's digits, measures some of its subnets on this machine with ONNX Runtime, searches for
the best trade-offs of accuracy and latency, takes the chosen subnet out and writes it. Ends with a table of the Pareto
front and the accuracy on digits that nothing before has seen. Interrupted, it goes on when it is started again.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from predictors import LatencyPredictor, family_costs, measure, prepare, stratified, this_device
from search.history import Evaluation
from search.loop import Result
from search.report.plot import plot_front
from search.report.sources import write_origin
from search.run import ACCURACY, run_search
from search.settings import SearchJob
from supernet.artifacts.runs import Run, run_job
from supernet.artifacts.subnet import load_subnet, onnx_difference, save_subnet, take_out
from supernet.evaluation import accuracy
from supernet.space import Arch
from supernet.training.recipes import digits
from supernet_cli.command_line import console, progress_bar, report
from supernet_cli.flags import parse_flags
from supernet_cli.training_progress import training_progress

LATENCY = "latency_ms"


@dataclass(frozen=True)
class Arguments:
    output: Path = Path("runs/quickstart")
    """Folder for everything that is written."""
    epochs: int = 36
    """Passes over the training digits."""
    subnets: int = 40
    """Subnets that are measured on this machine."""
    evaluations: int = 120
    """Subnets that the search evaluates."""
    seed: int = 0
    """All that is random follows from it."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    begun = time.monotonic()
    output = arguments.output
    trained = train(arguments)
    predictor, device_latency = fit_latency(trained, arguments)
    result = search(trained, predictor, arguments)
    front = sorted(result.front, key=lambda evaluation: evaluation.costs[LATENCY])
    chosen = choose(front)
    measured = device_latency([evaluation.arch for evaluation in front])
    directory = output / "subnet"
    test_accuracy = extract(trained, chosen, measured[chosen.arch], directory)

    table = Table("", "accuracy", "predicted (ms)", "measured (ms)", "MACs (M)", "parameters (K)", title="Pareto front")
    for evaluation in front:
        table.add_row(
            "chosen" if evaluation is chosen else "",
            f"{evaluation.scores[ACCURACY]:.2%}",
            f"{evaluation.costs[LATENCY]:.3f}",
            f"{measured[evaluation.arch]:.3f}",
            f"{trained.family.macs(evaluation.arch) / 1e6:.2f}",
            f"{trained.family.parameters(evaluation.arch) / 1e3:.1f}",
        )
    console.print(table)
    console.print(
        f"Accuracy in the table is on {len(trained.data.holdout)} digits that judged the search. On "
        f"{len(trained.data.test)} digits never seen before, the chosen subnet is right on {test_accuracy:.2%}."
    )
    plot_front(output / "front.svg", result.evaluations, front, measured, chosen, predictor.device.name)
    write_origin(output, output / "train", [output / "latency"], LATENCY)
    report(output)
    places = {
        "supernet": output / "train",
        "latency predictor": output / "latency",
        "search history": output / "search.jsonl",
        "figure of the front": output / "front.svg",
        "chosen subnet": directory,
    }
    for name, path in places.items():
        console.print(f"{name:>19}: {path}", highlight=False)
    console.print(f"Done in {time.monotonic() - begun:.0f} s.")


def train(arguments: Arguments) -> Run:
    job = digits()
    settings = dataclasses.replace(job.train, epochs=arguments.epochs, seed=arguments.seed)
    execution = dataclasses.replace(job.execution, eval_epochs=max(arguments.epochs // 6, 1))
    directory = arguments.output / "train"
    with training_progress("Training the supernet") as show:
        job = dataclasses.replace(job, train=settings, execution=execution)
        return run_job(job, directory, resume=True, on_step=show)


def fit_latency(
    trained: Run, arguments: Arguments
) -> tuple[LatencyPredictor, Callable[[list[Arch]], dict[Arch, float]]]:
    """The latency predictor of this machine, and a function that measures architectures on it in milliseconds."""
    family, device = trained.family, this_device("onnxruntime")
    directory = arguments.output / "latency"

    def prepared(arch: Arch):
        size = family.resolution(arch)
        return prepare(family.build(arch).eval(), device, (family.in_chans, size, size))

    def latency(archs: list[Arch], what: str) -> dict[Arch, float]:
        with progress_bar() as progress:
            task = progress.add_task(what, total=len(archs), note="")
            rows = measure(
                archs,
                prepared,
                directory / "measurements.csv",
                seed=arguments.seed,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            )
        return {row.arch: row.latency_ms for row in rows if not row.error}

    draw = np.random.default_rng(arguments.seed)
    archs = stratified(family.space, family.macs, arguments.subnets, draw)
    latencies = latency(archs, f"Measuring on {device.name}")
    predictor = LatencyPredictor.fit(
        family.space, list(latencies), list(latencies.values()), family_costs(family), device
    )
    predictor.save(directory)
    return predictor, lambda archs: latency(archs, "Measuring the front")


def search(trained: Run, predictor: LatencyPredictor, arguments: Arguments) -> Result:
    """Multi-objective evolution for accuracy on the held-out digits and predicted latency."""
    job = SearchJob(evaluations=arguments.evaluations, population=min(24, arguments.evaluations), seed=arguments.seed)
    with progress_bar() as progress:
        task = progress.add_task("Searching", total=arguments.evaluations, note="")
        result = run_search(
            job,
            trained,
            {LATENCY: predictor},
            arguments.output / "search.jsonl",
            resume=True,
            on_evaluation=lambda evaluation, count: progress.update(task, completed=count),
        ).result
        progress.update(task, completed=arguments.evaluations)
    return result


def choose(front: list[Evaluation]) -> Evaluation:
    """The most accurate on the front."""
    return max(front, key=lambda evaluation: evaluation.scores[ACCURACY])


def extract(trained: Run, chosen: Evaluation, latency_ms: float, directory: Path) -> float:
    """Write the chosen subnet and check it against the supernet; its accuracy on the test digits, from 0 to 1."""
    subnet = take_out(trained, chosen.arch)
    images, labels = trained.data.images(trained.data.test, subnet.config.input_size[-1])
    torch.set_num_threads(1)  # bit for bit: with several, the order of a sum may depend on how busy the machine is
    if not torch.equal(trained.net.extract(chosen.arch)(images), trained.net(images, chosen.arch)):
        raise RuntimeError("the extracted subnet differs from the subnet within the supernet")
    test_accuracy = accuracy(subnet.model, [(images, labels)])
    subnet.config.facts.update(accuracy=test_accuracy, latency_ms=latency_ms)
    shutil.rmtree(directory, ignore_errors=True)  # of an earlier start, which may have chosen another
    save_subnet(directory, subnet)
    loaded = load_subnet(directory).model
    if not torch.equal(loaded(images), subnet.model(images)):
        raise RuntimeError(f"the subnet in {directory} differs from the one that was written")
    difference = onnx_difference(directory, subnet.model, images)
    console.print(
        "The extracted subnet equals the subnet within the supernet bit for bit, and what was written equals it; "
        f"the logits of model.onnx differ by at most {difference:.1e}."
    )
    return test_accuracy
