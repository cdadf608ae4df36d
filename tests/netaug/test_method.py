import numpy as np
import pytest
import torch

from netaug.augmentation import augment
from netaug.method import NetAug
from supernet.training.methods.sampling import Step


@pytest.fixture(scope="module")
def augmentation():
    return augment("mobilenetv3_small_050", r=2, s=1, num_classes=4, input_size=32)


def step(progress: float, seed: int = 0) -> Step:
    return Step(0, 0, progress, np.random.default_rng(seed), None, None, None, None, 0.1)


def test_a_step_trains_the_tiny_model_and_one_sampled_network(augmentation):
    method = NetAug(augmentation.space, weight=0.7)
    for seed in range(5):
        tiny, sampled = method.learners(step(0.49, seed))
        assert tiny.arch == augmentation.space.smallest
        assert sampled.arch == augmentation.space.sample(np.random.default_rng(seed))
        assert (tiny.label_weight, sampled.label_weight) == (1.0, 0.7)
        assert tiny.teacher is sampled.teacher is None


def test_from_the_middle_on_networks_are_no_wider(augmentation):
    method = NetAug(augmentation.space)
    widths, expansions = set(), set()
    for seed in range(20):
        arch = method.learners(step(0.5, seed))[1].arch
        widths.add(tuple(value for name, value in arch.items() if name.endswith("width")))
        expansions.update(value for name, value in arch.items() if name.endswith("expansion"))
    tiny = augmentation.space.smallest
    assert widths == {tuple(value for name, value in tiny.items() if name.endswith("width"))}
    assert expansions == {1, 2}


def test_a_teacher_teaches_both(augmentation):
    tiny, sampled = NetAug(augmentation.space, weight=0.5, label_weight=0.4, teacher_weight=2.0).learners(step(0.0))
    assert (tiny.teacher, tiny.label_weight, tiny.teacher_weight) == ("external", 0.4, 2.0)
    assert (sampled.teacher, sampled.label_weight, sampled.teacher_weight) == ("external", 0.2, 1.0)


def test_without_weight_the_tiny_model_is_alone(augmentation):
    (learner,) = NetAug(augmentation.space, weight=0.0).learners(step(0.0))
    assert learner.arch == augmentation.space.smallest


def test_the_tiny_model_gets_the_most_important_channels_and_the_momentum_goes_with_them(augmentation):
    net = augmentation.family.supernet().eval().double()
    generator = torch.Generator().manual_seed(0)
    for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
        if tensor.dim() == 1:  # otherwise they are all alike
            tensor.data.uniform_(0.5, 1.5, generator=generator)
        if name == "blocks.1.0.conv_pwl.weight":
            tensor.data[:, 100:120] += 1.0  # of 160; beyond the tiny model's 40
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    momentum = {name: 2 * parameter for name, parameter in before.items()}
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    largest, tiny = augmentation.space.largest, augmentation.space.smallest
    outputs = net(images, largest), net(images, tiny)
    method = NetAug(augmentation.space, [inside.channels for inside in augmentation.inside])

    method.start_epoch(net, [momentum], 0.5)
    assert torch.equal(net(images, tiny), outputs[1])

    method.start_epoch(net, [momentum], 0.49)
    torch.testing.assert_close(net(images, largest), outputs[0])  # to 1e-7 in double precision
    assert not torch.allclose(net(images, tiny), outputs[1])
    projection = net.get_parameter("blocks.1.0.conv_pwl.weight")
    importance = projection.abs().sum(dim=(0, 2, 3))
    assert (importance[:-1] >= importance[1:]).all()
    whole = before["blocks.1.0.conv_pwl.weight"]
    assert set(importance[:20].tolist()) == set(whole.abs().sum(dim=(0, 2, 3))[100:120].tolist())
    for name, parameter in net.named_parameters():
        assert torch.equal(momentum[name], 2 * parameter), name
    # channels between blocks stay where they are
    assert torch.equal(net.get_parameter("conv_stem.weight"), before["conv_stem.weight"])
