"""What each stage of making a network smaller brought, in one record and one picture: accuracy, bytes, milliseconds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from supernet.artifacts import formats, provenance
from supernet.artifacts.atomic import write_atomically, write_json
from supernet.artifacts.reading import read_json, typed

Verdict = Literal["faster", "slower", "not distinguishable"]


@dataclass(frozen=True)
class StageResult:
    """What a stage made of the network that it was given, and whether it stays; `before` is that network."""

    stage: str
    left_out: str | None = None  # why its network is not the one that goes on
    folder: str | None = None  # where its network lies, from the record's folder on; None where it made none
    file: str | None = None  # what the device keeps
    accuracy: float | None = None  # on test images, from 0 to 1
    accuracy_error: float | None = None  # its standard error
    drop: float | None = None  # points fewer of the same test images right than by `before`
    drop_error: float | None = None  # its standard error, of paired differences
    bytes: int | None = None  # of the file
    milliseconds: float | None = None  # of one image, the median
    time_ratio: float | None = None  # of its milliseconds and those of `before`, measured in turns
    time_ratio_error: float | None = None  # its standard error, relative
    verdict: Verdict | None = None


def reason_to_leave_out(result: StageResult, must_be_faster: bool) -> str | None:
    """Why a stage is left out, or None: since the device is slower with it, or, where it `must_be_faster`, since
    nothing shows that it is not."""
    if result.verdict is None or result.verdict == "faster":
        return None
    if result.verdict == "slower" or must_be_faster:
        was = "slower" if result.verdict == "slower" else "not measurably faster"
        return f"{was}: {result.time_ratio:.3f} of the time, give or take {result.time_ratio_error:.3f}"
    return None


@dataclass(frozen=True)
class Record:
    """The stages so far, of a pipeline that is defined by `settings`."""

    settings: Mapping[str, Any]  # as JSON gives them back
    device: Mapping[str, Any]
    stages: tuple[StageResult, ...] = ()

    @property
    def last(self) -> StageResult | None:
        """The last stage whose network goes on."""
        return next((result for result in reversed(self.stages) if result.left_out is None), None)

    def of(self, stage: str) -> StageResult | None:
        return next((result for result in self.stages if result.stage == stage), None)

    def with_stage(self, result: StageResult) -> Record:
        return dataclasses.replace(self, stages=(*self.stages, result))

    def write(self, path: Path) -> None:
        content = {
            "format": formats.PIPELINE.label,
            "command": provenance.command(),
            "date": provenance.today(),
            "versions": provenance.versions(),
            **dataclasses.asdict(self),
        }
        write_json(path, content)


def read_record(path: Path) -> Record:
    """The record in the file `path`; ValueError, naming it, if it is none."""
    content = read_json(path, dict, "record of a pipeline")
    content = formats.PIPELINE.upgraded(content, content.get("format", 1), path)
    known = {field.name: content[field.name] for field in dataclasses.fields(Record) if field.name in content}
    try:
        return typed(Record, known)
    except ValueError as error:
        raise ValueError(f"{path} is no record of a pipeline: {error}") from error


def plot_stages(path: str | Path, results: Sequence[StageResult]) -> None:
    """Write an SVG with a bar for each stage in three panels, of accuracy (bars of one standard error), bytes and
    milliseconds; what was left out is pale and hatched."""
    from matplotlib.figure import Figure

    results = [result for result in results if result.accuracy is not None]
    figure = Figure(figsize=(9, 3), layout="constrained")
    panels = (
        (
            "right of the test images (%)",
            [100 * r.accuracy for r in results],
            [100 * r.accuracy_error for r in results],
        ),
        ("kilobytes of the file", [r.bytes / 1e3 for r in results], None),
        ("milliseconds of one image", [r.milliseconds for r in results], None),
    )
    names = [result.stage for result in results]
    for axes, (label, values, errors) in zip(figure.subplots(1, len(panels)), panels):
        bars = axes.bar(range(len(names)), values, yerr=errors, capsize=3, color="C0")
        for bar, result in zip(bars, results):
            if result.left_out is not None:
                bar.set(alpha=0.35, hatch="//")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
        axes.set_ylabel(label)
    if any(result.left_out is not None for result in results):
        figure.supxlabel("hatched: left out, since the device is not faster with it", fontsize=8)
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
