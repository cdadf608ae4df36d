import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.families import FAMILIES, Family
from supernet.families.inverted_residual import Network, Stage, inverted_residual
from supernet.tasks import Classification
from supernet.training.execution import Execution
from supernet.training.methods.sampling import Learner, Sandwich, Step
from supernet.training.step import TrainConfig, TrainStep
from tests.recorded import graphed

CONFIG = TrainConfig(accumulation=2)


def with_kernel_transforms():
    """Small, with kernels that are learned transforms of larger ones."""
    stages = [Stage((8,), (1, 2), (3, 5), (2, 3)), Stage((12,), (1,), (3,), (2,), stride=2, se_ratio=0.25)]
    return inverted_residual(Network(stages, (8,), (32,), (32,), (16, 24), kernel_transform=True), num_classes=5)


class Model(nn.Module):
    """Of one piece, the whole."""

    def __init__(self, arch):
        super().__init__()
        self.conv = nn.Conv2d(3, arch["width"], 3, padding=1)
        self.norm = nn.BatchNorm2d(arch["width"])
        self.drop = nn.Dropout(0.3)
        self.classifier = nn.Linear(arch["width"], 5)

    def forward(self, x):
        return self.classifier(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


FAMILY = {
    "pieces": FAMILIES["mobilenet_v3_micro"],
    "kernel transforms": with_kernel_transforms,
    "whole": lambda: Family(SearchSpace({"width": (2, 4)}), Model, num_classes=5, input_size=16),
}


@pytest.fixture(params=list(FAMILY))
def family(request):
    return FAMILY[request.param]()


def batch_of(seed, family):
    draw = torch.Generator().manual_seed(seed)
    size = family.input_size
    images = torch.randn(4, family.in_chans, size, size, generator=draw)
    return images, torch.randint(family.num_classes, (4,), generator=draw)


def trained(family, stand_in=None, amp="none", steps=4):
    """The net after some steps of plain descent, and which parameters had a gradient in each."""
    net = family.supernet().train()
    task = Classification(family.num_classes, resolution=family.resolution)
    method, had = Sandwich(net.space, 1), []
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    pieces = stand_in and stand_in(net)
    train_step = TrainStep(net, task, CONFIG, execution=Execution(amp=amp), stand_in=pieces)
    torch.manual_seed(0)
    for number in range(steps):
        batch, draw = batch_of(number % 2, family), np.random.default_rng(number % 2)
        learners = method.learners(Step(number, 0, 0.0, draw, net, batch, task, train_step.output, 0.1))
        optimizer.zero_grad()
        train_step(batch, learners)
        had.append({name for name, parameter in net.named_parameters() if parameter.grad is not None})
        optimizer.step()
    return net, had, pieces


class Arrivals:
    """Stands in for what sends gradients: which parameters they were said to be of, and what they were then."""

    def __init__(self, replays):
        self.replays, self.complete, self.gradients, self.replayed = replays, set(), {}, []

    def begin(self, complete):
        self.complete = set(complete)

    def arrived(self, parameter):
        assert parameter not in self.gradients
        assert parameter not in self.complete
        self.gradients[parameter] = parameter.grad.clone()
        self.replayed.append(self.replays())


def arrivals(family, graphs, steps=2):
    """Those of the last of several steps on one batch, by the parameters' names, which are the final gradients."""
    net = family.supernet().train()
    stand_in = graphed(net) if graphs else None
    learners = 2 * [Learner(family.space.smallest)]
    for _ in range(steps):
        average = Arrivals(lambda: stand_in.recorder.replays if graphs else 0)
        net.zero_grad()
        torch.manual_seed(0)
        TrainStep(net, family.task, TrainConfig(), stand_in=stand_in, average=average)(batch_of(0, family), learners)
    names = {parameter: name for name, parameter in net.named_parameters()}
    for parameter, gradient in average.gradients.items():
        assert torch.equal(gradient, parameter.grad), names[parameter]
    return {names[parameter]: gradient for parameter, gradient in average.gradients.items()}, average.replayed


@pytest.mark.parametrize("name", ["kernel transforms", "whole"])
def test_gradients_of_graphs_are_complete_as_early_as_without(name):
    family = FAMILY[name]()
    expected, _ = arrivals(family, graphs=False)
    found, replayed = arrivals(family, graphs=True)
    assert found.keys() == expected.keys()
    assert len(found) > 3
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    if family.pieces:
        assert len(set(replayed)) > 3  # one piece after the other


class Twice(nn.Module):
    """Calls one of its pieces a second time, on inputs of another form."""

    def __init__(self, arch):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.classifier = nn.Linear(4, arch["classes"])

    def forward(self, x):
        x = self.again(self.stem(x)).relu()
        return self.classifier(self.again(x[..., ::2, ::2]).mean((2, 3)))


@pytest.mark.parametrize("steps", [1, 2])  # recorded, and replayed
def test_a_gradient_is_complete_when_it_has_come_from_every_call_of_a_piece(steps):
    space = SearchSpace({"classes": (5,)})
    family = Family(
        space, Twice, num_classes=5, input_size=16, pieces=lambda arch: {"again": 4, "classifier": arch["classes"]}
    )
    expected, _ = arrivals(family, graphs=False, steps=steps)
    found, _ = arrivals(family, graphs=True, steps=steps)
    assert found.keys() == expected.keys()
    assert "again.weight" in found
    torch.testing.assert_close(found, expected)  # added up in another order


def assert_equal(net, expected):
    for name, tensor in expected.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor), name


def test_steps_are_the_same_as_without_graphs(family):
    expected, had, _ = trained(family)
    net, had_graphed, pieces = trained(family, graphed)
    assert pieces.recorder.replays > 2 * pieces.recorded > 2
    assert had_graphed == had
    assert_equal(net, expected)


def test_they_are_in_low_precision(caplog):
    family = with_kernel_transforms()
    net, _, pieces = trained(family, graphed, "bf16")
    assert pieces.recorded
    assert not caplog.records
    assert_equal(net, trained(family, None, "bf16")[0])


def test_few_are_kept_in_little_memory():
    family = with_kernel_transforms()
    net, _, pieces = trained(family, partial(graphed, memory_bytes=500))
    assert len(pieces._graphs) == 2  # of 200 bytes each
    assert_equal(net, trained(family)[0])


@pytest.fixture
def net():
    return FAMILY["whole"]().supernet().train()


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def gradients(net, stand_in, loss, times=3):
    """Those of the last of several times, each from the same random numbers and statistics."""
    state = copy.deepcopy(net.state_dict())
    for _ in range(times):
        net.load_state_dict(state)
        net.zero_grad()
        torch.manual_seed(0)
        loss(partial(net, accumulate=True, stand_in=stand_in)).backward()
    return {name: parameter.grad.clone() for name, parameter in net.named_parameters()}


LARGE, SMALL = {"width": 4}, {"width": 2}


@pytest.mark.parametrize(
    "loss",
    [
        lambda run: run(X, arch=LARGE).square().sum(),
        lambda run: run(X, arch=LARGE).square().sum() + run(X, arch=SMALL).square().sum(),
        lambda run: (run(X, arch=LARGE) * run(2 * X, arch=LARGE)).sum(),  # twice at one place
    ],
)
def test_gradients_are_the_same_however_subnets_are_run(net, loss):
    pieces = graphed(net)
    found = gradients(net, pieces, loss)
    assert pieces.recorder.replays
    assert all(torch.equal(found[name], value) for name, value in gradients(net, None, loss).items())


def test_a_forward_pass_alone_replays(net):
    pieces = graphed(net)
    gradients(net, pieces, lambda run: run(X, arch=LARGE).sum())
    replays = pieces.recorder.replays
    with torch.no_grad():
        torch.manual_seed(0)
        found = net(X, LARGE, stand_in=pieces)
        torch.manual_seed(0)
        assert torch.equal(found, net(X, LARGE))
    assert pieces.recorder.replays == replays + 1


def test_what_a_subnet_gave_stays(net):
    pieces = graphed(net)
    gradients(net, pieces, lambda run: run(X, arch=LARGE).sum())
    with torch.no_grad():
        first = net(X, LARGE, stand_in=pieces)
        before = first.clone()
        net(3 * X, LARGE, stand_in=pieces)
    assert torch.equal(first, before)


def test_weights_that_are_replaced_are_recorded_anew(net):
    pieces, loss = graphed(net), lambda run: run(X, arch=LARGE).sum()
    gradients(net, pieces, loss)
    net.conv.weight.data = 2 * net.conv.weight.data
    found = gradients(net, pieces, loss)
    assert pieces.recorded == 2
    assert all(torch.equal(found[name], value) for name, value in gradients(net, None, loss).items())


def test_hooks_are_called(net):
    pieces, seen = graphed(net), []
    gradients(net, pieces, lambda run: run(X, arch=LARGE).sum())
    handle = net.skeleton(LARGE).norm.register_forward_hook(lambda *_: seen.append(1))
    gradients(net, pieces, lambda run: run(X, arch=LARGE).sum())
    assert len(seen) == 3
    handle.remove()


class Counting(Model):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x) / self.calls


def test_what_cannot_be_recorded_runs_as_it_is(net, caplog, monkeypatch):
    def refuse(work, pool):
        work()
        raise RuntimeError("operation not permitted")

    pieces, loss = graphed(net), lambda run: run(X, arch=LARGE).sum()
    monkeypatch.setattr(pieces.recorder, "record", refuse)
    found = gradients(net, pieces, loss)
    assert all(torch.equal(found[name], value) for name, value in gradients(net, None, loss).items())
    assert [record.message for record in caplog.records] == [
        "the piece '' (Model) cannot be a CUDA graph and runs as it is: operation not permitted"
    ]


def test_a_module_that_counts_its_calls_runs_as_it_is(caplog):
    net = Supernet(SearchSpace({"width": (2, 4)}), Counting).train()
    pieces = graphed(net)
    outputs = [net(X, LARGE, accumulate=True, stand_in=pieces) for _ in range(4)]
    assert not pieces.recorded
    assert "its forward pass changes attributes" in caplog.text
    assert len({output.sum().item() for output in outputs}) == 4
