import pytest
import torch

from search.problem import Problem
from search.strategies.global_threshold import thresholded, width_scores
from supernet.families import FAMILIES
from supernet.families.traced.models import from_model


@pytest.fixture(scope="module")
def family():
    def create():
        torch.manual_seed(0)
        layers = []
        for inputs, outputs in ((3, 16), (16, 16), (16, 32)):
            layers += [torch.nn.Conv2d(inputs, outputs, 3, padding=1), torch.nn.BatchNorm2d(outputs), torch.nn.ReLU()]
        return torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(32, 10))

    return from_model(
        create, torch.empty(1, 3, 16, 16), (0.25, 0.5, 0.75, 1.0), pretrained=create, importance="bn_scale"
    )


def problem_of(family, limits):
    costs = {"macs": lambda archs: [family.macs(arch) for arch in archs]}
    return Problem(family.space, ["accuracy"], costs, limits)


def test_the_least_important_layer_goes_first_and_down_to_its_floor(family):
    net = family.supernet()
    with torch.no_grad():
        for name, tensor in net.extract(family.space.largest).named_parameters():
            if name in ("1.weight", "4.weight", "7.weight"):
                net.state_dict()[name].copy_(tensor.sign() * {"1": 0.5, "4": 0.01, "7": 1.0}[name[0]])
    limit = 0.6 * family.macs(family.space.largest)
    archs = list(thresholded(problem_of(family, {"macs": limit}), net, family, "bn_scale"))
    assert dict(archs[0]) == {"0.width": 16, "3.width": 4, "6.width": 32}
    macs = [family.macs(arch) for arch in archs]
    assert macs == sorted(macs, reverse=True)
    assert limit >= macs[0]
    assert archs[-1] == family.space.smallest


@pytest.mark.parametrize("importance", ["l1", "geometric_median"])
def test_a_limit_is_met_by_no_more_than_it_needs(family, importance):
    net = family.supernet()
    scores = width_scores(family.space, net, family, importance)
    assert all(score.mean() == pytest.approx(1) for score in scores.values())
    everything, *_ = thresholded(problem_of(family, {}), net, family, importance)
    assert everything == family.space.largest
    limit = 0.5 * family.macs(family.space.largest)
    first, *_ = thresholded(problem_of(family, {"macs": limit}), net, family, importance)
    assert 0.3 * limit < family.macs(first) <= limit


def test_what_cannot_be_is_refused(family):
    with pytest.raises(ValueError, match="no threshold of importance meets macs <= 10"):
        list(thresholded(problem_of(family, {"macs": 10}), family.supernet(), family, "l1"))
    other = FAMILIES["nasbench201"](num_classes=10)
    with pytest.raises(ValueError, match="needs the widths of single layers as choices"):
        list(thresholded(problem_of(other, {}), other.supernet(), other, "l1"))
