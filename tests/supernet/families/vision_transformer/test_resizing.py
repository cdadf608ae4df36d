import pytest
import torch
from timm.layers.patch_embed import resample_patch_embed
from torch.nn import functional as F

from supernet.families.vision_transformer.resizing import ResizedPatches, ResizedPositions


@pytest.mark.parametrize("wanted", [4, 12, 16])
def test_kernels_are_resized_as_timm_does(wanted):
    weight = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    own = ResizedPatches()(weight, torch.Size((4, 3, wanted, wanted)))
    torch.testing.assert_close(own, resample_patch_embed(weight, [wanted, wanted])[:4], rtol=1e-4, atol=1e-5)


def test_a_larger_kernel_gives_enlarged_patches_the_same_embedding():
    generator = torch.Generator().manual_seed(0)
    weight, patch = torch.randn(5, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    larger = F.interpolate(patch, size=(8, 8), mode="bicubic", antialias=True)
    resized = ResizedPatches()(weight, torch.Size((5, 3, 8, 8)))
    torch.testing.assert_close(F.conv2d(larger, resized), F.conv2d(patch, weight), rtol=1e-4, atol=1e-4)


def test_a_kernel_of_the_shared_size_is_a_view():
    weight = torch.randn(5, 3, 8, 8)
    assert ResizedPatches()(weight, torch.Size((4, 3, 8, 8))).data_ptr() == weight.data_ptr()


def test_positions_of_a_plane_stay_on_it():
    """Where positions rise linearly across the image, resized ones do so away from its edges."""
    columns = torch.arange(8.0).expand(8, 8).reshape(1, 64, 1).expand(1, 64, 3)
    resized = ResizedPositions()(columns, torch.Size((1, 256, 2))).view(16, 16, 2)
    assert resized.shape == (16, 16, 2)
    torch.testing.assert_close(resized[8, 5:11, 0], torch.arange(5.0, 11.0) / 2 - 0.25, rtol=0, atol=0.02)
