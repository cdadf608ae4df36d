import json

import pytest

from supernet.training.execution import Execution
from supernet.training.loop.metrics import Metrics


def test_lines_after_the_step_and_one_cut_off_are_dropped(tmp_path):
    metrics = Metrics(tmp_path, 0)
    for step in (1, 2, 3):
        metrics.append({"step": step, "losses": [0.5, step]})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "los')
    metrics = Metrics(tmp_path, 2)
    metrics.append({"step": 3, "accuracy": {"largest": 0.75}})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "losses": [0.5, 1]},
        {"step": 2, "losses": [0.5, 2]},
        {"step": 3, "accuracy": {"largest": 0.75}},
    ]


def test_tensorboard_shows_the_same_numbers_once(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    metrics = Metrics(tmp_path, 0, Execution(tensorboard=True))
    for step in (1, 2, 3):
        metrics.append({"step": step, "lr": step / 8, "losses": [0.5, step]})
    metrics.close()
    resumed = Metrics(tmp_path, 2, Execution(tensorboard=True))
    resumed.append({"step": 3, "lr": 0.25, "losses": [0.5, 7], "accuracy": {"largest": 0.75}})
    resumed.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    found = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == {
        "lr": [(1, 0.125), (2, 0.25), (3, 0.25)],
        "losses/0": [(1, 0.5), (2, 0.5), (3, 0.5)],
        "losses/1": [(1, 1.0), (2, 2.0), (3, 7.0)],
        "accuracy/largest": [(3, 0.75)],
    }
