import dataclasses
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from supernet.artifacts.runs import Job, run_job
from supernet.space import Arch, Choice, SearchSpace
from supernet.tasks import Classification
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.features import FromTeacher
from supernet.training.methods.prioritized import PrioritizedPaths
from supernet.training.methods.resolutions import ResolutionRuns
from supernet.training.methods.sampling import Sandwich, Step, Uniform
from supernet.training.step import TrainConfig
from tests.small import SPACE as SMALL

SPACE = SearchSpace({"resolution": (24, 28, 32), "width": (1, 2)})


def test_resolutions_stay_for_as_many_steps_and_come_equally_often():
    runs, found = ResolutionRuns(SPACE, 3, 0), []
    for step in range(3 * 6000):
        (resolution,) = runs.space_of(step).choices["resolution"].values
        found.append(resolution)
    by_run = np.array(found).reshape(-1, 3)
    assert (by_run == by_run[:, :1]).all()
    counts = Counter(by_run[:, 0].tolist())
    error = (6000 * 1 / 3 * 2 / 3) ** 0.5
    assert counts.keys() == {24, 28, 32}
    assert all(abs(count - 2000) < 3 * error for count in counts.values())
    assert found[:30] != [ResolutionRuns(SPACE, 3, 1).space_of(step).smallest["resolution"] for step in range(30)]


def test_a_random_subnet_is_drawn_as_without_runs():
    """Every architecture has the probability 1/6."""
    runs, times = ResolutionRuns(SPACE, 2, 0), 6000
    draws = (np.random.default_rng([7, step]) for step in range(2 * times))
    counts = Counter(runs.space_of(step).sample(draw) for step, draw in enumerate(draws))
    assert counts.keys() == {Arch({"resolution": r, "width": w}) for r, w in product((24, 28, 32), (1, 2))}
    error = (2 * 2 * times * 1 / 6 * 5 / 6) ** 0.5  # at most: the two of a run have the resolution in common
    assert all(abs(count - 2 * times / 6) < 3 * error for count in counts.values())


def test_a_step_leaves_all_resolutions_if_nothing_is_said():
    assert ResolutionRuns(SPACE, 1, 0).space_of(5) is SPACE
    without = SearchSpace({"width": (1, 2)})
    assert ResolutionRuns(without, 1, 0).space_of(5) is without


@pytest.mark.parametrize(
    "method",
    [
        Sandwich(SPACE, 4),
        Uniform(SPACE, 4),
        FromTeacher(SPACE, 4),
        PrioritizedPaths(SPACE, lambda arch: 1, num_classes=2),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_draw_from_the_part_of_the_step(method):
    batch = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64)
    found = set()
    for seed in range(8):
        draw, part = np.random.default_rng(seed), SPACE.restrict({"resolution": [28]})
        step = Step(0, 0, 0.0, draw, None, batch, Classification(), None, 0.1, part=part)
        archs = [learner.arch for learner in method.learners(step)]
        found |= {arch for arch in archs if arch not in (SPACE.largest, SPACE.smallest)}
    assert found == {Arch({"resolution": 28, "width": width}) for width in (1, 2)}


@pytest.mark.parametrize("space", [{"width": (1, 2)}, {"width": (1, 2), "resolution": Choice((8, 9), {"width": (2,)})}])
def test_a_space_without_a_resolution_to_draw_is_refused(space):
    with pytest.raises(ValueError, match="resolution_steps 20: this space has no choice 'resolution' that is independ"):
        ResolutionRuns(SearchSpace(space), 20, 0)


@pytest.mark.parametrize("settings", [{"method": "fairnas"}, {"method": "best_up"}, {"macs_range": (1.0, 2.0)}])
def test_methods_that_choose_resolutions_otherwise_refuse_runs(settings):
    settings = {"method": "spos"} | settings
    with pytest.raises(ValueError, match="resolution_steps above 1 goes with the methods sandwich, spos, cream, prog"):
        TrainConfig(resolution_steps=2, **settings)
    TrainConfig(resolution_steps=1, **settings)


def test_a_training_goes_on_in_the_middle_of_a_run_to_the_same_weights(tmp_path, monkeypatch):
    seen = []
    learners = Sandwich.learners

    def noted(self, step):
        found = learners(self, step)
        seen.append((step.number, found[1].arch["resolution"], found[1].arch))
        return found

    monkeypatch.setattr(Sandwich, "learners", noted)
    train = TrainConfig(epochs=2, batch_size=8, random_subnets=1, resolution_steps=4)
    execution = Execution(workers=0, eval_epochs=0, checkpoint_steps=3)
    job = Job(space=SMALL, data=DataConfig(holdout=0.97), train=train, execution=execution)  # 10 steps
    whole = run_job(job, tmp_path)
    expected = list(seen)
    assert [len({resolution for step, resolution, _ in expected if step // 4 == run}) for run in range(3)] == [1, 1, 1]
    assert len({resolution for _, resolution, _ in expected}) > 1
    assert len({arch for *_, arch in expected}) > 6

    seen.clear()
    for path in (tmp_path / "checkpoints").iterdir():
        if path.name != "step-000000006.pt":
            path.unlink()
    (tmp_path / "supernet.safetensors").unlink()
    again = run_job(job, tmp_path, resume=True)
    assert seen == expected[6:]
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(again.net.state_dict()[name], tensor), name
    with pytest.raises(ValueError, match="resolution_steps=4"):
        run_job(dataclasses.replace(job, train=dataclasses.replace(train, resolution_steps=5)), tmp_path, resume=True)
