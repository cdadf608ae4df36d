"""AdaNAS: an ensemble that grows by a network an iteration, each taught by the ensemble before it.

Macko et al., arXiv 1903.06236. In iteration i every candidate h learns by

    cross-entropy(labels, h) + KL(teacher || h)

where the teacher is the whole ensemble so far ("adaptive"), its last member ("born_again"), or nobody ("labels"); the
candidate joins whose ensemble has the least loss on held-out examples. The authors' code has the cross-entropy with the
teacher's probabilities in the place of the KL divergence, which has the same gradient.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.ensemble import fit_weights
from distill.objective import Objective
from supernet.artifacts.ownership import owned
from supernet.artifacts.runs import open_data
from supernet.artifacts.settings import note_settings
from supernet.artifacts.subnet import Subnet, SubnetConfig, load_subnet, save_subnet
from supernet.families import FAMILIES
from supernet.families.named import make_family
from supernet.training.data import DataConfig, ImageData
from supernet.training.data.batch import on
from supernet.training.data.named import only_images
from supernet.training.execution import Execution, pick_device, tf32
from supernet.training.loop import StepResult
from supernet.training.loop.config import LoopConfig
from supernet.training.randomness import Stream, part_seed
from supernet.training.standalone import ModelJob, run_model_job

# M members, B examples, K classes

logger = logging.getLogger(__name__)

BY_TEACHER = Objective(labels=1.0, kl=1.0, temperature=1.0)


@dataclass(frozen=True)
class EnsembleJob:
    """All that defines the growing of an ensemble."""

    space: str
    """Name of the search space of the candidates, one of this package."""
    archs: tuple[str, ...]
    """Architectures as JSON objects; each iteration takes the next ones, and after the last the first again."""
    space_options: str = "{}"
    """Options of the space as a JSON object."""
    members: int = 4
    """Networks of the ensemble, which is as many iterations."""
    candidates: int = 3
    """Networks that are trained in an iteration, of which one joins."""
    learn_from: Literal["adaptive", "born_again", "labels"] = "adaptive"
    """Who teaches the candidates beside the labels: the ensemble so far, its last member, or nobody."""
    data: DataConfig = field(default_factory=DataConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self):
        if self.members < 1 or self.candidates < 1 or not self.archs:
            raise ValueError(
                "an ensemble has at least 1 member, 1 candidate an iteration and 1 architecture, not "
                f"{self.members}, {self.candidates} and {len(self.archs)}"
            )
        if self.learn_from not in ("adaptive", "born_again", "labels"):
            raise ValueError(f"candidates learn from adaptive, born_again or labels, not {self.learn_from!r}")
        if self.space not in FAMILIES:
            raise ValueError(f"members of an ensemble are of a space of this package, not of {self.space!r}")


def grow_ensemble(
    job: EnsembleJob, directory: Path, on_step: Callable[[int, int, StepResult], None] = lambda i, c, result: None
) -> Subnet:
    """Grow the ensemble that `job` describes; on the CPU, in eval mode, its members equally weighted.

    Candidates are trained in `directory` as folders like 2-1, the first of the second iteration, each saved as a
    subnet; ensembles are saved in folders like ensemble-2. A candidate that is there is not trained again, and one that
    was begun goes on. `on_step` is told iteration and candidate, from 1. ValueError if `directory` holds the growing of
    another ensemble, and as `run_model_job` raises it.
    """
    with owned(directory):
        note_settings(directory / "ensemble.json", job, but=("members", "execution"))
        data = open_data(job.data, job.train.seed, job.execution.workers)
        data = only_images(data, "an ensemble", "train a supernet whose space is that one architecture")
        members: list[Path] = []
        for iteration in range(1, job.members + 1):
            candidates = []
            for index in range(1, job.candidates + 1):
                candidates.append(directory / f"{iteration}-{index}")
                if not (candidates[-1] / "config.json").exists():
                    own = candidate_job(job, iteration, index, directory, members)
                    told = lambda result, i=iteration, c=index: on_step(i, c, result)  # noqa: E731
                    subnet = run_model_job(own, candidates[-1] / "training", resume=True, on_step=told)
                    save_subnet(candidates[-1], subnet, onnx=False)
            members.append(_best(members, candidates, data, job.execution))
            logger.info("member %d of the ensemble is %s", iteration, members[-1].name)
            folder = directory / f"ensemble-{iteration}"
            if not (folder / "config.json").exists():
                save_subnet(folder, ensemble_of([load_subnet(member) for member in members], data), onnx=False)
        return load_subnet(folder)


def candidate_job(job: EnsembleJob, iteration: int, index: int, directory: Path, members: Sequence[Path]) -> ModelJob:
    """The training of a candidate, `iteration` and `index` counted from 1, when `members` are in the ensemble."""
    place = (iteration - 1) * job.candidates + index - 1
    teacher = None
    if members and job.learn_from != "labels":
        teacher = members[-1] if job.learn_from == "born_again" else directory / f"ensemble-{len(members)}"
    return ModelJob(
        job.space,
        job.space_options,
        job.archs[place % len(job.archs)],
        teacher=teacher and str(teacher),
        data=job.data,
        train=dataclasses.replace(job.train, seed=part_seed(job.train.seed, Stream.MEMBERS, iteration, index)),
        execution=job.execution,
        objective=BY_TEACHER if teacher else Objective(),
    )


def ensemble_of(members: Sequence[Subnet], data: ImageData, weights: Tensor | None = None) -> Subnet:
    """The ensemble of subnets for images of `data`, with `weights` [M] or equal ones."""
    parts: list[Mapping[str, Any]] = [
        {"space": config.space, "options": json.loads(config.space_options), "arch": dict(config.arch)}
        for _, config in members
    ]
    options = json.dumps({"members": parts})
    family = make_family("ensemble", options, data.family_arguments)
    arch = family.space.largest
    model = family.build(arch)
    for own, member in zip(model.members, members):
        own.load_state_dict(member.model.state_dict())
    if weights is not None:
        model.weights.copy_(weights)
    return Subnet(model.eval(), SubnetConfig.of("ensemble", options, arch, data))


def with_fitted_weights(ensemble: Subnet, data: ImageData, execution: Execution) -> Subnet:
    """The ensemble with the weights of its members that fit the held-out examples best."""
    logits, labels = _answers(list(ensemble.model.members), ensemble.config.input_size[-1], data, execution)
    ensemble.model.weights.copy_(fit_weights(logits, labels))
    return ensemble


def _best(members: Sequence[Path], candidates: Sequence[Path], data: ImageData, execution: Execution) -> Path:
    """The candidate with which the ensemble has the least loss on the held-out examples."""
    subnets = [load_subnet(folder) for folder in (*members, *candidates)]
    resolution = subnets[0].config.input_size[-1]
    logits, labels = _answers([subnet.model for subnet in subnets], resolution, data, execution)
    so_far, tried = logits[: len(members)].sum(0), logits[len(members) :]
    losses = [F.cross_entropy((so_far + own) / (len(members) + 1), labels).item() for own in tried]
    return candidates[losses.index(min(losses))]


def _answers(
    models: Sequence[nn.Module], resolution: int, data: ImageData, execution: Execution
) -> tuple[Tensor, Tensor]:
    """Logits [M, B, K] and labels [B] of the held-out examples, on the CPU."""
    device = pick_device(execution.device)
    logits, labels = [], []
    with torch.inference_mode(), tf32(False):
        placed = [model.to(device).eval() for model in models]
        for batch in data.evaluation_batches(data.holdout, resolution):
            images, own = on(device, batch)
            logits.append(torch.stack([model(images).float().cpu() for model in placed]))
            labels.append(own.cpu())
        for model in models:
            model.cpu()
    return torch.cat(logits, 1).clone(), torch.cat(labels).clone()
