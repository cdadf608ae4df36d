"""What --find-lr does instead of a training: a range test, as a table, a picture and a line."""

from __future__ import annotations

from pathlib import Path

from search.table import write_csv
from supernet.artifacts.atomic import write_atomically
from supernet.training.execution import Execution
from supernet.training.learning_rate import RangeTest, Train, range_test
from supernet.training.loop.config import LoopConfig
from supernet_cli.command_line import console
from supernet_cli.training_progress import training_progress


def find_lr(train: Train, config: LoopConfig, execution: Execution, steps: int, folder: Path) -> None:
    """Run the test, write lr.csv and lr.svg into `folder`, and say which `--lr` it suggests."""
    with training_progress("Range test") as show:

        def shown(config, execution, directory, on_step):
            train(config, execution, directory, lambda result: (show(result), on_step(result)))

        found = range_test(shown, config, execution, steps)
    columns = zip(found.lrs.tolist(), found.losses.tolist(), found.smoothed.tolist())
    write_csv(folder / "lr.csv", [dict(zip(("lr", "loss", "smoothed"), row)) for row in columns])
    plot(found, folder / "lr.svg")
    if found.suggestion is None:
        text = "The loss never falls clearly: more steps, another start or other settings may show where it does."
    else:
        text = f"The loss falls fastest at --lr {found.suggestion:.2g}, where the schedule's peak may lie."
    console.print(text, highlight=False, soft_wrap=True)
    console.print(f"The curve is in {folder / 'lr.csv'} and {folder / 'lr.svg'}.", highlight=False, soft_wrap=True)


def plot(found: RangeTest, path: Path) -> None:
    """Write an SVG of the loss against the learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.lrs, found.losses, ".", color="#b8b8b8", label="loss of each step")
    axes.plot(found.lrs, found.smoothed, color="#0072b2", label="smoothed")
    if found.suggestion is not None:
        axes.axvline(found.suggestion, color="#d55e00", linestyle="--", label=f"falls fastest: {found.suggestion:.2g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (--lr)")
    axes.set_ylabel("training loss")
    axes.set_ylim(top=1.2 * max(found.losses[0], found.smoothed.min()))
    axes.grid(alpha=0.3)
    axes.legend()
    with write_atomically(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
