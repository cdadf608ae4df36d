"""The commands that a job is made of, in their order; each can be given by hand in the job's folder.

A stage knows its command as a list of arguments, by which file it is known to be done, and at which part of the budget
it has to end. What a stage leaves unspent, those after it have. Nothing here runs anything: `service.worker` does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from service.plan import Plan, search_limits
from service.request import HERE, TESTED
from supernet.artifacts.reading import read_json, read_rows

MEASUREMENTS = "measurements.csv"  # that the customer brings
TO_MEASURE = "measure"  # folder with the ONNX files to time
SUBNET, TUNED, INT8, EVALUATION = "subnet", "tuned", "int8", "evaluation.json"
LARGEST, LARGEST_INT8, SMALLER = "baseline/largest", "baseline/largest-int8", "baseline/smaller"
PREDICTORS = "latency"
SEARCHED = "searched"  # folder of the search
SUGGESTED = 10  # networks that a customer is asked to time
SECONDS_A_SUBNET = 3.0  # that measuring one takes, and some more
MOST_EPOCHS = 100
FILLED = 0.8  # of the time for training by epochs, as it takes to start, and other work may slow it down
EVALUATIONS, EVALUATIONS_A_MINUTE, POPULATION = 240, 18, 24  # of a search, at most and of the whole budget
SURE = 0.95  # probability of keeping within a limit that is not measured
LADDER = (  # networks of timm's by their MACs at 224 pixels, in millions, as plain alternatives to a subnet
    ("mobilenetv3_small_050", 24),
    ("mobilenetv3_small_100", 57),
    ("tinynet_e", 88),
    ("mobilenetv3_large_075", 155),
    ("mobilenetv3_large_100", 217),
    ("efficientnet_b0", 386),
    ("resnet18", 1814),
    ("resnet34", 3664),
    ("resnet50", 4089),
)


@dataclass(frozen=True)
class Setting:
    """Where and with what the stages of a job run."""

    folder: Path
    """Of the job."""
    plan: Plan
    devices: Path
    """Folder of the predictors that the server has."""
    threads: int = 1


@dataclass(frozen=True)
class Stage:
    """One command. `arguments` makes them of the setting and of the seconds that there are for it."""

    name: str
    arguments: Callable[[Setting, float], Sequence[object]]
    output: str | None = None
    """File by which it is known to be done; None for a command without one."""
    until: float = 1.0
    """Part of the budget at which it has to end."""
    partial: str | None = None
    """File with which the job goes on where the stage was stopped at that time."""
    needed: bool = True
    """Whether the job fails with it; otherwise it is left out where it fails or there is no time."""
    waits_for: str | None = None
    """File that somebody has to bring before it."""


def stages_of(plan: Plan) -> list[Stage]:
    """The stages of a job, in order."""
    request = plan.request
    found = [Stage("check-images", check_images, until=0.1)]
    if request.device == HERE:
        found.append(Stage("measure", measure, f"{PREDICTORS}/{HERE}/predictor.json", until=0.2))
    if request.is_measured_elsewhere:
        found.append(Stage("suggest", suggest, f"{TO_MEASURE}/manifest.csv", until=0.2))
    if not plan.is_refitted and request.epochs is None:
        found.append(Stage("probe", probe, "probe/supernet.safetensors", until=0.25))
    found.append(Stage("train", train, "run/supernet.safetensors", until=0.65))
    if request.is_measured_elsewhere:
        fitted = f"{PREDICTORS}/{request.device_name}/predictor.json"
        found.append(Stage("fit", fit, fitted, until=0.67, waits_for=MEASUREMENTS))
    found.append(Stage("search", search, f"{SEARCHED}/front.csv", until=0.8, partial=f"{SEARCHED}/search.jsonl"))
    found.append(Stage("extract", extract, f"{SUBNET}/config.json"))
    if request.model and not plan.is_refitted:
        found.append(Stage("finetune", finetune, f"{TUNED}/config.json", until=0.87, needed=False))
    if request.precision == "int8":
        found.append(Stage("quantise", quantise, f"{INT8}/config.json"))
    found += [
        Stage("baseline-largest", largest, f"{LARGEST}/config.json", until=0.92, needed=False),
        Stage("baseline-int8", largest_int8, f"{LARGEST_INT8}/config.json", until=0.94, needed=False),
        Stage("baseline-smaller", smaller, f"{SMALLER}/config.json", until=0.98, needed=False),
        Stage("evaluate", evaluate, EVALUATION),
    ]
    return found


def check_images(setting: Setting, seconds: float) -> list[object]:
    return ["check-images", "--root", setting.plan.root, "--workers", 0]


def measure(setting: Setting, seconds: float) -> list[object]:
    subnets = int(min(100, max(12, seconds / SECONDS_A_SUBNET)))
    request = setting.plan.request
    said = ["--name", HERE, "--precision", request.precision, "--threads", setting.threads, "--output", PREDICTORS]
    return ["measure-latency", *_family(setting), *said, "--subnets", subnets, "--seed", request.seed]


def suggest(setting: Setting, seconds: float) -> list[object]:
    return ["fit-latency", *_family(setting), *_sources(setting), "--suggest", SUGGESTED, "--export-to", TO_MEASURE]


def fit(setting: Setting, seconds: float) -> list[object]:
    request = setting.plan.request
    said = ["--name", request.device_name, "--precision", request.precision, "--output", PREDICTORS]
    return ["fit-latency", *_family(setting), *_sources(setting), "--measurements", MEASUREMENTS, *said]


def probe(setting: Setting, seconds: float) -> list[object]:
    """One pass over the images, to know how long one takes."""
    return [*_training(setting, "probe", seconds), "--epochs", 1, "--warmup-epochs", 0, "--eval-epochs", 0]


def train(setting: Setting, seconds: float) -> list[object]:
    if setting.plan.is_refitted:  # a step that is too short to change anything, as there are no weights without one
        still = ["--lr", 1e-12, "--epochs", 1, "--warmup-epochs", 0, "--weight-decay", 0, "--eval-epochs", 0]
        return [*_training(setting, "run", seconds), *still]
    epochs = setting.plan.request.epochs or epochs_within(seconds, seconds_an_epoch(setting.folder / "probe"))
    begun = setting.folder / "run" / "config.json"
    if begun.exists():  # it goes on by its own settings
        epochs = read_json(begun, _Run, "description of a run")["job"]["train"]["epochs"]
    return [*_training(setting, "run", seconds), "--epochs", epochs, "--warmup-epochs", min(5, epochs / 10)]


def seconds_an_epoch(run: Path) -> float:
    """Of a training of one epoch, without its start: its config.json is written when the first step is done."""
    config, weights = run / "config.json", run / "supernet.safetensors"
    return weights.stat().st_mtime - config.stat().st_mtime


def epochs_within(seconds: float, seconds_an_epoch: float) -> int:
    """As many as there is time for beside the start, at least 1 and at most `MOST_EPOCHS`."""
    return int(min(MOST_EPOCHS, max(1, FILLED * seconds / max(seconds_an_epoch, 1e-3))))


def search(setting: Setting, seconds: float) -> list[object]:
    request = setting.plan.request
    evaluations = int(min(EVALUATIONS, max(POPULATION, EVALUATIONS_A_MINUTE * request.minutes)))
    limits = [f"{name}={value:.10g}" for name, value in search_limits(setting.plan).items()]
    predictor = PREDICTORS if request.device == HERE or request.is_measured_elsewhere else setting.devices
    resume = ["--resume"] if (setting.folder / SEARCHED / "search.jsonl").exists() else []
    return [
        *("search", "--run", "run", "--output", SEARCHED, *resume),
        *("--predictors", f"{predictor}/{request.device_name}"),
        *(["--limits", *limits] if limits else []),
        *("--evaluations", evaluations, "--population", POPULATION, "--seed", request.seed),
    ]


def extract(setting: Setting, seconds: float) -> list[object]:
    arch = chosen_arch(setting.folder, setting.plan)
    which = ["--history", f"{SEARCHED}/search.jsonl"] if arch is None else ["--arch", arch]
    refit = ["--refit-images", min(300, setting.plan.facts.train)] if setting.plan.is_refitted else []
    return ["extract", "--run", "run", *which, *refit, "--output", SUBNET]


def chosen_arch(folder: Path, plan: Plan) -> str | None:
    """The most accurate architecture of the search's front, by held-out images, of those that surely keep the limit on
    the latency: measured on this machine, or else predicted with a probability of `SURE`. Where none does, it is the
    one that is nearest to it. None for a search that was stopped before it had a front."""
    path = folder / SEARCHED / "front.csv"
    if not path.exists():
        return None
    rows = read_rows(path, ["accuracy", "arch"])
    device, limit = plan.request.device_name, plan.request.limits.get("latency_ms", math.inf)

    def misses(row: dict[str, str]) -> float:
        if measured := row.get(f"{device}, measured"):
            return float(measured) / limit - 1
        return SURE - float(row.get(f"{device}, within limit") or 1)

    kept = [row for row in rows if misses(row) <= 0]
    best = max(kept, key=lambda row: float(row["accuracy"])) if kept else min(rows, key=misses)
    return best["arch"]


def finetune(setting: Setting, seconds: float) -> list[object]:
    command = ["finetune", "--subnet", SUBNET, "--run", "run", "--output", TUNED]
    return [*command, *_resumed(setting, f"{TUNED}/training"), *_execution(seconds)]


def quantise(setting: Setting, seconds: float) -> list[object]:
    drop = setting.plan.request.limits.get("accuracy_drop")
    limits = [] if drop is None else ["--limits", f"accuracy_drop={drop:.10g}"]
    return [*_quantised(setting, handed_out(setting.folder)), "--output", INT8, *limits]


def handed_out(folder: Path) -> str:
    """The folder of the network in floating point that the job ends with."""
    return TUNED if (folder / TUNED / "config.json").exists() else SUBNET


def largest(setting: Setting, seconds: float) -> list[object]:
    return ["extract", "--run", "run", "--largest", "--output", LARGEST]


def largest_int8(setting: Setting, seconds: float) -> list[object]:
    return [*_quantised(setting, LARGEST), "--output", LARGEST_INT8]


def smaller(setting: Setting, seconds: float) -> list[object]:
    size = said_of_subnet(setting.folder)["input_size"][-1]
    said = ["--model", smaller_model(setting.folder), "--input-size", max(32, size)]
    command = ["train-standalone", *said, "--run", "run", "--output", SMALLER, "--no-onnx"]
    return [*command, *_resumed(setting, f"{SMALLER}/training"), *_execution(seconds)]


class _Facts(TypedDict):
    macs: float


class SubnetSays(TypedDict):
    """What jobs rely on of a subnet's config.json."""

    arch: dict[str, Any]
    input_size: list[int]
    facts: _Facts


class _Train(TypedDict):
    epochs: float


class _Job(TypedDict):
    train: _Train


class _Run(TypedDict):
    job: _Job


def said_of_subnet(folder: Path) -> SubnetSays:
    """Of the one that the job in `folder` took out; ValueError, naming the file, if that is none."""
    return read_json(folder / SUBNET / "config.json", SubnetSays, "configuration of a subnet")


def smaller_model(folder: Path) -> str:
    """timm's name of the largest network on the `LADDER` with no more MACs than the subnet; ValueError if there is
    none."""
    config = said_of_subnet(folder)
    scale = (config["input_size"][-1] / 224) ** 2
    fitting = [name for name, macs in LADDER if macs * 1e6 * scale <= config["facts"]["macs"]]
    if not fitting:
        raise ValueError(
            f"the smallest that it could be compared with, {LADDER[0][0]}, takes more MACs than what was found"
        )
    return fitting[-1]


def evaluate(setting: Setting, seconds: float) -> list[object]:
    there = [name for name in (LARGEST, SMALLER) if (setting.folder / name / "config.json").exists()]
    networks = [handed_out(setting.folder), *there]
    return ["evaluate", *networks, "--run", "run", "--threads", setting.threads, "--json", EVALUATION]


def _family(setting: Setting) -> list[object]:
    """The space, which can be measured before anything is trained."""
    plan = setting.plan
    said = ["--family", plan.space, "--space-options", json.dumps(plan.space_options)]
    return [*said, "--num-classes", len(plan.facts.classes)]


def _sources(setting: Setting) -> list[object]:
    """Predictors of the server's for the same space."""
    found = [setting.devices / name for name in setting.plan.sources]
    return ["--sources", *found] if found else []


def _training(setting: Setting, output: str, seconds: float) -> list[object]:
    plan = setting.plan
    request = plan.request
    return [
        *("train", "--recipe", plan.recipe, "--root", plan.root, "--output", output, *_resumed(setting, output)),
        *("--space", plan.space, "--space-options", json.dumps(plan.space_options)),
        *("--batch-size", plan.batch_size, "--hflip", 0.5 if request.flip else 0, "--seed", request.seed),
        *_held_out(plan),
        *_execution(seconds),
    ]


def _held_out(plan: Plan) -> list[object]:
    """A part of the training images that leaves enough of them to choose by, but no more than a half."""
    part = min(0.5, max(0.1, TESTED / plan.facts.train))
    return ["--holdout", round(part, 3)] if part > 0.1 else []


def _execution(seconds: float) -> list[object]:
    return ["--minutes", round(max(seconds, 6) / 60, 3), "--workers", 0, "--checkpoint-minutes", 1]


def _resumed(setting: Setting, run: str) -> list[object]:
    return ["--resume"] if (setting.folder / run / "config.json").exists() else []


def _quantised(setting: Setting, network: str) -> list[object]:
    return ["quantise", "--subnet", network, "--run", "run", "--threads", setting.threads]
