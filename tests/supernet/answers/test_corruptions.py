"""Each corruption against what it is said to be, and all of them against being reproducible and ever stronger."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from supernet.answers.corruptions import CORRUPTIONS, STRENGTHS, corrupted

GREY = torch.full((2, 3, 56, 56), 128, dtype=torch.uint8)


def spoilt(pixels, corruption, strength, seed=0):
    return corrupted(pixels, corruption, strength, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def photograph():
    """[1, 3, 112, 112]: smooth colours with a texture."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 112), torch.linspace(0, 1, 112), indexing="ij")
    texture = 0.2 * torch.rand(3, 112, 112, generator=torch.Generator().manual_seed(0))
    image = torch.stack([x, y, x * y]) * 0.6 + 0.1 + texture
    return (image * 255).to(torch.uint8)[None]


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_it_follows_from_the_seed_and_grows_with_the_strength(photograph, corruption):
    distances = []
    for strength in STRENGTHS:
        found = spoilt(photograph, corruption, strength)
        assert found.dtype == torch.uint8
        assert found.shape == photograph.shape
        assert torch.equal(found, spoilt(photograph, corruption, strength))
        distances.append((found.double() - photograph.double()).square().mean().item())
    assert distances[-1] > distances[0] > 0
    assert corruption == "pixelate" or distances == sorted(distances)  # whose seams are in other places each time


def test_noise_has_its_moments():
    gaussian = spoilt(GREY, "gaussian_noise", 1).double() / 255
    assert gaussian.mean().item() == pytest.approx(128 / 255, abs=0.003)
    assert gaussian.std().item() == pytest.approx(0.08, rel=0.03)
    shot = spoilt(GREY, "shot_noise", 1).double() / 255
    assert shot.mean().item() == pytest.approx(128 / 255, abs=0.003)
    assert shot.std().item() == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.03)  # of a Poisson number over 60
    impulse = spoilt(GREY, "impulse_noise", 5)
    assert (impulse == 0).double().mean().item() == pytest.approx(0.27 / 2, abs=0.01)
    assert (impulse == 255).double().mean().item() == pytest.approx(0.27 / 2, abs=0.01)


def test_brightness_is_that_of_hsv():
    colours = torch.tensor([[200, 100, 50], [0, 0, 0], [10, 20, 240]], dtype=torch.uint8).T[None, :, :, None]
    found = spoilt(colours, "brightness", 2)[0, :, :, 0].T.double() / 255
    raised = 200 / 255 + 0.2  # the value, up to 1
    expected = [[raised, raised / 2, raised / 4], [0.2, 0.2, 0.2], [10 / 240, 20 / 240, 1.0]]
    assert found.numpy() == pytest.approx(np.array(expected), abs=1 / 255)


def test_contrast_and_pixels_by_hand():
    pixels = torch.tensor([[100, 200], [100, 200]], dtype=torch.uint8).expand(1, 3, 2, 2)
    assert spoilt(pixels, "contrast", 1)[0, 0].tolist() == [[130, 170], [130, 170]]  # 0.4 of the way from the mean
    assert spoilt(pixels, "pixelate", 1)[0, 0].tolist() == [[150, 150], [150, 150]]


def test_jpeg_is_pillows(photograph):
    stream = io.BytesIO()
    Image.fromarray(photograph[0].permute(1, 2, 0).numpy()).save(stream, "JPEG", quality=10)
    assert np.array_equal(spoilt(photograph, "jpeg", 4)[0].permute(1, 2, 0).numpy(), np.asarray(Image.open(stream)))
