"""Whether any network of a job's space keeps within its limits, before time is spent on looking for the best one.

Counts grow with every choice, because each tensor of a smaller network is a part of the larger one's: what the smallest
network takes is the least. Latencies are the least that a predictor says of any network (`search.limits.reachable`), or
the fastest of some runs of the smallest network on this machine, which is a lower bound where other work slows it down.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from service.plan import Plan, search_limits
from service.request import HERE

if TYPE_CHECKING:
    from predictors import LatencyPredictor
    from supernet.families import Family
    from supernet.space import SearchSpace

Check = Callable[[Plan, Path], tuple[str, ...]]  # what `check_reachable` is
RUNS = 30
SLACK = 0.8  # of the fastest run: networks that are even faster are left to the search to find
_one_at_a_time = threading.Lock()  # measuring two networks at once measures neither


def check_reachable(plan: Plan, devices: Path) -> tuple[str, ...]:
    """The names of those in `devices`, a folder for each predictor, that are of the plan's space.

    ValueError if there is no such model or device, or, with the least reachable value, for a limit that no network of
    the plan's space keeps.
    """
    with _one_at_a_time:
        return _check(plan, devices)


def _check(plan: Plan, devices: Path) -> tuple[str, ...]:
    from search.counts import count
    from search.limits import reachable
    from search.problem import Problem
    from supernet.families.named import make_family

    request = plan.request
    family = make_family(plan.space, _untrained(plan), {"num_classes": len(plan.facts.classes)})
    limits = search_limits(plan)
    latency_ms = limits.pop(request.device_name, None)
    for name, limit in limits.items():
        (least,) = count(name, family)([family.space.smallest])
        if least > limit:
            raise ValueError(_beyond(name, limit, f"{least}, of the smallest network"))
    if request.device == HERE and latency_ms is not None:
        fastest = fastest_ms(family, request.precision)
        if SLACK * fastest > latency_ms:
            told = f"about {fastest:.3g} ms, measured of the smallest network on this machine"
            raise ValueError(_beyond("latency_ms", latency_ms, told))
    predictors = _of_space(devices, family.space)
    if request.device != HERE and not request.is_measured_elsewhere:
        if request.device not in predictors:
            raise ValueError(
                f"there is no device {request.device!r} for networks of this kind; there are "
                f"{', '.join([HERE, *predictors])}, and those of your own as own:NAME"
            )
        if latency_ms is not None:
            predictor = predictors[request.device]
            cost = {"latency_ms": lambda archs: predictor.predict(archs).latency_ms}
            problem = Problem(family.space, ["accuracy"], cost, {"latency_ms": latency_ms})
            reachable(problem, np.random.default_rng(request.seed))
    return tuple(predictors)


def _of_space(devices: Path, space: SearchSpace) -> dict[str, LatencyPredictor]:
    """The server's predictors that are of this space, by device."""
    from predictors import LatencyPredictor

    found = {}
    for name in known_devices(devices):
        try:
            found[name] = LatencyPredictor.load(devices / name, space)
        except ValueError:  # of another space
            continue
    return found


def known_devices(devices: Path) -> list[str]:
    return sorted(path.parent.name for path in devices.glob("*/predictor.json"))


def fastest_ms(family: Family, precision: str) -> float:
    """Of the smallest network of the family, by ONNX Runtime in one thread."""
    from predictors import prepare, this_device

    arch = family.space.smallest
    timer = prepare(family.build(arch).eval(), this_device("onnxruntime", precision), family.example(arch))
    return float(min(timer(RUNS)))


def _untrained(plan: Plan) -> str:
    """The options of the space without weights, which take time to load and change no cost."""
    return json.dumps({name: value for name, value in plan.space_options.items() if name != "pretrained"})


def _beyond(name: str, limit: float, least: str) -> str:
    return f"no network meets the limit {name} <= {limit:g}; the smallest reachable value is {least}"
