"""Companions against formulas written out, and as what they are: nothing of the network."""

from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from distill.accompanied import companions_of, head_layers, second_layer, second_task_loss
from distill.companions import Head, Hint, VariationalInformation
from distill.layers import outermost
from distill.losses import kl_divergence
from distill.objective import Objective, objective_losses

LAYERS = (("0", "0"), ("2", "2"))


def network(width: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(width)
    layers = [nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.BatchNorm2d(2 * width)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, classes))


@pytest.fixture
def setting():
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 1])
    return network(2), network(4), images, labels


def losses(objective, setting, companions):
    student, teacher, images, labels = setting
    by_labels = partial(F.cross_entropy, target=labels)
    return objective_losses(
        objective, student, (images,), by_labels, teacher if objective.needs_teacher else None, companions=companions
    )


def test_a_hint_is_the_mean_square_of_what_a_1x1_convolution_leaves():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, size, 3, 5, generator=generator) for size in (4, 6))
    hint = Hint(4, 6)
    convolved = F.conv2d(student, hint.regressor.weight[:, :, None, None], hint.regressor.bias)
    torch.testing.assert_close(hint(student, teacher), (teacher - convolved).square().mean())
    tokens = student.flatten(2).transpose(1, 2), teacher.flatten(2).transpose(1, 2)
    torch.testing.assert_close(hint(*tokens), hint(student, teacher))


def test_variational_information_is_a_normal_likelihood():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, size, 3, 5, generator=generator) for size in (4, 6))
    vid = VariationalInformation(4, 6)
    variance = F.softplus(vid.raw_variance) + 1e-5
    torch.testing.assert_close(variance, torch.full((6,), 5.0))
    with torch.no_grad():
        vid.raw_variance.copy_(torch.linspace(-1, 1, 6))
    variance = F.softplus(vid.raw_variance) + 1e-5
    mean = vid.mean(student.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    normal = torch.distributions.Normal(mean, variance.sqrt().view(1, -1, 1, 1).expand_as(mean))
    constant = 0.5 * torch.log(torch.tensor(2 * torch.pi))
    torch.testing.assert_close(vid(student, teacher), -normal.log_prob(teacher).mean() - constant)


def test_the_teacher_gets_no_gradient_and_the_student_does():
    student, teacher = torch.randn(2, 4, 3, 3, requires_grad=True), torch.randn(2, 6, 3, 3, requires_grad=True)
    for connector in (Hint(4, 6), VariationalInformation(4, 6)):
        student.grad = None
        connector(student, teacher).backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None


def test_fewer_channels_are_the_leading_ones():
    student, teacher = torch.randn(2, 3, 3, 5), torch.randn(2, 4, 3, 5)
    hint, vid, head = Hint(5, 6), VariationalInformation(5, 6), Head(5, 3)
    narrow_hint, narrow_vid, narrow_head = Hint(3, 4), VariationalInformation(3, 4), Head(3, 3)
    with torch.no_grad():
        for own, whole in (
            (narrow_hint.regressor, hint.regressor),
            (narrow_head.classifier, head.classifier),
        ):
            own.weight.copy_(whole.weight[: len(own.bias), :3])
            own.bias.copy_(whole.bias[: len(own.bias)])
        vid.raw_variance.copy_(torch.linspace(-1, 1, 6))
        narrow_vid.raw_variance.copy_(vid.raw_variance[:4])
        narrow_vid.mean = nn.Sequential(nn.Linear(3, 6), *vid.mean[1:4], nn.Linear(6, 4))
        for own, whole in ((narrow_vid.mean[0], vid.mean[0]), (narrow_vid.mean[4], vid.mean[4])):
            own.weight.copy_(whole.weight[: own.out_features, : own.in_features])
            own.bias.copy_(whole.bias[: own.out_features])
    torch.testing.assert_close(hint(student, teacher), narrow_hint(student, teacher))
    torch.testing.assert_close(vid(student, teacher), narrow_vid(student, teacher))
    torch.testing.assert_close(head(student), narrow_head(student))


def test_a_second_task_is_judged_by_the_images_that_have_a_label():
    logits = torch.randn(4, 3)
    labels = torch.tensor([2, -1, 0, -1])
    expected = -(logits.log_softmax(1)[0, 2] + logits.log_softmax(1)[2, 0]) / 2
    torch.testing.assert_close(second_task_loss(logits, labels), expected)
    assert second_task_loss(logits, torch.full((4,), -1)) == 0


def test_a_second_task_has_a_head_of_its_own_classes(setting):
    student, _, images, labels = setting
    objective = Objective(second_task=0.5, second_task_layer="2")
    companions = companions_of(objective, student, (images,), second_classes=5)
    others = torch.tensor([4, 0, -1, 3])
    found = objective_losses(
        objective, student, (images,), partial(F.cross_entropy, target=labels), None, None, companions, others
    )
    second = F.cross_entropy(companions["second_task"](student[:3](images))[[0, 1, 3]], others[[0, 1, 3]])
    torch.testing.assert_close(found.total, F.cross_entropy(student(images), labels) + 0.5 * second)
    with pytest.raises(ValueError, match="needs labels of its own"):
        losses(objective, setting, companions)
    with pytest.raises(ValueError, match="labels of two classes"):
        companions_of(objective, student, (images,))


def test_the_head_of_a_second_task_is_after_the_last_layer_of_a_resnet():
    with torch.device("meta"):
        student = timm.create_model("resnet18")
    assert second_layer(Objective(second_task=1.0), student) == "layer4"


def test_a_module_that_ends_a_sequence_is_that_sequence():
    model = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU(), nn.Tanh())), nn.ReLU())
    assert outermost(model, "0.1.1") == "0"
    assert outermost(model, "0.1.0") == "0.1.0"
    assert outermost(model, "1") == "1"


def test_a_head_sees_the_mean_over_positions():
    features = torch.randn(2, 4, 3, 5)
    head = Head(4, 3)
    expected = head.classifier(features.mean((2, 3)))
    torch.testing.assert_close(head(features), expected)
    torch.testing.assert_close(head(features.flatten(2).transpose(1, 2)), expected)
    torch.testing.assert_close(head(features.mean((2, 3))), expected)


def test_the_total_has_each_loss_by_its_weight(setting):
    student, teacher, images, labels = setting
    objective = Objective(
        labels=0.5,
        hint=2.0,
        vid=3.0,
        auxiliary=0.3,
        self_distillation=0.7,
        temperature=2.0,
        layers=LAYERS,
        auxiliary_layers=("1", "3"),
    )
    companions = companions_of(objective, student, (images,), teacher)
    found = losses(objective, setting, companions)
    student_features = {end: student[:end](images) for end in (1, 2, 3, 4)}
    pairs = [(student[:end](images), teacher[:end](images)) for end in (1, 3)]
    logits = student(images)
    answers = [head(student_features[end]) for head, end in zip(companions["heads"], (2, 4))]
    parts = {
        "labels": F.cross_entropy(logits, labels),
        "hint": sum(hint(*pair) for hint, pair in zip(companions["hint"], pairs)),
        "vid": sum(vid(*pair) for vid, pair in zip(companions["vid"], pairs)),
        "auxiliary": sum(F.cross_entropy(answer, labels) for answer in answers),
        "self_distillation": sum(kl_divergence(answer, logits.detach(), 2.0) for answer in answers),
    }
    assert found.parts.keys() == parts.keys()
    for name, loss in parts.items():
        torch.testing.assert_close(found.parts[name], loss.detach(), msg=name)
    total = sum(getattr(objective, name) * loss for name, loss in parts.items())
    torch.testing.assert_close(found.total, total)
    everything = [*student.parameters(), *companions.parameters()]
    for ours, reference in zip(torch.autograd.grad(found.total, everything), torch.autograd.grad(total, everything)):
        torch.testing.assert_close(ours, reference)


def test_no_companions_are_those_of_losses_without_any(setting):
    student, _, images, labels = setting
    companions = companions_of(Objective(), student, (images,))
    assert len(companions) == 0
    assert torch.equal(losses(Objective(), setting, companions).total, F.cross_entropy(student(images), labels))


def test_a_heads_gradient_reaches_its_stage_and_nothing_behind(setting):
    student, _, images, _ = setting
    objective = Objective(labels=1e-30, auxiliary=1.0, auxiliary_layers=("0",))
    losses(objective, setting, companions_of(objective, student, (images,))).total.backward()
    assert student[0].weight.grad.abs().sum() > 1e-3
    assert student[2].weight.grad.abs().max() < 1e-20


def test_making_companions_leaves_a_network_as_it_was(setting):
    student, teacher, images, _ = setting
    student.train(), teacher.eval()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    companions_of(Objective(hint=1.0, layers=LAYERS), student, (images,), teacher)
    assert student.training
    assert student[3].training
    assert not teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


def test_heads_are_after_all_layers_of_a_resnet_but_the_last():
    with torch.device("meta"):
        student = timm.create_model("resnet18")
    assert head_layers(Objective(auxiliary=0.3), student) == ("layer1", "layer2", "layer3")
    assert head_layers(Objective(), student) == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: Objective(auxiliary_layers=("0",)), "auxiliary heads without a weight"),
        (lambda s: Objective(labels=0, auxiliary=1), "nothing to learn from"),
        (lambda s: losses(Objective(auxiliary=1, auxiliary_layers=("0",)), s, None), "need companions"),
        (lambda s: companions_of(Objective(auxiliary=1, auxiliary_layers=("9",)), s[0], (s[2],)), "no module '9'"),
        (
            lambda s: companions_of(Objective(auxiliary=1, auxiliary_layers=("0",)), s[0][:3], (s[2],)),
            "for classifiers",
        ),
        (lambda s: Hint(4, 4)(torch.ones(1, 4, 3, 3), torch.ones(1, 4, 2, 2)), "position by position"),
        (lambda s: Head(4, 4)(torch.ones(1, 4, 3, 3, 3)), r"features are \[B, C, H, W\]"),
    ],
)
def test_what_does_not_fit_is_refused(setting, make, message):
    with pytest.raises(ValueError, match=message):
        make(setting)
