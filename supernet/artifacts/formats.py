"""The formats that results are written in, by number, and how what a former one holds is read as of today.

A file says the number of its format; a file from before there were numbers is of format 1. Readers bring what they find
up to today's format, migration by migration, and refuse a newer format.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supernet.errors import first_line


class UnknownFormat(ValueError):
    """A file is of a format that this version of the package does not know."""


Migration = Callable[[dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class Format:
    """The format of one kind of file."""

    kind: str  # what the files are, for errors
    migrations: tuple[Migration, ...] = ()  # the n-th, counted from 1, makes the content of format n + 1 from n's
    prefix: str = ""  # what stands before the number in the file

    @property
    def number(self) -> int:
        """The number of the format that is written today."""
        return 1 + len(self.migrations)

    @property
    def label(self) -> str | int:
        """How a file says the number of today's format."""
        return f"{self.prefix}{self.number}" if self.prefix else self.number

    def number_of(self, label: object, path: Path) -> int:
        """The number that a file says by `label`; UnknownFormat, naming `path`, if it is none of these formats, such as
        that of a later version."""
        text = str(label).removeprefix(self.prefix)
        if not text.isdecimal() or len(text) > 9 or not 1 <= int(text) <= self.number:
            raise UnknownFormat(
                f"{path} is a {self.kind} of format {label!r}, and this version of the package reads 1 to "
                f"{self.number}: take the version that wrote it, or a later one"
            )
        return int(text)

    def upgraded(self, content: Mapping[str, Any], label: object, path: Path) -> dict[str, Any]:
        """`content` of a file that says `label`, as it would be written today; raises what `number_of` does, and
        ValueError, naming `path`, for what no file of that format holds."""
        content = dict(content)
        for migrate in self.migrations[self.number_of(label, path) - 1 :]:
            try:
                content = migrate(content)
            except (LookupError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is no {self.kind} of format {label!r}: {first_line(error)}") from None
        return content


def _execution_apart(config: dict[str, Any]) -> dict[str, Any]:
    """Format 1 of a run had what is now `execution` among the settings of training and images; its oldest files had no
    rules by which images are found, which are the first ones."""
    moved = {
        "data": ("workers",),
        "train": (
            *("device", "amp", "channels_last", "compile", "eval_epochs", "eval_images", "eval_random"),
            *("log_steps", "tensorboard", "checkpoint_steps", "checkpoint_minutes", "keep_checkpoints"),
        ),
    }
    job = config["job"]
    execution = {name: job[part][name] for part, names in moved.items() for name in names if name in job.get(part, {})}
    parts = {part: {n: v for n, v in job.get(part, {}).items() if n not in names} for part, names in moved.items()}
    parts["data"] = {"rules": 1} | parts["data"]
    return config | {"job": job | parts | {"execution": execution}}


def _arguments_of_the_family(config: dict[str, Any]) -> dict[str, Any]:
    """Format 2 of a run knew images with classes alone."""
    return config | {
        "family_arguments": {"num_classes": len(config["classes"])},
        "held_out": config["images"]["holdout"],
        "dataset_sha256": None,
    }


def _step_by_name(config: dict[str, Any]) -> dict[str, Any]:
    """Format 3 of a run said whether steps were compiled."""
    execution = dict(config["job"].get("execution", {}))
    if execution.pop("compile", False):
        execution["step"] = "compile"
    return config | {"job": config["job"] | {"execution": execution}}


def _code_of_the_space(subnet: dict[str, Any]) -> dict[str, Any]:
    """Format 1 of a subnet knew the spaces of this package alone."""
    return subnet | {"space_sha256": None}


def _family_of_the_subnet(subnet: dict[str, Any]) -> dict[str, Any]:
    """Format 2 of a subnet knew images with classes alone."""
    return subnet | {
        "family_arguments": {"num_classes": len(subnet["classes"])},
        "inputs": [{"name": "images", "shape": subnet["input_size"], "dtype": "float32"}],
        "output_names": ["logits"],
    }


def _no_digest(subnet: dict[str, Any]) -> dict[str, Any]:
    """Format 3 of a subnet did not say which bytes its weights are."""
    return subnet | {"weights_sha256": None}


def _nothing_found(subnet: dict[str, Any]) -> dict[str, Any]:
    """Format 4 of a subnet did not say how it was found."""
    return subnet | {"found": {}}


def _several_methods(predictor: dict[str, Any]) -> dict[str, Any]:
    """Format 1 of a predictor had one method, and judged it by the measurements that it had been chosen by."""
    names = ("kind", "logarithmic", "sources", "log_variances")
    method = {name: predictor[name] for name in names} | {"weight": 1.0}
    others = {name: value for name, value in predictor.items() if name not in names}
    return others | {"methods": [method], "held_out_ms": None, "held_out_error_ms": None}


def _latency_alone(predictor: dict[str, Any]) -> dict[str, Any]:
    """Format 2 of a predictor was of a latency, and fitted to all measurements as they were."""
    return predictor | {"quantity": "latency_ms", "fitted_ms": None}


def _score_apart(settings: dict[str, Any]) -> dict[str, Any]:
    """Format 1 of a search's settings called a score other than accuracy a strategy, and the score None."""
    if not {"strategy", "score"} <= settings.keys():
        return settings  # of a search that is not by SearchJob
    strategy, score = settings["strategy"], settings["score"]
    if strategy in ("te_nas", "dna"):  # which come with a search of their own
        strategy, score = None, strategy
    elif strategy in ("zero_cost", "rdm"):
        strategy, score = "evolution", strategy
    return settings | {"strategy": strategy, "score": score or "accuracy"}


def _blocks_by_the_loop(settings: dict[str, Any]) -> dict[str, Any]:
    """Format 2 of a search's settings knew no clipping and no moving average of blocks."""
    if "dna" not in settings:
        return settings
    return settings | {"dna": settings["dna"] | {"clip": None, "clip_mode": "norm", "ema_decay": None}}


def _images_at_each_resolution(settings: dict[str, Any]) -> dict[str, Any]:
    """Format 3 of a search's settings knew images that are prepared at each resolution alone."""
    return {"resize_images": False} | settings if "calibration_images" in settings else settings


def _rejected(settings: dict[str, Any]) -> dict[str, Any]:
    """Format 4 of a history had no evaluations that were rejected by some of the examples."""
    return settings


RUN = Format("training run", (_execution_apart, _arguments_of_the_family, _step_by_name))
SUBNET = Format("subnet", (_code_of_the_space, _family_of_the_subnet, _no_digest, _nothing_found))
COMPRESSED = Format("compressed subnet")
PREDICTOR = Format("latency predictor", (_several_methods, _latency_alone))
HISTORY = Format(
    "search history",
    (_score_apart, _blocks_by_the_loop, _images_at_each_resolution, _rejected),
    prefix="supernet search history ",
)
ROOFLINE = Format("roofline of a device")
DIAGNOSIS = Format("diagnosis")
PIPELINE = Format("record of a pipeline")
CHECKPOINT = Format("checkpoint of a training", prefix="supernet-checkpoint-")
