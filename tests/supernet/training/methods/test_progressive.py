import dataclasses
import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from supernet.artifacts.runs import Job, load_run, run_job
from supernet.families import FAMILIES, Family
from supernet.space import SearchSpace
from supernet.training.execution import Execution
from supernet.training.methods.progressive import (
    ONCE_FOR_ALL,
    Phase,
    kind_of,
    new_kinds,
    phase_config,
    phase_space,
    sort_channels,
)
from supernet.training.recipes import RECIPES
from supernet.training.step import TrainConfig, TrainStep
from supernet.views import View

PHASES = (
    Phase("largest", 2),
    Phase("kernel_size", 1, 0.5, 0.5, 1, {"kernel_size": 2}),
    Phase("narrow", 1, 0.25, 0, 3, {"kernel_size": 2, "depth": 3, "expand_ratio": 2, "width": 3}),
)


def test_the_published_phases():
    config = RECIPES["once_for_all"]().train
    configs = [phase_config(config, ONCE_FOR_ALL, index) for index in range(6)]
    assert [c.epochs for c in configs] == [180, 120, 25, 120, 25, 120]
    assert [c.warmup_epochs for c in configs] == [0, 5, 0, 5, 0, 5]
    # the authors' rates are for 64 images: 0.03, 0.0025, 0.0075, 0.0025, 0.0075
    assert [c.lr / 4 for c in configs] == pytest.approx([2.6 / 32, 0.03, 0.0025, 0.0075, 0.0025, 0.0075])
    assert [phase.subnets for phase in ONCE_FOR_ALL] == [1, 1, 2, 2, 4, 4]
    # no phase of a training draws what a phase of one with another seed, or an ordinary training, does
    neighbour = replace(config, seed=config.seed + 1)
    seeds = [phase_config(c, ONCE_FOR_ALL, index).seed for c in (config, neighbour) for index in range(6)]
    assert len({*seeds, *range(10)}) == 22


def test_the_published_phases_sample_from_ever_larger_spaces():
    space = FAMILIES["ofa_mobilenet_v3"]().space
    values = []
    for index in range(6):
        allowed = {}
        for name, choice in phase_space(space, ONCE_FOR_ALL, index).choices.items():
            allowed.setdefault(kind_of(name), set()).add(choice.values)
        assert all(len(found) == 1 for found in allowed.values())
        values.append({kind: found.pop() for kind, found in allowed.items() if kind != "resolution"})
        assert allowed["resolution"] == {tuple(range(128, 225, 4))}
    largest = {"kernel_size": (7,), "depth": (4,), "expand_ratio": (6,)}
    kernel = {**largest, "kernel_size": (3, 5, 7)}
    depth = {**kernel, "depth": (2, 3, 4)}
    assert values == [
        largest,
        kernel,
        {**kernel, "depth": (3, 4)},
        depth,
        {**depth, "expand_ratio": (4, 6)},
        {**depth, "expand_ratio": (3, 4, 6)},
    ]
    assert [new_kinds(ONCE_FOR_ALL, index) for index in range(6)] == [
        set(), {"kernel_size"}, {"depth"}, set(), {"expand_ratio"}, set(),
    ]  # fmt: skip


def test_channels_are_sorted_by_what_follows_them_and_the_largest_subnet_stays_what_it_was():
    family = FAMILIES["mobilenet_v3_micro"]()
    net = family.supernet(seed=3).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    largest, smallest = family.space.largest, family.space.smallest
    with torch.no_grad():
        logits, narrow = net(images, largest), net(images, smallest)
        sort_channels(family, net, {"expand_ratio"})
        assert (net(images, largest) - logits).abs().max() < 1e-5 * logits.abs().max()
        assert (net(images, smallest) - narrow).abs().max() > 0.1 * narrow.abs().max()
    after = net.state_dict()
    # the expanded channels of this block have no squeeze-and-excitation beside the projection
    weight = before["blocks.1.1.conv_pwl.weight"]
    order = weight.abs().sum((0, 2, 3)).argsort(descending=True, stable=True)
    assert torch.equal(after["blocks.1.1.conv_pwl.weight"], weight[:, order])
    assert torch.equal(after["blocks.1.1.conv_dw.weight"], before["blocks.1.1.conv_dw.weight"][order])
    assert torch.equal(after["conv_stem.weight"], before["conv_stem.weight"])


def inverted(arch, drop_rate=0.0, drop_path_rate=0.0):
    """A chain of two pairs of convolutions, with `expand_ratio` channels between those of a pair."""
    width = arch["expand_ratio"]
    pairs = [layer for _ in range(2) for layer in (nn.Conv2d(4, width, 1), nn.ReLU(), nn.Conv2d(width, 4, 1))]
    return nn.Sequential(nn.Conv2d(3, 4, 1), *pairs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def shared_pair(arch):
    return {name: View(name.replace("4", "1").replace("6", "3")) for name in ("4.weight", "4.bias", "6.weight")}


def one_layer_of_the_pair(arch):
    return {"4.weight": View("1.weight")}


@dataclass(frozen=True)
class FirstRows:
    """Zero but for the first rows, which is another function of other channels."""

    count: int

    def __call__(self, weight):
        return torch.cat([weight[: self.count], torch.zeros_like(weight[self.count :])])


def masked(arch):
    return {"1.weight": View(transform=FirstRows(3))}


@pytest.mark.parametrize(
    ("views", "first_moves", "second_moves"),
    [(shared_pair, True, True), (one_layer_of_the_pair, True, True), (masked, False, True)],
)
def test_channels_of_one_source_are_sorted_once_and_masked_ones_not(views, first_moves, second_moves):
    space = SearchSpace({"block.expand_ratio": (2, 8)})

    def build(arch, **rates):
        return inverted({"expand_ratio": arch["block.expand_ratio"]}, **rates)

    family = Family(space, build, num_classes=3, input_size=2, views=views)
    net = family.supernet().eval()
    images = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with torch.no_grad():
        logits = net(images, space.largest)
        sort_channels(family, net, {"expand_ratio"})
        assert (net(images, space.largest) - logits).abs().max() < 1e-5 * logits.abs().max()
    after = net.state_dict()
    assert torch.equal(after["1.weight"], before["1.weight"]) != first_moves
    second = after.get("6.weight", after["3.weight"]), before.get("6.weight", before["3.weight"])
    assert torch.equal(*second) != second_moves


def test_phases_train_their_subnets_by_the_frozen_largest_network(tmp_path, monkeypatch):
    seen = []
    run_step = TrainStep.__call__

    def spy(step, batch, learners):
        outcome = run_step(step, batch, learners)
        teacher = step.teacher
        seen.append((learners, teacher, teacher and {n: t.clone() for n, t in teacher.state_dict().items()}))
        return outcome

    monkeypatch.setattr(TrainStep, "__call__", spy)
    job = RECIPES["digits"]()
    data = dataclasses.replace(job.data, holdout=0.95)  # 72 images
    train = dataclasses.replace(job.train, method="progressive", epochs=4, batch_size=16)
    execution = Execution(workers=0, eval_epochs=0, log_steps=1)
    results = []
    job = dataclasses.replace(job, data=data, train=train, execution=execution, phases=PHASES)
    run = run_job(job, tmp_path / "run", on_step=results.append)
    space = run.family.space
    first, second, third = seen[:8], seen[8:12], seen[12:]
    for learners, teacher, _ in first:
        (learner,) = learners
        assert teacher is None
        assert {**learner.arch, "resolution": 32} == dict(space.largest)
        assert (learner.teacher, learner.label_weight) == (None, 1)
    for learners, teacher, _ in second + third:
        assert not teacher.training
        assert {(x.teacher, x.label_weight, x.teacher_weight) for x in learners} == {("external", 1, 1)}
    assert [len(learners) for learners, *_ in second + third] == [1] * 4 + [3] * 4
    kernels = {value for (first, *_), *_ in second for n, value in first.arch.items() if kind_of(n) == "kernel_size"}
    assert kernels == {3, 5}
    ratios = {value for (first, *_), *_ in second for n, value in first.arch.items() if kind_of(n) == "expand_ratio"}
    assert ratios == {6}
    weights = [teacher for *_, teacher in second + third]
    assert all(torch.equal(state[name], weights[0][name]) for state in weights for name in state)
    assert [result.step for result in results] == list(range(1, 17))
    assert {result.steps for result in results} == {16}
    assert [p.name for p in sorted((tmp_path / "run").iterdir()) if p.is_dir()] == [
        "1-largest", "2-kernel_size", "3-narrow",
    ]  # fmt: skip
    assert load_run(tmp_path / "run").job == job

    seen.clear()

    class Stopped(Exception):
        pass

    def stop(result):
        if result.step == 10:
            raise Stopped

    with pytest.raises(Stopped):
        run_job(job, tmp_path / "stopped", on_step=stop)
    run_job(job, tmp_path / "stopped", resume=True)
    name = "supernet.safetensors"
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    lines = (tmp_path / "stopped" / "3-narrow" / "metrics.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["losses"]) for line in lines] == [3] * 4


def test_a_phase_begins_with_the_channels_that_it_makes_fewer_in_the_order_of_their_importance(tmp_path):
    job = RECIPES["digits"]()
    data = dataclasses.replace(job.data, holdout=0.95)
    train = dataclasses.replace(job.train, method="progressive", epochs=2, batch_size=16, lr=1e-30, weight_decay=0.0)
    phases = (Phase("largest", 1), Phase("narrow", 1, elastic={"expand_ratio": 2}))
    execution = dataclasses.replace(job.execution, eval_epochs=0)
    job = dataclasses.replace(job, data=data, train=train, execution=execution, phases=phases)
    run = run_job(job, tmp_path)  # which learns nothing
    before = run.family.supernet(train.seed).get_parameter("blocks.1.1.conv_pwl.weight").abs().sum((0, 2, 3))
    after = run.net.get_parameter("blocks.1.1.conv_pwl.weight").abs().sum((0, 2, 3))
    torch.testing.assert_close(after, before.sort(descending=True).values)
    assert not torch.allclose(after, before)
    assert torch.equal(run.net.conv_stem.weight, run.family.supernet(train.seed).conv_stem.weight)  # no narrower


def test_phases_that_do_not_fit_are_refused():
    space = FAMILIES["mobilenet_v3_micro"]().space
    with pytest.raises(ValueError, match="no choices of the kind 'groups'; its kinds are depth, expand_ratio, kernel"):
        phase_space(space, [Phase("a", 1, elastic={"groups": 2})], 0)
    with pytest.raises(ValueError, match="phase 'a': epochs and lr are above 0"):
        Phase("a", 0)
    with pytest.raises(ValueError, match="phase 'a': subnets and numbers of values are at least 1"):
        Phase("a", 1, elastic={"depth": 0})
    with pytest.raises(
        ValueError, match=r"method progressive goes with phases.* 0 phases and the method is progressive"
    ):
        Job(train=TrainConfig(method="progressive"))
    with pytest.raises(ValueError, match="3 phases and the method is fairnas"):
        Job(train=TrainConfig(method="fairnas"), phases=PHASES)
