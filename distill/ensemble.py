"""Several networks that answer as one: the weighted sum of their logits, and weights that fit it to labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# M members, B batch, K classes


class Ensemble(nn.Module):
    """sum over members m of weights[m] * logits_m [B, K]; the weights [M], a buffer, are 1 / M at first.

    As AdaNet combines its subnetworks (Cortes et al., arXiv 1607.01097; Macko et al., arXiv 1903.06236).
    """

    def __init__(self, members: Iterable[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        if not len(self.members):
            raise ValueError("an ensemble has at least one member")
        self.register_buffer("weights", torch.full((len(self.members),), 1 / len(self.members)))

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.stack([weight * member(*inputs) for weight, member in zip(self.weights, self.members)]).sum(0)


def fit_weights(logits: Tensor | Sequence[Tensor], labels: Tensor) -> Tensor:
    """The weights [M] of members' logits [M, B, K] whose sum has the least mean cross-entropy on labels [B].

    The problem is convex; found by BFGS from 1 / M, in double precision. On few examples such weights overfit: compare
    with equal ones on others. ValueError for shapes that do not belong together, or logits that are not finite.
    """
    stacked = torch.stack(list(logits)).double()
    if stacked.dim() != 3 or stacked.shape[1] != len(labels):
        raise ValueError(f"logits are [members, examples, classes], not {list(stacked.shape)} for {len(labels)} labels")
    if not stacked.isfinite().all():
        raise ValueError("the logits are not all finite")

    def loss_and_gradient(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights = torch.from_numpy(values).requires_grad_()
        loss = F.cross_entropy(torch.tensordot(weights, stacked, dims=1), labels)
        (gradient,) = torch.autograd.grad(loss, weights)
        return loss.item(), gradient.numpy()

    from scipy.optimize import minimize  # a subnet that is an ensemble runs without

    start = np.full(len(stacked), 1 / len(stacked))
    return torch.from_numpy(minimize(loss_and_gradient, start, jac=True, method="BFGS").x).float()
