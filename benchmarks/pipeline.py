"""What each stage of `supernet pipeline` brings on this machine, and which it leaves out.

    python benchmarks/pipeline.py [--quick] [--json FILE]

A supernet of `mobilenet_v3_micro` is trained on scikit-learn's digits, and searched for a network of at most --macs
multiply-accumulates, which goes through all stages, fine-tuned in float and, in a pipeline of its own, trained for
int8. Accuracies are on the 360 digits of the test, on which nothing was chosen, bytes those of the file, milliseconds
of one image on one thread of ONNX Runtime; the ratio is to the network before, both measured in turns. Means over
seeds; `left out` is how many of them left the stage out. Minutes a seed; what was done is kept in OUTPUT.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from digits_mlp import mean_and_error
from report import report

from compress.pipeline import StageResult, read_record
from supernet.artifacts.runs import run_job
from supernet.training.execution import Execution
from supernet.training.recipes import digits
from supernet_cli.pipeline import Arguments as Pipeline
from supernet_cli.pipeline import pipeline

TUNED = ("fp32", "int8")


@dataclass(frozen=True)
class Arguments:
    seeds: int = 3
    macs: float = 5e6
    """Limit of the search."""
    epochs: int = 12
    """Of the supernet."""
    evaluations: int = 60
    """Of the search."""
    output: Path = Path("runs/pipelines")
    """Folder for what was done before."""
    quick: bool = False
    """One seed, two epochs, fine-tuned in float alone, without the stage that stores."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    torch.set_num_threads(1)
    if not arguments.quick:
        return measure(arguments, TUNED)
    with tempfile.TemporaryDirectory() as folder:
        small = dataclasses.replace(arguments, seeds=1, epochs=2, evaluations=8, output=Path(folder))
        measure(small, TUNED[:1], stages=("prune", "tune", "quantise"))


def measure(arguments: Arguments, tuned: Sequence[str], **settings) -> None:
    found = {tune: [stages(arguments, tune, seed, settings) for seed in range(arguments.seeds)] for tune in tuned}
    rows = [row(tune, own) for tune, seeds in found.items() for own in zip(*seeds, strict=True)]
    summary = {}
    for tune, seeds in found.items():
        ends = [[own for own in results if own.left_out is None][-1] for results in seeds]
        begins = [results[0] for results in seeds]
        for name in ("bytes", "milliseconds"):
            parts = [getattr(end, name) / getattr(begin, name) for end, begin in zip(ends, begins)]
            summary[f"{name}_part_{tune}"] = mean_and_error(parts)[0]
        summary[f"accuracy_{tune}"] = 100 * mean_and_error([end.accuracy for end in ends])[0]
    report(rows, summary, arguments.json)


def stages(arguments: Arguments, tune: str, seed: int, settings: dict) -> Sequence[StageResult]:
    folder, recipe = arguments.output / f"seed-{seed}", digits()
    warmup_epochs = min(recipe.train.warmup, arguments.epochs / 4)
    train = dataclasses.replace(recipe.train, epochs=arguments.epochs, warmup_epochs=warmup_epochs, seed=seed)
    run_job(
        dataclasses.replace(recipe, train=train, execution=Execution(workers=0, eval_epochs=0)),
        folder / "run",
        resume=True,
    )
    output = folder / tune
    with contextlib.redirect_stdout(None):
        pipeline(
            Pipeline(
                folder / "run",
                output,
                subnet=None if tune == TUNED[0] else folder / TUNED[0] / "extract",
                limits=(f"macs={arguments.macs:g}",),
                evaluations=arguments.evaluations,
                tune=tune,
                seed=seed,
                **settings,
            )
        )
    return read_record(output / "pipeline.json").stages


def row(tune: str, results: Sequence[StageResult]) -> dict[str, object]:
    judged = [own for own in results if own.accuracy is not None]
    accuracy, error = mean_and_error([100 * own.accuracy for own in judged])
    ratios = [own.time_ratio for own in judged if own.time_ratio is not None]
    return {
        "trained for": tune,
        "stage": results[0].stage,
        "seeds": len(results),
        "left out": sum(own.left_out is not None for own in results),
        "accuracy (%)": accuracy,
        "its standard error": error,
        "bytes": mean_and_error([own.bytes for own in judged])[0],
        "ms": mean_and_error([own.milliseconds for own in judged])[0],
        "time to that before": mean_and_error(ratios)[0] if ratios else 1.0,
    }


if __name__ == "__main__":
    main()
