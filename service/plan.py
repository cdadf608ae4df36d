"""How a request becomes a training: recipe, search space, size of a batch, and whether the images are enough."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.archive import ImageFacts
from service.request import ENOUGH, TESTED, JobRequest
from supernet.artifacts.atomic import write_json
from supernet.artifacts.reading import read_json

FILE = "job.json"
IMAGES, UPLOADED_WEIGHTS = "images", "weights.safetensors"  # in the folder of a job
SMALL = 64  # pixels a side up to which images are for networks of few pixels
STEPS_AN_EPOCH = 16  # a batch is made smaller until there are so many


@dataclass(frozen=True)
class Plan:
    """All that a job's commands follow from; it lies in the job's folder."""

    request: JobRequest
    facts: ImageFacts
    root: str
    """Where the images lie: in the folder of the job, or anywhere on the server."""
    recipe: str
    space: str
    space_options: dict[str, Any]
    batch_size: int
    is_refitted: bool
    """Whether the images are too few to train on, and uploaded weights are fitted to them layer by layer instead."""
    sources: tuple[str, ...] = ()
    """Devices of the server with predictors for the same space, from which a customer's own is learnt."""

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Of the job in `folder`; ValueError, naming the file, if it is none."""
        return read_json(folder / FILE, cls, "plan of a job")


def make_plan(request: JobRequest, facts: ImageFacts) -> Plan:
    """ValueError, with the number of images that would do, if there are too few to learn from or to judge by."""
    least = ENOUGH[request.weights]
    if facts.val < TESTED:
        raise ValueError(
            f"{facts.val} images to test on leave the accuracy with a standard error above 5 points: {TESTED} in val/ "
            "would do"
        )
    if facts.least_of_a_class < least:
        without = "" if request.weights == "uploaded" else ", or 2 with uploaded weights for these very classes"
        raise ValueError(
            f"a class has {facts.least_of_a_class} images to train on, which are too few with weights: "
            f"{request.weights}; {least} of each would do{without}"
        )
    batch_size = 256
    while batch_size > 8 and facts.train < STEPS_AN_EPOCH * batch_size:
        batch_size //= 2
    root = IMAGES if request.path is None else request.path
    shared = {"request": request, "facts": facts, "root": root, "batch_size": batch_size}
    if request.model:
        pretrained = {"none": False, "published": True, "uploaded": UPLOADED_WEIGHTS}[request.weights]
        size = {} if request.input_size is None else {"input_size": request.input_size}
        options = {"name": request.model, "pretrained": pretrained, **size}
        few = request.weights == "uploaded" and facts.least_of_a_class < ENOUGH["published"]
        return Plan(recipe="prune", space="from_timm", space_options=options, is_refitted=few, **shared)
    space = "mobilenet_v3_micro" if facts.side <= SMALL else "ofa_mobilenet_v3"
    return Plan(recipe="cifar10", space=space, space_options={}, is_refitted=False, **shared)


def search_name(plan: Plan, limit: str) -> str | None:
    """What `supernet search` calls a limit of the request: latencies by the device's name, bytes by the precision; None
    for what it knows nothing of."""
    request = plan.request
    names = {
        "latency_ms": request.device_name,
        "stored_bytes": "stored_bytes" if request.precision == "fp32" else f"stored_bytes.{request.precision}",
        "activation_bytes": f"activation_bytes.{request.precision}",
    }
    return names.get(limit)


def search_limits(plan: Plan) -> dict[str, float]:
    """The limits of the request that the search keeps, by its names."""
    named = {search_name(plan, limit): float(value) for limit, value in plan.request.limits.items()}
    return {name: value for name, value in named.items() if name is not None}
