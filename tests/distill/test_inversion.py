"""What statistics and neighbouring pixels say of images, and that images of a network are what it takes them for."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from distill.inversion import InversionConfig, invert, statistics_met, total_variation

FEW = InversionConfig(iterations=300, jitter=1, statistics=0.2)  # for few images and a small network


@pytest.fixture(scope="module")
def trained():
    """A network that tells bright images from dark ones, and images of its training."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(256) % 2
    images = 0.3 * torch.randn(256, 3, 8, 8, generator=generator) + (2.0 * labels - 1).view(-1, 1, 1, 1)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GELU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(80):
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net.eval().requires_grad_(False), images


def test_images_of_the_training_have_the_statistics_and_noise_has_not(trained):
    net, images = trained
    found = []
    for batch in (images, torch.randn(256, 3, 8, 8, generator=torch.Generator().manual_seed(1))):
        with statistics_met(net) as distances:
            net(batch)
        assert len(distances) == 2
        found.append(torch.stack(distances).sum().item())
    assert found[0] < 0.1 * found[1]


def test_a_distance_is_that_of_means_and_of_variances():
    layer = nn.BatchNorm2d(2).eval()
    layer.running_mean.copy_(torch.tensor([1.0, 2.0]))
    layer.running_var.copy_(torch.tensor([1.0, 5.0]))
    x = torch.tensor([[[[4.0, 4.0]], [[1.0, 3.0]]], [[[4.0, 4.0]], [[1.0, 3.0]]]])  # means 4, 2; variances 0, 1
    with statistics_met(layer) as distances:
        layer(x)
    assert distances[0].item() == pytest.approx(3.0 + (1 + 16) ** 0.5)


def test_total_variation_by_hand():
    image = torch.tensor([[1.0, 2.0], [4.0, 8.0]]).view(1, 1, 2, 2)
    across, down, falling, rising = (1 + 16) ** 0.5, (9 + 36) ** 0.5, 7.0, 2.0
    assert total_variation(image).item() == pytest.approx(across + down + falling + rising)


def test_images_are_what_the_network_takes_them_for(trained):
    net, _ = trained
    labels = torch.arange(32) % 2
    losses = []
    images = invert(
        net, labels, (3, 8, 8), FEW, torch.Generator().manual_seed(0), lambda step, loss: losses.append(loss)
    )
    assert len(losses) == 300
    assert losses[-1] < 0.3 * losses[0]
    assert (net(images).argmax(1) == labels).all()
    bright = images.mean((1, 2, 3))
    assert bright[labels == 1].mean() > bright[labels == 0].mean() + 0.5  # as those of the training
    assert all(parameter.grad is None for parameter in net.parameters())
    again = invert(net, labels, (3, 8, 8), FEW, torch.Generator().manual_seed(0))
    assert torch.equal(images, again)


def test_what_cannot_be_inverted_is_refused():
    with pytest.raises(ValueError, match="Linear has no BatchNorm"):
        invert(nn.Linear(2, 2), torch.zeros(1, dtype=torch.long), (3, 2, 2), FEW, torch.Generator())
    with pytest.raises(ValueError, match="iterations is at least 1"):
        InversionConfig(iterations=0)
