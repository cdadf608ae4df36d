"""Averages over those who hold an entry, against sums written out."""

import pytest
import torch
from torch import nn

from supernet.families import FAMILIES
from supernet.space import SearchSpace
from supernet.supernet import Supernet
from supernet.training.federated import Update, average
from supernet.views import View


def build(arch, **options):
    return nn.Sequential(nn.Linear(3, arch["width"]), nn.ReLU(), nn.Linear(arch["width"], 2))


@pytest.fixture
def net():
    return Supernet(SearchSpace({"width": (2, 4)}), build)


def trained(net, width, value):
    """A subnet all of whose parameters are `value`."""
    model = net.extract({"width": width})
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def test_an_entry_is_the_mean_of_those_who_hold_it(net):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    average(net, [Update({"width": 2}, trained(net, 2, 1.0)), Update({"width": 4}, trained(net, 4, 4.0), 2.0)])
    both, alone = (1 + 2 * 4) / 3, 4.0
    after = net.state_dict()
    torch.testing.assert_close(after["0.weight"][:2], torch.full((2, 3), both))
    torch.testing.assert_close(after["0.weight"][2:], torch.full((2, 3), alone))
    torch.testing.assert_close(after["2.weight"], torch.tensor([[both, both, alone, alone]] * 2))
    average(net, [Update({"width": 2}, trained(net, 2, 7.0))])
    torch.testing.assert_close(net.state_dict()["2.weight"], torch.tensor([[7, 7, alone, alone]] * 2))
    assert before.keys() == net.state_dict().keys()


def test_masked_entries_do_not_count(net):
    held = torch.tensor([[True, False], [False, False]])
    first, second = (Update({"width": 2}, trained(net, 2, value), 1.0, {"2.weight": held}) for value in (1.0, 3.0))
    before = net.state_dict()["2.weight"].clone()
    average(net, [first, second])
    after = net.state_dict()["2.weight"]
    assert after[0, 0] == 2
    before[0, 0] = 2
    torch.testing.assert_close(after, before)


def test_random_masks_agree_with_sums_over_customers(net):
    generator = torch.Generator().manual_seed(0)
    updates, lists = [], {}
    for index in range(5):
        width = (2, 4)[index % 2]
        model = net.extract({"width": width})
        held = {}
        for name, parameter in model.named_parameters():
            nn.init.normal_(parameter, generator=generator)
            held[name] = torch.rand(parameter.shape, generator=generator) < 0.5
            for place in held[name].nonzero().tolist():
                value = parameter.detach()[tuple(place)].item()
                lists.setdefault((name, *place), []).append((index + 1, value))
        updates.append(Update({"width": width}, model, index + 1, held))
    before = {name: tensor.detach().clone() for name, tensor in net.named_parameters()}
    average(net, updates)
    for name, tensor in net.state_dict().items():
        for place in torch.ones_like(tensor).nonzero().tolist():
            found = lists.get((name, *place))
            mean = sum(w * v for w, v in found) / sum(w for w, _ in found) if found else before[name][tuple(place)]
            assert tensor[tuple(place)].item() == pytest.approx(float(mean), abs=1e-6)


def test_one_customer_puts_back_what_it_trained():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=4)
    net = family.supernet(0)
    arch = family.space.smallest
    model = net.extract(arch)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    average(net, [Update(arch, model)])
    again = dict(net.extract(arch).named_parameters())
    assert all(torch.equal(parameter, again[name]) for name, parameter in model.named_parameters())


def test_what_is_no_slice_is_refused():
    class Half:
        def __call__(self, weight):
            return weight / 2

    net = Supernet(SearchSpace({"width": (2, 4)}), build, views=lambda arch: {"0.weight": View(transform=Half())})
    with pytest.raises(ValueError, match="no slice"):
        average(net, [Update({"width": 2}, net.extract({"width": 2}))])


def test_wrong_masks_and_weights_end_in_a_line(net):
    model = net.extract({"width": 2})
    with pytest.raises(ValueError, match=r"'3\.weight'"):
        average(net, [Update({"width": 2}, model, held={"3.weight": torch.ones(1, dtype=torch.bool)})])
    with pytest.raises(ValueError, match="above 0"):
        average(net, [Update({"width": 2}, model, weight=0.0)])
