import copy

import torch
from torch import nn

from supernet.training.memory_format import channels_last


def test_kernels_lie_as_torch_puts_them_and_those_of_five_dimensions_stay():
    kernels = nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, groups=16), nn.Linear(4, 4))
    model = channels_last(nn.Sequential(copy.deepcopy(kernels), nn.Conv3d(2, 4, 3)))
    expected = kernels.to(memory_format=torch.channels_last)
    assert [p.stride() for p in model[0].parameters()] == [p.stride() for p in expected.parameters()]
    assert model[1].weight.is_contiguous()
