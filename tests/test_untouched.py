"""Whoever gives one tensor to several networks gives each the same images, even where these normalise them in place."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.blockwise import Teacher
from distill.objective import Objective, cohort_losses
from distill.untouched import untouched
from predictors import Device
from predictors.measuring import runtimes
from search.blockwise.blocks import Block as NetworkBlock
from search.blockwise.training import BlockwiseConfig, train_blocks
from search.prefix import trie
from search.scores.accuracy import EvaluationImages, SupernetAccuracy, labelled
from search.scores.teacher_guided import FromSupernet, GuidanceConfig, TeacherGuided
from search.scores.untrained import LabelledImages, score_architecture
from search.untrained.ntk import linear_regions, tangent_kernel
from search.untrained.te_nas import TeNasConfig, condition_numbers
from search.untrained.zero_cost import SCORES
from supernet import SearchSpace, Supernet
from supernet.answers.answers import quality
from supernet.artifacts.export import agreement
from supernet.calibration import calibrate
from supernet.evaluation import accuracy, calibrated_subnet
from supernet.families import Family
from supernet.tasks import Classification
from supernet.training.execution import Execution
from supernet.training.methods.prioritized import BoardEntry, PrioritizedPaths
from supernet.training.methods.sampling import Learner, Step
from supernet.training.step import TrainConfig, TrainStep

SPACE = SearchSpace({"width": (2, 4)})
LARGEST, SMALLEST = SPACE.largest, SPACE.smallest


class Network(nn.Module):
    """A network that normalises its images, in place or not."""

    def __init__(self, width: int, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.conv, self.bn, self.act = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = x.sub_(0.5).div_(0.25) if self.in_place else (x - 0.5) / 0.25
        return self.fc(self.act(self.bn(self.conv(x))).mean((2, 3)))


class Block(nn.Module):
    """Begins with an activation, as the part of a network behind a cut may."""

    def __init__(self, width: int, in_place: bool) -> None:
        super().__init__()
        self.act, self.conv = nn.ReLU(inplace=in_place), nn.Conv2d(3, 3, width - 1, padding="same")

    def forward(self, x):
        return self.conv(self.act(x))


def build(in_place, arch, drop_rate=0.0, drop_path_rate=0.0):
    return Network(arch["width"], in_place)


def supernet(in_place):
    return Supernet(SPACE, partial(build, in_place))


def network(in_place):
    return supernet(in_place).eval().extract(LARGEST)


def evaluation_images(images, labels):
    return lambda resolution: EvaluationImages(images[:4], images[4:], labels[4:])


def train_step(in_place, images, labels):
    net = supernet(in_place).train()
    step = TrainStep(net, Classification(), TrainConfig(), network(in_place))
    losses, _ = step((images, labels), [Learner(LARGEST, "external"), Learner(SMALLEST, 0), Learner(LARGEST, 1)])
    return [losses, *(parameter.grad for parameter in net.parameters())]


def step_of(in_place, images, labels):
    net = supernet(in_place).train()
    task = Squared()
    own = TrainStep(net, task, TrainConfig())
    return Step(0, 0, 0.0, np.random.default_rng(0), net, (images, labels), task, own.output, 0.1)


class Squared(Classification):
    def distil(self, output, teacher_output, batch):
        return (output - teacher_output).square().sum()


def losses_of_a_step(in_place, images, labels):
    return step_of(in_place, images, labels).losses([LARGEST, SMALLEST, LARGEST])


def cream(in_place, images, labels):
    method = PrioritizedPaths(SPACE, lambda arch: 1, 5, images=4)
    method.board = [BoardEntry(LARGEST, 0.9, 1, images[4:], torch.eye(4, 5))]
    method.weight = torch.linspace(-1, 1, 20)
    method.learners(step_of(in_place, images, labels))
    return [method.weight, method.bias]


def cohort(in_place, images, labels):
    students = [network(in_place).train() for _ in range(2)]
    total = cohort_losses(
        Objective(kl=1.0, mutual=1.0, attention=1.0, layers=(("conv", "conv"),)),
        students,
        [(images,), (images,)],
        partial(F.cross_entropy, target=labels),
        network(in_place),
    ).total
    return [total.detach(), *torch.autograd.grad(total, list(students[1].parameters()))]


def evaluation(in_place, images, labels):
    net, batches = supernet(in_place).eval(), [(images, labels)]
    models = [calibrated_subnet(net, LARGEST, 8, images, batch_size=4) for _ in range(2)]
    calibrate(models[0], images.split(4))
    return [
        *models[0].state_dict().values(),
        *(accuracy(model, batches) for model in models),
        *quality(models[1], batches),
    ]


def supernet_accuracy(in_place, images, labels):
    score = SupernetAccuracy(supernet(in_place).eval(), evaluation_images(images, labels), lambda arch: 8, 2)
    return [score([LARGEST])[0], *score([SMALLEST, LARGEST])]


def logits_of_the_trie(in_place, images, labels):
    net, found = supernet(in_place).eval(), []
    batches = trie.Batches(list(images[:4].split(2)), list(images[4:].split(2)))
    for archs in ([LARGEST], [SMALLEST, LARGEST]):
        found += [logits for _, logits in trie.outputs(net, archs, lambda size: batches, lambda arch: 8)]
    return found


def guidance(in_place, images, labels):
    candidate, teacher = FromSupernet(supernet(in_place).eval()), Teacher(network(in_place), ("conv", "act"))
    score = TeacherGuided(
        candidate, labelled(evaluation_images(images, labels)), lambda arch: 8, teacher, 8, GuidanceConfig(images=4)
    )
    return score([LARGEST, SMALLEST, LARGEST])


class Batches:
    """Training data that are the same two images in every step of a single epoch."""

    def __init__(self, images, labels):
        self.batch = images, labels

    def steps_per_epoch(self, batch_size):
        return 2

    def training_batches(self, resolution, batch_size, seed, steps, rank=0, world_size=1):
        return (self.batch for _ in steps)


def blocks(in_place, images, labels):
    nets = [Supernet(SPACE, lambda arch: Block(arch["width"], in_place)) for _ in range(2)]
    parts = {index: NetworkBlock(str(index), None, frozenset(["width"]), net) for index, net in enumerate(nets)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Teacher(nn.Sequential(Block(4, False), Block(4, False)), ("0", "1"))
    config, data, found = BlockwiseConfig(epochs=1, batch_size=2), Batches(images[:2], labels[:2]), []
    execution = Execution("cpu", eval_epochs=0, log_steps=1)
    with TemporaryDirectory() as folder:
        train_blocks(parts, teacher, data, 8, config.for_loop(0), Path(folder), execution, on_step=found.append)
    return [loss for result in found for loss in result.losses]


def zero_cost(in_place, images, labels):
    images.copy_(images.contiguous(memory_format=torch.channels_last))
    model = network(in_place)
    return [score(model, images, labels) for score in SCORES.values()]


def tangent(in_place, images, labels):
    model = network(in_place)
    kernels = [tangent_kernel(model, images, mode) for mode in ("batch", "frozen")]
    conditions = condition_numbers(network(in_place), images, TeNasConfig(repeats=2, ntk_images=4), 0)
    return [*kernels, torch.from_numpy(conditions), linear_regions(model, images, 4), linear_regions(model, images, 4)]


def training_free(in_place, images, labels):
    family = Family(SPACE, partial(build, in_place), num_classes=5, input_size=8)
    names, batch = ("grad_norm", "jacob_cov", "naswot", "ntk"), LabelledImages(images, labels, 4)
    return [value for arch in (LARGEST, SMALLEST) for value in score_architecture(family, names, arch, batch).values()]


def exported(in_place, images, labels):
    found = agreement(network(in_place), network(in_place), images)
    assert found == (1.0, 0.0)
    return found


def timing(in_place, images, labels):
    seen = []

    def run(own):
        seen.append(own.clone())
        return network(in_place)(own)

    once = runtimes._one_run(network(in_place), run, (images,))
    for _ in range(3):
        once()
    return seen


PLACES = [
    train_step, losses_of_a_step, cream, cohort, evaluation, supernet_accuracy, logits_of_the_trie, guidance, blocks,
    zero_cost, tangent, training_free, exported, timing,
]  # fmt: skip


@pytest.mark.parametrize("place", PLACES, ids=[place.__name__ for place in PLACES])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_network_that_works_in_place_changes_nothing_for_the_next_one(place, memory_format):
    kept = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(memory_format=memory_format)
    labels, found = torch.arange(8) % 5, {}
    for in_place in (False, True):
        images = kept.clone()
        found[in_place] = place(in_place, images, labels)
        assert torch.equal(images, kept)
    for expected, value in zip(found[False], found[True], strict=True):
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(expected), rtol=1e-5, atol=1e-6)


def test_gradients_flow_to_the_images():
    images = torch.rand(2, 3, requires_grad=True)
    untouched(lambda x: x.mul_(2), images).sum().backward()
    assert torch.equal(images.grad, torch.full((2, 3), 2.0))


def test_a_timed_device_runs_a_network_that_works_in_place():
    timer = runtimes.prepare(network(True).eval(), Device("here", "torch"), (3, 8, 8))
    assert timer(2).shape == (2,)
