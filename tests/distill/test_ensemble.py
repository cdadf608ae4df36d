"""The weighted sum of networks, and the weights that fit it best."""

import pytest
import torch
from scipy.optimize import minimize
from torch import nn
from torch.nn import functional as F

from distill.ensemble import Ensemble, fit_weights


@pytest.fixture
def members():
    torch.manual_seed(0)
    return [nn.Linear(4, 3) for _ in range(3)]


def test_a_weight_of_one_alone_is_that_member_bit_for_bit(members):
    net, x = Ensemble(members), torch.randn(5, 4)
    torch.testing.assert_close(net(x), sum(member(x) for member in members) / 3)
    net.weights.copy_(torch.tensor([0.0, 1.0, 0.0]))
    assert torch.equal(net(x), members[1](x))
    assert not any(name == "weights" for name, _ in net.named_parameters())


def test_fitted_weights_are_the_optimum_that_another_method_finds():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (200,), generator=generator)
    signal = F.one_hot(labels, 3).double()
    logits = [scale * signal + torch.randn(200, 3, generator=generator) for scale in (2.0, 1.0, 0.0)]

    def loss(weights):
        return F.cross_entropy(sum(w * own for w, own in zip(weights, logits)), labels).item()

    found = minimize(loss, [0.3, 0.3, 0.3], method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).x
    weights = fit_weights(logits, labels)
    torch.testing.assert_close(weights.double(), torch.from_numpy(found), atol=1e-3, rtol=0)
    assert weights[0] > weights[1] > weights[2]
    assert loss(weights.tolist()) < loss([1 / 3] * 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ensemble([]), "at least one member"),
        (lambda: fit_weights(torch.zeros(2, 5, 3), torch.zeros(4, dtype=torch.long)), "for 4 labels"),
        (lambda: fit_weights(torch.full((1, 2, 3), torch.nan), torch.zeros(2, dtype=torch.long)), "not all finite"),
    ],
)
def test_what_is_no_ensemble_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
