"""What a finished job proves: how good its network is, how sure that is, and what the plainest alternatives are worth.

Read from the files that the job's commands wrote; nothing is computed on images here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from service.plan import Plan, search_name
from service.progress import SKIPPED, Progress
from service.request import ENOUGH, HERE
from service.stages import (
    EVALUATION,
    INT8,
    LARGEST,
    LARGEST_INT8,
    SEARCHED,
    SMALLER,
    SUBNET,
    TUNED,
    handed_out,
    said_of_subnet,
    smaller_model,
)
from supernet.artifacts.reading import parse_json, read_json, read_rows

BASELINES = {"baseline-largest", "baseline-int8", "baseline-smaller"}  # stages
LEVEL = 0.05  # of the p-value from which on a difference is not distinguishable
ONE_POINT = 0.01  # standard error of an accuracy that the answer about little data aims at


class _Row(TypedDict):
    network: str
    top1: float
    stored_bytes: float
    latency_ms: float


class _Pair(TypedDict):
    network: str
    p_value: float
    standard_error: float


class _Evaluation(TypedDict):
    rows: list[_Row]
    paired: list[_Pair]


class _Told(TypedDict):
    points: float
    standard_error: float
    bytes: float
    milliseconds: float


class _OnTestImages(TypedDict):
    int8: _Told
    mixed: NotRequired[_Told]


class _Quantisation(TypedDict):
    on_test_images: _OnTestImages


def proof(folder: Path) -> dict[str, Any]:
    """The proof of the job in `folder`: networks, limits and answers. ValueError if the job has no network yet."""
    if not (folder / EVALUATION).exists():
        raise ValueError("the job has no proof yet: wait until it is done")
    plan, progress = Plan.load(folder), Progress.load(folder)
    networks = networks_of(folder, plan)
    return {
        "networks": networks,
        "limits": limits_of(folder, plan, networks),
        "stages": {stage.name: {"state": stage.state, "note": stage.note} for stage in progress.stages},
        "answers": answers(plan, progress, networks),
    }


def networks_of(folder: Path, plan: Plan) -> list[dict[str, Any]]:
    """A row each, the job's own first: accuracy (0 to 1) on test images with its standard error, bytes, milliseconds on
    this machine, and, for those in floating point, the p-value of McNemar's test beside the job's own. `paired` are the
    standard errors of the differences, on the same images, that lead from it to the job's own in floating point."""
    evaluation = read_json(folder / EVALUATION, _Evaluation, "evaluation of a job")
    names = {SMALLER: "next smaller timm model", LARGEST: "largest network"}
    pairs = {pair["network"]: pair for pair in evaluation["paired"]}
    rows = []
    for row in evaluation["rows"]:
        found = {
            "network": names.get(row["network"], "found network"),
            "folder": row["network"],
            "precision": "fp32",
            "accuracy": row["top1"],
            "standard_error": standard_error(row["top1"], plan.facts.val),
            "bytes": row["stored_bytes"],
            "latency_ms": row["latency_ms"],
            "p_value": None,
            "paired": {},
        }
        if row["network"] != handed_out(folder):
            pair = pairs[row["network"]]
            found |= {"p_value": pair["p_value"], "paired": {row["network"]: pair["standard_error"]}}
        if row["network"] == SMALLER:
            found["network"] += f", {smaller_model(folder)}, trained from scratch"
        rows.append(found)
    for quantised, own in ((INT8, handed_out(folder)), (LARGEST_INT8, LARGEST)):
        path = folder / quantised / "quantisation.json"
        whole = next((row for row in rows if row["folder"] == own), None)
        if path.exists() and whole:
            content = read_json(path, _Quantisation, "report of a quantisation")
            rows.append(_quantised(content["on_test_images"], quantised, whole, plan.facts.val))
    if plan.request.precision == "int8":
        rows.sort(key=lambda row: row["folder"] != INT8)
    return rows


def _quantised(told: _OnTestImages, folder: str, whole: Mapping[str, Any], images: int) -> dict[str, Any]:
    row = told.get("mixed") or told["int8"]
    accuracy = whole["accuracy"] - row["points"] / 100
    return {
        "network": whole["network"],
        "folder": folder,
        "precision": "int8, some layers in float" if "mixed" in told else "int8",
        "accuracy": accuracy,
        "standard_error": standard_error(accuracy, images),
        "bytes": row["bytes"],
        "latency_ms": row["milliseconds"],
        "p_value": None,
        "paired": whole["paired"] | {folder: row["standard_error"] / 100},
    }


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy p on n images: sqrt(p (1 - p) / n)."""
    return math.sqrt(max(accuracy * (1 - accuracy), 0.0) / images)


def limits_of(folder: Path, plan: Plan, networks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each limit of the request what the job's network takes, by what this is known, and whether it is kept:
    true, false, or None where that cannot be distinguished."""
    own, row = networks[0], front_row(folder)
    found = []
    for name, limit in plan.request.limits.items():
        if name == "latency_ms":
            value = _latency(plan, own, row)
        elif name == "accuracy_drop":
            value = _drop(networks)
        elif name == "stored_bytes" and own["precision"] not in ("fp32", "int8"):
            value = {"value": own["bytes"], "known_by": "the file that is handed out, with layers in float"}
        else:
            value = {"value": None, "known_by": "the search keeps it, counted of the architecture"}
            if row and search_name(plan, name) in row:
                value = {
                    "value": float(row[search_name(plan, name)]),
                    "known_by": "counted of the architecture, as deployed",
                }
        found.append({"name": name, "limit": limit, **value, "kept": value.get("kept", _is_kept(value, limit))})
    return found


def front_row(folder: Path) -> dict[str, str] | None:
    """What the search knew of the architecture that was taken out; None if it was stopped before it had a front."""
    front = folder / SEARCHED / "front.csv"
    arch = said_of_subnet(folder)["arch"]
    rows = read_rows(front, ["arch"]) if front.exists() else []
    return next((row for row in rows if parse_json(row["arch"], dict) == arch), None)


def _is_kept(value: Mapping[str, Any], limit: float) -> bool | None:
    if value["value"] is None:
        return True
    error = 2 * value.get("standard_error", 0.0)
    if value["value"] + error <= limit:
        return True
    return False if value["value"] - error > limit else None


def _latency(plan: Plan, own: Mapping[str, Any], row: Mapping[str, str] | None) -> dict[str, Any]:
    device = plan.request.device_name
    if plan.request.device == HERE:
        return {"value": own["latency_ms"], "known_by": "measured on this machine, the median of its runs"}
    if row is None:
        return {"value": None, "known_by": f"predicted for {device} within the limit, not measured", "kept": None}
    error = float(row[f"{device}, standard error"])
    return {"value": float(row[device]), "standard_error": error, "known_by": f"predicted for {device}, not measured"}


def _drop(networks: list[dict[str, Any]]) -> dict[str, Any]:
    largest = next((row for row in networks if row["folder"] == LARGEST), None)
    if largest is None:
        return {"value": None, "known_by": "the largest network was not evaluated", "kept": None}
    points, error = difference(largest, networks[0])
    known_by = "measured on test images, in points, with the standard error of paired differences"
    return {"value": points, "standard_error": error, "known_by": known_by}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[float, float]:
    """By how many points the accuracy of `one` is higher, and its standard error: that of paired differences, of which
    those between a network and its own in int8 are known apart, and whose sum is no less than the error of all."""
    apart = one["paired"].keys() ^ other["paired"].keys()
    error = sum((one["paired"] | other["paired"])[name] for name in apart)
    return 100 * (one["accuracy"] - other["accuracy"]), 100 * error


def answers(plan: Plan, progress: Progress, networks: list[dict[str, Any]]) -> dict[str, list[str]]:
    """To the three questions that customers ask, in sentences."""
    return {
        "Is it worth it?": worth(progress, networks),
        "Does it need my data to leave?": leaving(plan),
        "What if I have little data?": little_data(plan, networks[0]),
    }


def worth(progress: Progress, networks: list[dict[str, Any]]) -> list[str]:
    """The found network beside the plainest alternatives: the same model in int8, and the next smaller one."""
    own, lines = networks[0], []
    for row in networks[1:]:
        if row["folder"] not in (LARGEST_INT8, SMALLER):
            continue
        points, error = difference(own, row)
        p_value = row["p_value"] if own["precision"] == "fp32" else None
        by = f"standard error {error:.1f}" if p_value is None else f"McNemar's test: p = {p_value:.2g}"
        said = f"{abs(points):.1f} points {'more' if points > 0 else 'fewer'} right ({by})"
        if abs(points) < error if p_value is None else p_value >= LEVEL:
            said = f"not distinguishable in accuracy ({points:+.1f} points, {by})"
        what = f"the {row['network']} in {row['precision']}"
        costs = f"{own['latency_ms'] / row['latency_ms']:.2g} times its milliseconds on this machine"
        lines.append(f"Beside {what} it is {said}, with {costs} and {own['bytes'] / row['bytes']:.2g} times its bytes.")
    if not lines:
        lines.append("The budget had no time for the plainest alternatives, so that this cannot be answered.")
    in_float = next((row for row in networks[1:] if own["folder"] == INT8 and row["folder"] in (SUBNET, TUNED)), None)
    if in_float and own["latency_ms"] > in_float["latency_ms"]:
        lines.append(
            f"On this machine int8 makes it slower: {own['latency_ms']:.3g} ms, and {in_float['latency_ms']:.3g} ms in "
            f"{in_float['precision']}. It saves bytes; the faster one is in {in_float['folder']}/."
        )
    spent = {stage.name: stage.core_seconds / 3600 for stage in progress.stages}
    plain = sum(hours for name, hours in spent.items() if name in BASELINES)
    lines.append(
        f"Finding it cost {sum(spent.values()) - plain:.3g} core-hours, training included, and the alternatives "
        f"{plain:.3g} more."
    )
    lines += [f"{stage.name} was left out: {stage.note}." for stage in progress.stages if stage.state == SKIPPED]
    return lines


def leaving(plan: Plan) -> list[str]:
    """Where the images are, and what leaves the server."""
    where = f"stay where they were, in {plan.root}" if plan.request.path else "are in the folder of this job alone"
    lines = [
        f"No. The images {where}, and the server sends them nowhere; delete the job, or its images, when you like."
    ]
    if plan.request.weights == "published":
        lines.append("The weights that the model began with were asked for from their publisher by the model's name.")
    return lines


def little_data(plan: Plan, own: Mapping[str, Any]) -> list[str]:
    facts = plan.facts
    needed = math.ceil(own["accuracy"] * (1 - own["accuracy"]) / ONE_POINT**2)
    lines = [
        f"This job learnt from {facts.train} images, of which the rarest class has {facts.least_of_a_class}, and was "
        f"judged by {facts.val}: its accuracy has a standard error of {100 * own['standard_error']:.1f} points."
    ]
    if needed > facts.val:
        lines.append(f"With {needed} test images that would be 1 point.")
    if plan.is_refitted:
        lines.append("They were too few to train on: the weights were fitted to them layer by layer, without labels.")
    else:
        lines.append(
            f"As a rule of thumb {ENOUGH['none']} images of a class do without weights and {ENOUGH['published']} with "
            "published ones; with weights for these very classes fewer are fitted to layer by layer, without labels."
        )
    return lines
