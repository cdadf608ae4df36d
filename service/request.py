"""What a customer asks for, checked before anything is written."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

HERE = "here"  # the device that the server runs on
OWN = "own:"  # before the name of a device of the customer's
PRECISIONS = ("fp32", "int8")
WEIGHTS = ("none", "published", "uploaded")
TESTED = 100  # images that an accuracy of 50 % needs for a standard error of 5 points: 0.25 / 0.05 ** 2
# training images of each class, by what the network knows already: rules of thumb, and told as such
ENOUGH = {"none": 50, "published": 10, "uploaded": 2}
LIMITS = {
    "latency_ms": "milliseconds of one image on the device",
    "stored_bytes": "bytes of the weights as deployed, at the job's precision",
    "activation_bytes": "bytes of RAM that activations take at once, at the job's precision",
    "accuracy_drop": "points of accuracy below the largest network of the job",
}
NAME = re.compile(r"[\w.-]{1,64}", flags=re.ASCII)
MODEL = re.compile(r"\w[\w.]{0,99}", flags=re.ASCII)  # no path, no address, no flag


@dataclass(frozen=True)
class JobRequest:
    """One job; ValueError, naming the field and the remedy, for what contradicts itself or is out of range."""

    minutes: float
    """Budget of time in minutes; at its end the best so far is handed out."""
    device: str = HERE
    """`here`, a device with a predictor on the server, or own:NAME, which is measured by the customer."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Largest admissible values by the names in `LIMITS`."""
    precision: str = "fp32"
    """In which the network runs on the device: fp32 or int8."""
    path: str | None = None
    """Folder on the server with train/ and val/; None where a zip is uploaded."""
    model: str = ""
    """timm's name of a model to make smaller; a supernet is trained from scratch without one."""
    weights: str = "none"
    """The model's weights: none, published (timm's) or uploaded (safetensors)."""
    input_size: int | None = None
    """Pixels a side of the model's images; None for its own."""
    epochs: int | None = None
    """Passes over the training images; None for as many as the budget has time for."""
    flip: bool = False
    """Whether a picture means the same when left and right are exchanged."""
    name: str = ""
    """What the job is called on the page."""
    seed: int = 0
    """All that is random follows from it."""

    def __post_init__(self) -> None:
        _number("minutes", self.minutes, 0.1, 7 * 24 * 60)
        _number("seed", self.seed, 0, 2**31 - 1, whole=True)
        if self.epochs is not None:
            _number("epochs", self.epochs, 1, 10_000, whole=True)
        if self.input_size is not None:
            _number("input_size", self.input_size, 16, 1024, whole=True)
        for name, most in (("name", 100), ("path", 4096), ("model", 100), ("device", 70)):
            value = getattr(self, name)
            if not (isinstance(value, str) or (name == "path" and value is None)):
                raise ValueError(f"{name} is a text, not {value!r}")
            if value and (len(value) > most or not value.isprintable()):
                raise ValueError(f"{name} has at most {most} printable characters")
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip is true or false, not {self.flip!r}")
        if not NAME.fullmatch(self.device.removeprefix(OWN)):
            raise ValueError(
                f"a device is {HERE}, the name of one with a predictor, or {OWN}NAME of letters, digits, '-', '_' and "
                f"'.', not {self.device!r}"
            )
        if self.model and not MODEL.fullmatch(self.model):
            raise ValueError(f"model is a name of timm's, of letters, digits, '_' and '.', not {self.model!r}")
        for name, known in (("precision", PRECISIONS), ("weights", WEIGHTS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {' or '.join(known)}, not {getattr(self, name)!r}")
        if not self.model and (self.weights != "none" or self.input_size is not None):
            raise ValueError("weights and input_size belong to a model: say which model")
        self._check_limits()

    def _check_limits(self) -> None:
        if not isinstance(self.limits, Mapping):
            raise ValueError(f"limits are an object of names and numbers, not {self.limits!r}")
        for name, value in self.limits.items():
            if name not in LIMITS:
                raise ValueError(f"there is no limit {name!r}; the limits are {', '.join(LIMITS)}")
            _number(f"the limit {name}", value, 0.0, 1e15)
            if value == 0 and name != "accuracy_drop":
                raise ValueError(f"the limit {name} is 0, but only a positive one can be met")

    @classmethod
    def from_json(cls, values: object) -> JobRequest:
        """The request that JSON gave these `values` of; ValueError for what is none."""
        if not isinstance(values, dict):
            raise ValueError("a job is a JSON object with at least its minutes")
        known = [each.name for each in dataclasses.fields(cls)]
        if unknown := sorted(map(str, values.keys() - set(known))):
            raise ValueError(f"a job has no field {unknown[0]!r}; its fields are {', '.join(known)}")
        if "minutes" not in values:
            raise ValueError("say the job's budget of time in minutes")
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"limits": dict(self.limits)}

    @property
    def device_name(self) -> str:
        """What predictors and limits call the device."""
        return self.device.removeprefix(OWN)

    @property
    def is_measured_elsewhere(self) -> bool:
        return self.device.startswith(OWN)


def _number(name: str, value: object, low: float, high: float, *, whole: bool = False) -> None:
    kind = "a whole number" if whole else "a number"
    accepted = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, accepted) or not low <= value <= high:
        raise ValueError(f"{name} is {kind} from {low:g} to {high:g}, not {value!r}")
