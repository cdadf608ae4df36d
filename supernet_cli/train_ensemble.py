"""Grow an ensemble: candidates learn from the ensemble so far, and the best of them joins it.

    supernet train-ensemble --run runs/mine --history runs/mine/search.jsonl --output models/ensemble
    supernet train-ensemble --run runs/mine --members 3 --candidates 2 --learn-from labels --output models/ensemble

AdaNAS (Macko et al., arXiv 1903.06236). The candidates are the best architectures of a search, in order, or random ones
of the run's space, all at one resolution; they are trained from scratch on the run's images, with its settings for
single models (`supernet train-standalone`). Who joins, and with --fit-weights how much each member counts, is decided
on held-out images. An ensemble costs what its members cost together. OUTPUT is a subnet like any other, for supernet
evaluate, measuring and --teacher; its candidates and former stages lie in OUTPUT/growing, where a growing that was
stopped goes on when the same command is given again. It takes as long as the trainings of all candidates.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from search.growing_ensemble import EnsembleJob, grow_ensemble, with_fitted_weights
from search.history import best_archs
from supernet.artifacts.runs import open_data, read_family
from supernet.artifacts.subnet import save_subnet
from supernet.training.data import ImageData
from supernet.training.execution import located, pick_device
from supernet.training.standalone import model_settings
from supernet_cli.command_line import DeviceFlag, console
from supernet_cli.flags import parse_flags
from supernet_cli.model_training import job_of, on_test_images
from supernet_cli.training_progress import training_progress


@dataclass(frozen=True)
class Arguments:
    run: Path
    """Folder of a supernet's training run: whose space and images these are."""
    output: Path
    """Folder for the ensemble."""
    history: Path | None = None
    """History of a search of this run, whose best architectures are the candidates; random ones without it."""
    members: int = EnsembleJob.members
    """Networks of the ensemble."""
    candidates: int = EnsembleJob.candidates
    """Networks that are trained for each of them."""
    learn_from: Literal["adaptive", "born_again", "labels"] = EnsembleJob.learn_from
    """Who teaches candidates beside the labels: the ensemble so far, its last member, or nobody."""
    fit_weights: bool = False
    """Weigh members by what fits the held-out images best, which overfits where these are few; equally otherwise."""
    resolution: int | None = None
    """Pixels a side of all members' images; by default those of the first candidate."""
    epochs: int | None = None
    """Epochs of each candidate; by default the run's."""
    seed: int = 0
    """All that is random follows from it."""
    root: str | None = None
    """Folder or tar file of the run's images, if they are no longer where they were in training."""
    test_root: str | None = None
    """The same of the test images."""
    device: DeviceFlag = "auto"
    onnx: bool = True
    """Write model.onnx too."""


def main() -> None:
    arguments = parse_flags(Arguments, __doc__)
    if (arguments.output / "config.json").exists():
        raise ValueError(f"{arguments.output} holds a model already; name another folder")
    job = ensemble_job(arguments)
    with training_progress() as show:

        def tell(iteration, candidate, result):
            show(result, f"member {iteration} of {job.members}, candidate {candidate} of {job.candidates}")

        ensemble = grow_ensemble(job, arguments.output / "growing", on_step=tell)
    data = open_data(job.data, job.train.seed, job.execution.workers)
    assert isinstance(data, ImageData)  # or it had not grown
    device = pick_device(job.execution.device)
    for index, member in enumerate(ensemble.model.members, 1):
        found = on_test_images(ensemble._replace(model=member), data, device)
        console.print(f"member {index}: {found['accuracy']:.2%} of the test images are right", highlight=False)
    found = on_test_images(ensemble, data, device)
    console.print(f"equal weights: {found['accuracy']:.2%} of the test images are right", highlight=False)
    if arguments.fit_weights:
        ensemble = with_fitted_weights(ensemble, data, job.execution)
        found = on_test_images(ensemble, data, device)
        weights = ", ".join(f"{weight:.2f}" for weight in ensemble.model.weights.tolist())
        console.print(f"weights {weights}: {found['accuracy']:.2%} of the test images are right", highlight=False)
    ensemble.config.facts["accuracy"] = found["accuracy"]
    save_subnet(arguments.output, ensemble, onnx=arguments.onnx)
    console.print(f"The ensemble is in {arguments.output}.")


def ensemble_job(arguments: Arguments) -> EnsembleJob:
    """What the flags ask for."""
    job = job_of(arguments.run, "")
    space = read_family(arguments.run).space
    count = arguments.members * arguments.candidates
    if arguments.history is None:
        generator = np.random.default_rng(arguments.seed)
        archs = [space.sample(generator) for _ in range(count)]
    else:
        archs = best_archs(arguments.history, count)
    if "resolution" in space.choices:
        resolution = arguments.resolution or archs[0]["resolution"]
        archs = list(dict.fromkeys(space.validate({**arch, "resolution": resolution}) for arch in archs))
    train = dataclasses.replace(model_settings(job.train), seed=arguments.seed)
    if arguments.epochs is not None:
        train = dataclasses.replace(train, epochs=arguments.epochs)
    return EnsembleJob(
        job.space,
        tuple(arch.to_json() for arch in archs),
        job.space_options,
        arguments.members,
        arguments.candidates,
        arguments.learn_from,
        located(job.data, arguments.root, arguments.test_root),
        train,
        dataclasses.replace(job.execution, device=arguments.device),
    )
