import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from distill.losses import kl_divergence
from supernet.artifacts.runs import Job, run_job
from supernet.families import FAMILIES
from supernet.tasks import Classification
from supernet.training import distributed
from supernet.training.data import DataConfig
from supernet.training.execution import Execution
from supernet.training.methods.prioritized import BoardEntry, PrioritizedPaths
from supernet.training.methods.sampling import Learner, Step
from supernet.training.step import TrainConfig

FAMILY = FAMILIES["mobilenet_v3_micro"]()
ARCHS = [FAMILY.space.sample(np.random.default_rng(seed)) for seed in range(5)]


def entry(arch, accuracy, macs):
    return BoardEntry(arch, accuracy, macs, torch.zeros(1, 3, 8, 8), torch.zeros(1, 10))


def method(**options):
    return PrioritizedPaths(FAMILY.space, FAMILY.macs, 10, **options)


def double_step(number=0, epoch=0):
    """A step on noise in float64, at a rate of 0.5, and the network that it trains."""
    draw = torch.Generator().manual_seed(0)
    net = FAMILY.supernet().double().train()
    images = torch.randn(8, 3, 32, 32, generator=draw, dtype=torch.float64)
    labels = torch.randint(10, (8,), generator=draw)

    def output(arch, batch):
        return net(*FAMILY.task.inputs(batch, arch), arch)

    return Step(number, epoch, 0.0, np.random.default_rng(0), net, (images, labels), FAMILY.task, output, 0.5)


def test_who_comes_on_the_board():
    cream = method(board_size=2, accuracy_gap=0.05)
    a, b, c, d, e = ARCHS

    def board():
        return [(entry.arch, entry.accuracy) for entry in cream.board]

    cream.enter(entry(a, 0.5, 100))
    cream.enter(entry(b, 0.7, 100))
    assert board() == [(b, 0.7), (a, 0.5)]
    cream.enter(entry(c, 0.54, 100))  # more accurate by less than the gap, with no fewer MACs
    assert board() == [(b, 0.7), (a, 0.5)]
    cream.enter(entry(c, 0.54, 99))  # with fewer MACs
    assert board() == [(b, 0.7), (c, 0.54)]
    cream.enter(entry(d, 0.6, 200))  # by more than the gap
    assert board() == [(b, 0.7), (d, 0.6)]
    cream.enter(entry(e, 0.6, 1))  # no more accurate
    assert board() == [(b, 0.7), (d, 0.6)]
    cream.enter(entry(b, 0.55, 100))  # known: it has its latest accuracy
    assert board() == [(d, 0.6), (b, 0.55)]


def test_before_the_board_a_path_learns_from_labels_and_after_a_step_it_teaches():
    cream = method(start_epoch=1, images=2)
    step = double_step(epoch=0)
    (learner,) = cream.learners(step)
    assert (learner.teacher, learner.label_weight) == (None, 1)
    logits = F.one_hot(step.batch[1], 10).double() * 8
    logits[0] = 0
    logits[0, (step.batch[1][0] + 1) % 10] = 8
    cream.finish(step, [learner], [logits])
    assert not cream.board
    cream.finish(double_step(epoch=1), [learner], [logits])
    (found,) = cream.board
    assert (found.arch, found.accuracy, found.macs) == (learner.arch, 7 / 8, FAMILY.macs(learner.arch))
    assert torch.equal(found.probabilities, logits[:2].softmax(1))
    assert torch.equal(found.images, step.batch[0][:2])

    teacher, student = cream.learners(double_step(number=1, epoch=1))
    m = 0.5  # of a function that has learned nothing
    assert teacher == Learner(learner.arch, None, label_weight=0.0)
    assert not teacher.has_gradient
    assert (student.teacher, student.label_weight, student.teacher_weight) == (0, (2 - m) / 2, m / 2)


def test_the_teacher_is_the_path_of_the_highest_score():
    cream = method(images=2)
    step = double_step()
    probabilities = torch.rand(3, 2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).softmax(2)
    for arch, own, accuracy in zip(ARCHS[:3], probabilities, (0.9, 0.8, 0.7)):
        cream.board.append(BoardEntry(arch, accuracy, 1, step.batch[0][:2], own))
    cream.weight = torch.linspace(-3, 3, 20, dtype=torch.float64)
    cream.bias = torch.tensor(0.25, dtype=torch.float64)
    teacher, matching, _ = cream.match(step, ARCHS[4])
    # BatchNorm sees the images of the whole board at once, which are the same three times
    own = step.output(ARCHS[4], (step.batch[0][:2].repeat(3, 1, 1, 1),)).softmax(1)[:2].flatten()
    scores = [((p.flatten() - own) @ cream.weight).item() + 0.25 for p in probabilities]
    best = int(np.argmax(scores))
    assert best != 0
    assert teacher.arch == ARCHS[best]
    assert matching.item() == pytest.approx(1 / (1 + math.exp(-scores[best])))


def test_matching_descends_the_loss_after_a_step_of_distillation():
    step = double_step(number=0)
    student, teaching = ARCHS[0], ARCHS[1]
    cream = method(images=4, update_steps=1, lr=1e-3)
    soft = torch.rand(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).mul(5).softmax(1)
    cream.board = [BoardEntry(teaching, 0.9, 1, step.batch[0][4:], soft)]
    cream.weight = torch.linspace(-1, 1, 40, dtype=torch.float64)
    cream.bias = torch.tensor(0.1, dtype=torch.float64)
    weight, bias = cream.weight.clone(), cream.bias.clone()
    before = {name: parameter.clone() for name, parameter in step.net.named_parameters()}
    _, _, difference = cream.match(step, student)
    cream._learn_to_match(step, student)
    assert all(torch.equal(parameter, before[name]) for name, parameter in step.net.named_parameters())

    def loss_after(theta, constant):
        """The definition: the loss on the second images with weights that took a step on the first."""
        net = step.net
        m = torch.sigmoid(difference @ theta + constant)
        soft_labels = step.output(teaching, (step.batch[0][:4],)).detach()
        net.zero_grad()
        kl_divergence(step.output(student, (step.batch[0][:4],)), soft_labels).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= step.lr * m * parameter.grad
            loss = F.cross_entropy(step.output(student, (step.batch[0][4:],)), step.batch[1][4:])
            for name, parameter in net.named_parameters():
                parameter.copy_(before[name])
        return loss.item()

    small = 1e-4
    numeric = []
    for index in [*range(0, 40, 7), None]:
        shift = torch.zeros(40, dtype=torch.float64)
        extra = small if index is None else 0.0
        if index is not None:
            shift[index] = small
        rise = loss_after(weight + shift, bias + extra) - loss_after(weight - shift, bias - extra)
        numeric.append(rise / (2 * small))
    moved = torch.cat([(weight - cream.weight)[::7], (bias - cream.bias)[None]]) / 1e-3
    scale = max(1.0, (torch.cat([weight - cream.weight, (bias - cream.bias)[None]]) / 1e-3).norm().item())
    assert scale == 1.0  # the descent was not clipped
    np.testing.assert_allclose(moved.numpy(), numeric, rtol=1e-4, atol=1e-9)
    assert np.abs(numeric).max() > 1e-5


@pytest.mark.parametrize(("scale", "learns"), [(1.0, False), (2.0**12, True), (2.0**40, False)])
def test_matching_in_fp16_learns_by_scaled_gradients(scale, learns):
    """Of a distillation whose gradients are 0 in fp16, and at a scale that is too large are beyond it."""
    found = {}
    for dtype in (torch.float32, torch.float16):
        step, cream = double_step(), method(images=4, lr=1e6)
        net, images = step.net.float(), step.batch[0].float()

        def output(arch, batch, net=net, dtype=dtype):
            with torch.autocast("cpu", dtype, enabled=dtype == torch.float16):
                return net(*FAMILY.task.inputs(batch, arch), arch).float()

        class Faint(Classification):
            def distil(self, output, teacher_output, batch):
                return 1e-6 * super().distil(output, teacher_output, batch)

        batch, scaler = (images, step.batch[1]), torch.amp.GradScaler("cpu", init_scale=scale)
        scaled = scaler.scale if dtype == torch.float16 else step.scale
        step = dataclasses.replace(step, batch=batch, task=Faint(10), output=output, scale=scaled)
        soft = torch.rand(4, 10, generator=torch.Generator().manual_seed(2)).mul(5).softmax(1)
        cream.board = [BoardEntry(ARCHS[1], 0.9, 1, images[4:], soft)]
        before = [parameter.clone() for parameter in net.parameters()]
        cream._learn_to_match(step, ARCHS[0])
        assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))
        found[dtype] = cream.weight
    exact, rounded = found.values()
    assert exact.any()
    if learns:
        assert (rounded - exact).norm() < 0.1 * exact.norm()
    else:
        assert not rounded.any()


def on_a_board(**options):
    """Paths of a board of one, and a step that goes with them."""
    cream, step = method(images=4, **options), double_step()
    soft = torch.rand(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).mul(5).softmax(1)
    cream.board = [BoardEntry(ARCHS[1], 0.9, 1, step.batch[0][4:], soft)]
    return cream


def test_matching_learns_every_so_many_steps():
    cream = on_a_board(update_steps=3)
    learned = []
    for number in range(5):
        before = cream.weight.clone()
        cream.learners(double_step(number))
        learned.append(not torch.equal(cream.weight.double(), before.double()))
    assert learned == [True, False, False, True, False]


def test_a_steep_descent_of_matching_is_clipped(monkeypatch):
    cream = on_a_board(update_steps=1, lr=1e-3)
    monkeypatch.setattr(distributed, "average", lambda values: values * 1e8)
    cream.learners(double_step())
    assert torch.cat([cream.weight, cream.bias[None]]).norm().item() == pytest.approx(1e-3)


def test_the_board_and_the_teacher_are_the_same_in_every_process(monkeypatch):
    cream, step = method(images=2), double_step()
    uniform = torch.full((2, 10), 0.1, dtype=torch.float64)
    for arch, accuracy in zip(ARCHS, (0.9, 0.8, 0.7)):
        cream.board.append(BoardEntry(arch, accuracy, 1, step.batch[0][:2], uniform))
    monkeypatch.setattr(distributed, "average", lambda values: torch.tensor([0.0, 0.0, 1.5]))
    teacher, matching, _ = cream.match(step, ARCHS[4])
    assert (teacher.arch, matching.item()) == (ARCHS[2], pytest.approx(1 / (1 + math.exp(-1.5))))
    monkeypatch.setattr(distributed, "average", lambda values: torch.tensor(0.85))
    cream.finish(double_step(epoch=20), [Learner(ARCHS[3])], [torch.zeros(8, 10)])
    assert [entry.arch for entry in cream.board] == [ARCHS[0], ARCHS[3], ARCHS[1], ARCHS[2]]


def test_a_resumed_run_has_its_board(tmp_path):
    data = DataConfig(holdout=0.95, hflip=0.0)  # 72 images, 4 steps an epoch
    train = TrainConfig(epochs=3, batch_size=16, method="cream", board_epoch=1, matching_steps=3)
    job = Job(data=data, train=train, execution=Execution(workers=0, eval_epochs=0, checkpoint_steps=3))
    run_job(job, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop(result):
        if result.step == 8:
            raise Stopped

    with pytest.raises(Stopped):
        run_job(job, tmp_path / "stopped", on_step=stop)
    run_job(job, tmp_path / "stopped", resume=True)
    name = "supernet.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


def test_batches_too_small_to_match_by_are_refused():
    cream = method(images=5)
    cream.board = [entry(ARCHS[0], 0.5, 1)]
    with pytest.raises(ValueError, match="cream needs batches of 10 images in every process, not 8"):
        cream.learners(double_step())
