from functools import partial

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from distill.accompanied import layer_pairs
from distill.features import attention_transfer, relational_distance
from distill.losses import kl_divergence
from distill.objective import Objective, cohort_losses, objective_losses


def network(width: int, classes: int = 3) -> nn.Module:
    torch.manual_seed(width)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 2 * width, 3), nn.Flatten(), nn.LazyLinear(classes)
    )


def by_labels(labels, label_smoothing=0.0):
    return partial(F.cross_entropy, target=labels, label_smoothing=label_smoothing)


@pytest.fixture
def setting():
    student, teacher = network(2), network(4)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8, generator=generator), torch.tensor([0, 1, 2, 1])
    student(images), teacher(images)
    return student, teacher, images, labels


def test_the_total_is_the_weighted_sum_of_the_losses_at_the_named_layers(setting):
    student, teacher, images, labels = setting
    objective = Objective(
        labels=0.5, kl=2.0, temperature=3.0, attention=10.0, distance=25.0, layers=(("0", "0"), ("2", "2"))
    )
    found = objective_losses(objective, student, (images,), by_labels(labels, 0.1), teacher)

    logits, taught = student(images), teacher(images).detach()
    features = [(student[:1](images), teacher[:1](images)), (student[:3](images), teacher[:3](images))]
    expected = {
        "labels": F.cross_entropy(logits, labels, label_smoothing=0.1),
        "kl": kl_divergence(logits, taught, 3.0),
        "attention": sum(attention_transfer(*pair) for pair in features),
        "distance": sum(relational_distance(*pair) for pair in features),
    }
    assert found.parts.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found.parts[name], loss.detach())
    total = 0.5 * expected["labels"] + 2 * expected["kl"] + 10 * expected["attention"] + 25 * expected["distance"]
    torch.testing.assert_close(found.total, total)
    ours = torch.autograd.grad(found.total, student.parameters())
    for gradient, reference in zip(ours, torch.autograd.grad(total, student.parameters())):
        torch.testing.assert_close(gradient, reference)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_without_names_layers_meet_at_equal_resolutions():
    with torch.device("meta"):
        student, teacher = timm.create_model("mobilenetv3_small_050"), timm.create_model("convnext_atto")
    pairs = layer_pairs(Objective(attention=1.0, angle=1.0), student, teacher)
    # the teacher begins at a quarter of the image
    assert pairs.positions == (
        ("blocks.0", "stages.0"),
        ("blocks.1", "stages.1"),
        ("blocks.3", "stages.2"),
        ("blocks.5", "stages.3"),
    )
    assert pairs.relations == (("blocks.5", "stages.3"),)


def test_labels_alone_are_cross_entropy(setting):
    student, _, images, labels = setting
    found = objective_losses(Objective(), student, (images,), by_labels(labels))
    assert torch.equal(found.total, F.cross_entropy(student(images), labels))


def test_peers_learn_from_each_other_what_each_would_by_itself():
    """Equations 5 and 6 of deep mutual learning, for three networks, one of which sees smaller images."""
    networks = [network(2), network(4), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))]
    draw = torch.Generator().manual_seed(0)
    sized = [torch.randn(4, 3, size, size, generator=draw) for size in (8, 8, 5)]
    labels = torch.tensor([0, 1, 2, 1])
    logits = [network(images) for network, images in zip(networks, sized)]
    inputs = [(images,) for images in sized]
    found = cohort_losses(Objective(labels=2.0, mutual=0.5), networks, inputs, by_labels(labels, 0.1))

    total, on_labels, by_peers = 0.0, [], 0.0
    for own, network_ in enumerate(networks):
        on_labels.append(F.cross_entropy(logits[own], labels, label_smoothing=0.1))
        loss = 2 * on_labels[own]
        for peer in {0, 1, 2} - {own}:
            p, q = logits[peer].softmax(1).detach(), logits[own].softmax(1)
            divergence = (p * (p.log() - q.log())).sum(1).mean()
            loss = loss + 0.5 / 2 * divergence
            by_peers += divergence.item() / 2
        total += loss.item()
        parameters = list(network_.parameters())
        ours = torch.autograd.grad(found.total, parameters, retain_graph=True)
        for gradient, expected in zip(ours, torch.autograd.grad(loss, parameters, retain_graph=True)):
            torch.testing.assert_close(gradient, expected)
    assert found.total.item() == pytest.approx(total, rel=1e-6)
    assert found.parts["labels"].tolist() == [loss.item() for loss in on_labels]
    assert found.parts["mutual"].item() == pytest.approx(by_peers, rel=1e-5)


def test_what_is_no_classifier_learns_from_others_in_its_own_way():
    """Two networks of two inputs and a tree of outputs, which learn from each other and from a teacher."""

    class Network(nn.Module):
        def __init__(self, seed):
            super().__init__()
            torch.manual_seed(seed)
            self.layer = nn.Linear(3, 2)

        def forward(self, a, b):
            return {"sum": self.layer(a) + self.layer(b), "count": torch.tensor(2)}

    def distil(output, other):
        return (output["sum"] - other["sum"].detach()).abs().mean()

    first, second, teacher = (Network(seed) for seed in range(3))
    inputs = tuple(torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)))
    objective = Objective(labels=2.0, kl=3.0, adaptive_alpha=4.0, mutual=5.0)
    found = cohort_losses(
        objective, [first, second], [inputs, inputs], lambda output: output["sum"].square().mean(), teacher, distil
    )
    a, b, t = (network(*inputs)["sum"] for network in (first, second, teacher))
    taught = torch.stack([(own - t.detach()).abs().mean() for own in (a, b)])
    mutual = (a - b.detach()).abs().mean() + (b - a.detach()).abs().mean()
    total = 2 * (a.square().mean() + b.square().mean()) + (3 + 4) * taught.sum() + 5 * mutual
    torch.testing.assert_close(found.total, total)
    torch.testing.assert_close(found.parts["kl"], taught.detach())
    torch.testing.assert_close(found.parts["mutual"], mutual.detach())
    for network_ in (first, second):
        parameters = list(network_.parameters())
        ours = torch.autograd.grad(found.total, parameters, retain_graph=True)
        for gradient, expected in zip(ours, torch.autograd.grad(total, parameters, retain_graph=True)):
            torch.testing.assert_close(gradient, expected)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_what_makes_no_sense_is_refused(setting):
    student, _, images, labels = setting
    with pytest.raises(ValueError, match="these losses need a teacher"):
        objective_losses(Objective(kl=1.0), student, (images,), by_labels(labels))
    with pytest.raises(ValueError, match=r"mutual learning needs .* at least two networks, not 1"):
        objective_losses(Objective(mutual=1.0), student, (images,), by_labels(labels))
    with pytest.raises(ValueError, match="nothing to learn from"):
        Objective(labels=0.0, mutual=1.0)
    with pytest.raises(ValueError, match="the weight mutual is 0 or more, not -1"):
        Objective(mutual=-1.0)
    with pytest.raises(ValueError, match="the weight angle is 0 or more, not -1"):
        Objective(angle=-1.0)
    other = network(2, classes=5)
    other(images)
    with pytest.raises(ValueError, match=r"logits of the same shape.*\[4, 3\] and \[4, 5\]"):
        objective_losses(Objective(kl=1.0), student, (images,), by_labels(labels), other)
