import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.quantisation import Quantisation, activation_ranges
from compress.sensitivity import accuracy_drop, divergence, sensitivities
from compress.transforms import Bits


def test_the_divergence_is_that_of_the_probabilities():
    p, q = torch.tensor([[0.5, 0.5], [0.9, 0.1]]), torch.tensor([[0.25, 0.75], [0.9, 0.1]])
    by_hand = 0.5 * (0.5 * torch.log(p[0] / q[0]).sum())
    assert divergence(p.log(), q.log()) == pytest.approx(by_hand.item(), rel=1e-6)


def test_the_drop_counts_what_is_lost_and_what_is_won():
    labels = torch.tensor([0, 1, 1, 1])
    expected, found = F.one_hot(torch.tensor([0, 1, 1, 0])), F.one_hot(torch.tensor([0, 0, 0, 1]))
    assert accuracy_drop(expected, found, labels) == pytest.approx(0.25)


def test_one_layer_is_quantised_and_the_others_are_as_they_were():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    images, labels = torch.randn(50, 4), torch.randint(3, (50,))
    ranges = activation_ranges(model, [images], "extremes")
    found = {(own.layer, own.precision): own for own in sensitivities(model, Quantisation(ranges), [(images, labels)])}
    assert list(found) == [("0", "int8"), ("0", "weights"), ("2", "int8"), ("2", "weights")]
    with torch.no_grad():
        expected, middle = model(images), model[1](model[0](images))
        own = ranges["2.input"]
        rounded = torch.fake_quantize_per_tensor_affine(middle, own.step, own.zero_point, 0, 255)
        for precision, given in (("weights", middle), ("int8", rounded)):
            alone = F.linear(given, Bits(8)(model[2].weight), model[2].bias)
            assert found["2", precision].divergence == pytest.approx(divergence(expected, alone), rel=1e-6)
            assert found["2", precision].accuracy_drop == accuracy_drop(expected, alone, labels)
