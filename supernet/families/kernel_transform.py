"""Elastic kernels with learned transforms, as Once-for-All has them (arXiv 1908.09791, section 3.3, figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supernet.slicing import centred

# O output channels, I input channels (of a group), K kernel size


class KernelTransform(nn.Module):
    """A slicing rule for one convolution's weight: a smaller kernel is the next larger one's centre times a matrix.

    With sizes 3, 5 and 7 there are two matrices, `7to5_matrix` of shape [25, 25] and `5to3_matrix` of shape [9, 9],
    shared by all channels: w5 = M75 centre(w7) and w3 = M53 centre(w5), each flattened row by row. They are the
    identity at the start, so that a smaller kernel is the plain centre.
    """

    def __init__(self, kernel_sizes: Sequence[int]) -> None:
        super().__init__()
        self.kernel_sizes = sorted(kernel_sizes, reverse=True)
        for larger, smaller in pairwise(self.kernel_sizes):
            self.register_parameter(f"{larger}to{smaller}_matrix", nn.Parameter(torch.eye(smaller**2)))

    def forward(self, weight: Tensor, shape: torch.Size) -> Tensor:
        """The kernel of `shape` [O', I', K', K'] from the shared `weight` [O, I, K, K], K the largest size."""
        kernel = weight[: shape[0], : shape[1]]
        for larger, smaller in pairwise(self.kernel_sizes):
            if smaller < shape[-1]:
                break
            centre = centred(kernel, torch.Size((*shape[:2], smaller, smaller)))
            matrix = self.get_parameter(f"{larger}to{smaller}_matrix")
            kernel = F.linear(centre.flatten(2), matrix).unflatten(2, (smaller, smaller))
        return kernel
