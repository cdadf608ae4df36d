"""What commands that sweep have in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from search.sweep import Sweep, TrialSettings
from supernet_cli.command_line import console, progress_bar


def check_named_once(what: str, **given: Sequence[object]) -> None:
    """ValueError for a value that a flag names twice: both trials would be one and the same `what`."""
    for flag, values in given.items():
        if twice := [value for value, times in Counter(values).items() if times > 1]:
            name = flag.replace("_", "-")
            raise ValueError(f"--{name} has {twice[0]} twice, which is one {what}: name it once")


def watched(run: Callable[..., Sweep], what: str, evaluations: int) -> Sweep:
    """What `run`, `search.sweep.run_sweep` of its arguments, gives under a progress bar of so many `evaluations`; then
    it is said what was retried and what failed."""
    with progress_bar() as progress:
        task = progress.add_task(what, total=evaluations, note="")
        evaluated: dict[str, float] = {}

        def on_generation(settings: TrialSettings, metrics: Mapping[str, float]) -> None:
            evaluated[str(settings)] = metrics["evaluated"]
            progress.update(task, completed=sum(evaluated.values()))

        sweep = run(on_generation=on_generation)
    for line in sweep.retried:
        console.print(line, highlight=False, markup=False)
    for trial in sweep.trials:
        if trial.error:
            console.print(f"failed: {trial.settings}: {trial.error}", highlight=False, markup=False)
    return sweep
