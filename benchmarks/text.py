"""What a supernet of text encoders finds on news: accuracy against measured latency, in float32 and in int8.

    python benchmarks/text.py [--quick] [--json FILE] [--data ../shared/data]

6,400 of AG's news (Zhang et al., NeurIPS 2015; text/ag_news.csv.gz) in four classes: a tenth is tested on, a tenth of
the others judges subnets, the rest trains a supernet of BERT-like encoders by the recipe `text`, without any pretrained
weights. Evolution searches it for accuracy on the news that judge and MACs; of its front, the largest and
the smallest, files of ONNX take turns on one thread, a text of 48 tokens at a time. Nothing is chosen by the tested
news.

`accuracy_largest` is that of the largest subnet on the tested news, `accuracy_at_a_third` that of the subnet which
judges best among those that take at most a third of its milliseconds, and `drop_at_a_third` their difference with its
standard error, of paired differences over the tested news. The same subnets in int8 (`compress.quantisation`, static,
calibrated on training news) are in the same table. Logistic regression on words weighed by TF-IDF (scikit-learn), with
the regularisation that judges best, is what a text classifier has to compare with.

A quarter of an hour of one core; the supernet is kept in OUTPUT, and a training that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import tyro
from news import news
from report import report
from rich.progress import track
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from compress.quantisation import export_int8, quantise
from predictors import Device
from predictors.measuring.runtimes import onnx_timer
from search.evaluator import evaluate_here
from search.loop import ask_and_tell
from search.problem import Problem
from search.scores.accuracy import SupernetScore, held_out
from search.strategies import make_strategy
from supernet import Arch
from supernet.artifacts.export import export_onnx, onnx_runner
from supernet.artifacts.runs import Run, run_job
from supernet.training.recipes import text

PRECISIONS = ("fp32", "int8")


@dataclass(frozen=True)
class Arguments:
    epochs: int = 12
    """Passes over the training news."""
    evaluations: int = 60
    """Subnets that the search evaluates."""
    calibrating: int = 128
    """Training news that int8 is calibrated on."""
    rounds: int = 200
    """Turns of each file when it is timed."""
    seed: int = 1
    """Of the split and of the training."""
    data: Path = Path("../shared/data")
    """Folder with text/ag_news.csv.gz."""
    output: Path = Path("runs/text")
    """Folder for the supernet."""
    quick: bool = False
    """Two epochs of the smallest encoders and a search of 12 subnets."""
    json: Path | None = None
    """File for the result."""


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    if not arguments.quick:
        return measure(arguments, {})
    with tempfile.TemporaryDirectory() as folder:
        small = dataclasses.replace(arguments, epochs=2, evaluations=12, rounds=40, output=Path(folder))
        measure(small, {"embed_dim": [32, 64], "depth": [1, 2], "num_heads": [1, 2]})


def measure(arguments: Arguments, space: dict[str, object]) -> None:
    torch.set_num_threads(1)
    run = trained(arguments, space)
    archs = found(run, arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            row(run, arch, precision, Path(folder), arguments)
            for arch in track(archs, "Testing")
            for precision in PRECISIONS
        ]
        for own, latency_ms in zip(rows, latencies_ms(run, [own["file"] for own in rows], arguments.rounds)):
            own["ms"] = latency_ms
    figures = summary(rows) | {"accuracy_words": accuracy_of_words(run, arguments)}
    shown = [{name: value for name, value in own.items() if name not in ("right", "file", "arch")} for own in rows]
    report(shown, figures, arguments.json, archs=[dict(arch) for arch in archs], tested=len(rows[0]["right"]))


def trained(arguments: Arguments, space: dict[str, object]) -> Run:
    job = text()
    data = news(arguments.data, arguments.seed)
    train = dataclasses.replace(job.train, epochs=arguments.epochs, seed=arguments.seed)
    execution = dataclasses.replace(job.execution, device="cpu", checkpoint_steps=100, eval_epochs=2)
    job = dataclasses.replace(job, data=data, train=train, execution=execution, space_options=json.dumps(space))
    return run_job(job, arguments.output, resume=True)


def found(run: Run, arguments: Arguments) -> list[Arch]:
    """The front of held-out accuracy and MACs, and the largest and the smallest, from the fewest MACs to the most."""
    family = run.family
    score = SupernetScore(run.net, family.task, partial(held_out, run.data, 1, 0, None), family.resolution)
    problem = Problem(family.space, ["accuracy"], {"macs": lambda archs: [*map(family.macs, archs)]})
    strategy = make_strategy("evolution", problem, arguments.seed, 12)
    result = ask_and_tell(problem, strategy, evaluate_here({"accuracy": score}), arguments.evaluations)
    archs = {evaluation.arch for evaluation in result.front} | {family.space.largest, family.space.smallest}
    return sorted(archs, key=family.macs)


def row(run: Run, arch: Arch, precision: str, folder: Path, arguments: Arguments) -> dict[str, object]:
    model = run.net.extract(arch).eval()
    path = folder / f"{len(list(folder.iterdir()))}.onnx"
    write(run, arch, model, precision, path, arguments.calibrating)
    right = {part: told(run, path, getattr(run.data, part)) for part in ("holdout", "test")}
    return {
        "subnet": "largest"
        if arch == run.family.space.largest
        else f"depth {arch['depth']}, width {arch['embed_dim']}",
        "precision": precision,
        "MACs (M)": run.family.macs(arch) / 1e6,
        "parameters (M)": run.family.parameters(arch) / 1e6,
        "MB": path.stat().st_size / 1e6,
        "held out (%)": 100 * right["holdout"].mean(),
        "accuracy (%)": 100 * right["test"].mean(),
        "its standard error": 100 * error(right["test"]),
        "right": right["test"],
        "arch": arch,
        "file": path,
    }


def write(run: Run, arch: Arch, model: nn.Module, precision: str, path: Path, calibrating: int) -> None:
    example, names = run.family.example(arch), run.family.task
    if precision == "fp32":
        export_onnx(model, path, example, names=names, dynamic_batch=True)
        return
    batches = run.data.calibration_batches(None, calibrating, run.job.train.seed)
    network = quantise(model, [names.inputs(batch, arch) for batch in batches])
    export_int8(network, path, example, names=names, dynamic_batch=True)


def told(run: Run, path: Path, part: tuple[Tensor, Tensor]) -> np.ndarray:
    """For each text whether the file tells its class."""
    network, task = onnx_runner(path), run.family.task
    batches = run.data.evaluation_batches(part, None)
    return (
        torch.cat([task.per_example(network(*task.inputs(batch, None)), batch) for batch in batches]).double().numpy()
    )


def latencies_ms(run: Run, files: Sequence[Path], rounds: int) -> list[float]:
    tokens, labels = run.data.test
    inputs = run.family.task.inputs((tokens[:1], labels[:1]), None)
    timers = [onnx_timer(file, Device("here", "onnxruntime"), inputs) for file in files]
    turns = [[timer(2)[1] for timer in timers] for _ in range(rounds)]
    return np.median(turns, axis=0).tolist()


def summary(rows: Sequence[dict]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for precision in PRECISIONS:
        own = [row for row in rows if row["precision"] == precision]
        (largest,) = (row for row in own if row["subnet"] == "largest")
        end = "" if precision == "fp32" else f"_{precision}"
        figures |= {f"accuracy_largest{end}": largest["accuracy (%)"] / 100, f"ms_largest{end}": largest["ms"]}
        third = [row for row in own if row["ms"] <= largest["ms"] / 3]
        if third:
            best = max(third, key=lambda row: row["held out (%)"])
            drops = largest["right"] - best["right"]
            figures |= {
                f"accuracy_at_a_third{end}": best["accuracy (%)"] / 100,
                f"ms_at_a_third{end}": best["ms"],
                f"drop_at_a_third{end}": drops.mean(),
                f"drop_standard_error{end}": error(drops),
            }
    return figures


def accuracy_of_words(run: Run, arguments: Arguments) -> float:
    """That of logistic regression on the same word pieces, as many as there are in the texts, weighed by TF-IDF."""
    parts = {
        name: ([" ".join(map(str, row[row != run.data.padding].tolist())) for row in part[0]], part[1].numpy())
        for name, part in (("train", run.data.train), ("holdout", run.data.holdout), ("test", run.data.test))
    }
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+")
    x = {
        name: words.transform(texts) if name != "train" else words.fit_transform(texts)
        for name, (texts, _) in parts.items()
    }
    models = [LogisticRegression(C=c, max_iter=500).fit(x["train"], parts["train"][1]) for c in (0.5, 1, 2, 5, 10, 20)]
    best = max(models, key=lambda model: model.score(x["holdout"], parts["holdout"][1]))
    return best.score(x["test"], parts["test"][1])


def error(values: np.ndarray) -> float:
    return values.std(ddof=1) / np.sqrt(len(values))


if __name__ == "__main__":
    main()
