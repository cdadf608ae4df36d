"""Weights that share few values: a codebook of centroids for each layer, which can be tuned (weight sharing).

Han, Mao and Dally, *Deep compression*, ICLR 2016, arXiv 1510.00149, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

# n weights, k centroids


def kmeans(values: np.ndarray, clusters: int, iterations: int = 300) -> np.ndarray:
    """`clusters` centroids of `values` [n] that ascend, in float32, by Lloyd's algorithm; fewer if there are fewer
    different values.

    They begin in equal steps from the least value to the largest (linear initialisation, section 3.2), so that the few
    large weights have centroids of their own. One that no value is nearest to goes to the cluster with the largest sum
    of squared errors, which it splits in two. ValueError for no values or no clusters.
    """
    values = np.sort(np.asarray(values, np.float64).ravel())
    if not values.size or clusters < 1:
        raise ValueError(f"{len(values)} values cannot have {clusters} centroids: both are at least 1")
    different = np.unique(values)
    if len(different) <= clusters:
        return different.astype(np.float32)
    sums, squares = (np.concatenate([[0.0], np.cumsum(values**power)]) for power in (1, 2))
    centroids = np.linspace(values[0], values[-1], clusters)
    before = None
    for _ in range(iterations):
        bounds = _bounds(values, centroids)
        if np.array_equal(before, bounds):
            break
        before, counts = bounds, np.diff(bounds)
        used = counts > 0
        centroids = np.diff(sums[bounds])[used] / counts[used]
        if len(centroids) < clusters:
            errors = np.diff(squares[bounds])[used] - counts[used] * centroids**2
            split = np.argsort(-errors, kind="stable")[: clusters - len(centroids)]
            deviations = np.sqrt(np.maximum(errors[split], 0) / counts[used][split])
            added = centroids[split] + deviations
            centroids[split] -= deviations
            centroids = np.sort(np.concatenate([centroids, added]))
    return np.unique(centroids.astype(np.float32))


def _bounds(values: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Where, in ascending `values`, those begin and end that each of ascending centroids is nearest to [k + 1]."""
    middles = (centroids[1:] + centroids[:-1]) / 2
    return np.concatenate([[0], np.searchsorted(values, middles, side="right"), [len(values)]])


def clustered(model: nn.Module, bits: Mapping[str, int]) -> nn.Module:
    """`model`, in place, with each parameter that `bits` names made of 2^bits centroids of its own, by `kmeans`.

    What is trained is the centroids, under the name `parametrizations.NAME.original` within its module; the gradient of
    one is the sum of the gradients of its weights (section 3.3). Weights that are 0 stay 0, and have no centroid.
    A parameter that several layers share has one codebook in all of them. `compress.transforms.fold` makes plain
    parameters of them. ValueError for unknown names, for bits that are not from
    1 to 8, and for a parameter that is 0 throughout.
    """
    parameters = dict(model.named_parameters())
    places: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for name, count in bits.items():
        if name not in parameters:
            raise ValueError(f"{name!r} is no parameter of the {type(model).__name__}: it has no codebook")
        if not 1 <= count <= 8:
            raise ValueError(f"a codebook has 1 to 8 bits, not {count}")
        weight = parameters[name].detach()
        kept = weight != 0
        if not kept.any():
            raise ValueError(f"{name!r} has no weight that is not 0: keep more of it")
        centroids = torch.from_numpy(kmeans(weight[kept].cpu().numpy(), 2**count)).to(weight)
        nearest = torch.bucketize(weight, (centroids[1:] + centroids[:-1]) / 2)
        clusters = Clustered(torch.where(kept, nearest + 1, 0))
        _put(model, places[id(parameters[name])], clusters, weight)
    return model


def _put(model: nn.Module, names: list[str], clusters: Clustered, weight: Tensor) -> None:
    """Let one `weight` of the layers of these names be made by `clusters`, of the same centroids."""
    places = [name.rpartition(".") for name in names]
    for owner, _, leaf in places:  # apart, as registering changes a parameter in place
        setattr(model.get_submodule(owner), leaf, nn.Parameter(weight.clone()))
        parametrize.register_parametrization(model.get_submodule(owner), leaf, clusters)
    (first, _, own), *others = places
    for owner, _, leaf in others:
        made = model.get_submodule(owner).parametrizations[leaf]
        made.original = model.get_submodule(first).parametrizations[own].original


class Clustered(nn.Module):
    """The parametrization of a weight by centroids [k]: where `indices` is i > 0 it is centroid i - 1, elsewhere 0."""

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices.int())
        self.count = int(indices.max())

    def forward(self, centroids: Tensor) -> Tensor:
        table = torch.cat([centroids.new_zeros(1), centroids])
        return table.index_select(0, self.indices.flatten()).view(self.indices.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The mean weight of each cluster, in float64; the least squares centroids for these indices."""
        indices, flat = self.indices.flatten().long(), weight.flatten().double()
        sums = flat.new_zeros(self.count + 1).index_add_(0, indices, flat)
        counts = torch.bincount(indices, minlength=self.count + 1)
        return (sums / counts.clamp(min=1))[1:].to(weight)
