"""Codebooks against values worked by hand, another implementation of k-means, and torch's own gradients."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from compress.codebooks import clustered, kmeans
from compress.transforms import fold


def test_centroids_of_values_worked_by_hand():
    # 0 and 10 to begin with: {0, 1, 2, 4} and {10}
    assert kmeans(np.array([4.0, 0, 1, 2, 10]), 2).tolist() == [1.75, 10]
    # 0, 5 and 10: {0, 1, 2}, {4} and {10}
    assert kmeans(np.array([4.0, 0, 1, 2, 10]), 3).tolist() == [1, 4, 10]
    assert kmeans(np.array([3.0, 3, -1, 3]), 8).tolist() == [-1, 3]
    assert kmeans(np.array([1.0, 2, 6]), 1).tolist() == [3]


def test_a_centroid_without_values_splits_the_worst_cluster():
    # 0, 50 and 100: none is nearest to 50, which goes to {0, 1, 5, 6}
    assert kmeans(np.array([0.0, 1, 5, 6, 100]), 3).tolist() == [0.5, 5.5, 100]


@pytest.mark.parametrize("clusters", [2, 7, 16, 64])
def test_centroids_are_those_of_scikit_learn(clusters):
    values = np.random.default_rng(clusters).standard_normal(3000)
    begin = np.linspace(values.min(), values.max(), clusters)[:, None]
    theirs = KMeans(clusters, init=begin, n_init=1, tol=0, max_iter=300, algorithm="lloyd").fit(values[:, None])
    ours = kmeans(values, clusters)
    error = np.square(values[:, None] - ours).min(1).sum()
    assert len(ours) == clusters
    assert error < 1.03 * theirs.inertia_  # which moves centroids without values elsewhere


def test_what_cannot_be_clustered_is_named():
    for values, clusters in ((np.array([]), 2), (np.array([1.0]), 0)):
        with pytest.raises(ValueError, match="centroids"):
            kmeans(values, clusters)


def linear():
    model = nn.Linear(6, 4)
    with torch.no_grad():
        model.weight.copy_(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)))
        model.weight[0] = 0
    return model


def test_a_centroid_s_gradient_is_the_sum_of_those_of_its_weights():
    model, x = linear(), torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    clustered(model, {"weight": 2})
    weight = model.weight.detach().clone().requires_grad_()
    F.linear(x, weight, model.bias).square().sum().backward()
    model(x).square().sum().backward()
    (parametrization,), centroids = model.parametrizations.weight, model.parametrizations.weight.original
    indices = parametrization.indices
    expected = torch.stack([weight.grad[indices == k + 1].sum() for k in range(4)])
    assert centroids.shape == (4,)
    torch.testing.assert_close(centroids.grad, expected)
    assert torch.equal(indices == 0, weight == 0)


def test_tuned_centroids_move_no_zero_and_no_weight_to_another_cluster():
    model, x = linear(), torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    clustered(model, {"weight": 2})
    indices = model.parametrizations.weight[0].indices.clone()
    before = model.weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
    for _ in range(20):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    centroids = model.parametrizations.weight.original.detach()
    weight = fold(model).weight
    assert torch.equal(weight, torch.cat([torch.zeros(1), centroids])[indices])
    assert not torch.isclose(weight, before)[1:].any()
    assert not weight[0].any()


def test_as_many_centroids_as_weights_are_the_weights():
    model = linear()
    before = model.weight.detach().clone()
    assert torch.equal(fold(clustered(model, {"weight": 5})).weight, before)


def test_a_state_dict_has_centroids_and_indices():
    saved, other = clustered(linear(), {"weight": 2}), clustered(nn.Linear(6, 4), {"weight": 2})
    other.load_state_dict(saved.state_dict())
    assert torch.equal(other.weight, saved.weight)


def test_bad_codebooks_are_named():
    empty = linear()
    with torch.no_grad():
        empty.weight.zero_()
    for model, bits, words in (
        (linear(), {"wait": 4}, "'wait' is no parameter"),
        (linear(), {"weight": 9}, "1 to 8 bits, not 9"),
        (empty, {"weight": 2}, "no weight that is not 0"),
    ):
        with pytest.raises(ValueError, match=words):
            clustered(model, bits)
