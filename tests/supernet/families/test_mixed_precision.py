import json

import numpy as np
import pytest
import torch

from search.counts import count
from supernet.families import FAMILIES
from supernet.families.low_bits import KINDS

BITS = (2, 4, 8)


@pytest.fixture(scope="module")
def family():
    return FAMILIES["mixed_precision"](bits=BITS, num_classes=5)


def test_bits_are_choices_of_blocks_where_these_are_there(family):
    plain = FAMILIES["mobilenet_v3_micro"](num_classes=5)
    chosen = {name for name in family.space.choices if name.endswith(".bits")}
    assert set(family.space.choices) == {*plain.space.choices, *chosen}
    generator = np.random.default_rng(0)
    for arch in (family.space.smallest, family.space.largest, *(family.space.sample(generator) for _ in range(5))):
        layers = {n: m for n, m in family.build(arch).named_modules() if type(m) in KINDS.values()}
        blocks = {name.rpartition(".")[0] for name in layers}
        assert {f"{block}.bits" for block in blocks if block} == chosen & set(arch)
        assert all(m.bits == arch.get(f"{n.rpartition('.')[0]}.bits", 8) for n, m in layers.items())


def test_costs_are_the_sums_over_layers(family):
    """By hand from the modules and what they put out."""
    arch = family.space.sample(np.random.default_rng(1))
    model = family.build(arch).eval()
    operations, weights = [], []

    def note(layer, inputs, output):
        macs = output.numel() * layer.weight[0].numel()
        operations.append((macs, layer.bits))
        weights.append((layer.weight.numel(), layer.bits))

    for module in model.modules():
        if type(module) in KINDS.values():
            module.register_forward_hook(note)
    model(torch.rand(1, 3, arch["resolution"], arch["resolution"]))
    rest = family.macs(arch) - sum(macs for macs, _ in operations)
    others = sum(p.numel() for p in model.parameters()) - sum(number for number, _ in weights)
    assert rest == 0
    assert count("bit_operations", family)([arch]) == [sum(macs * bits**2 for macs, bits in operations)]
    assert count("weight_bytes", family)([arch]) == [4 * others + sum(n * bits for n, bits in weights) / 8]


def test_a_subnet_in_other_bits_shares_weights_and_not_steps(family):
    net = family.supernet()  # in train mode, where BatchNorm brings values to the spread that steps begin with
    low, high = (
        family.space.validate({n: (bits if n.endswith(".bits") else v) for n, v in family.space.smallest.items()})
        for bits in (2, 8)
    )
    images = torch.rand(8, 3, low["resolution"], low["resolution"])
    assert not torch.equal(net(images, low), net(images, high))
    net(images, low).square().sum().backward()
    layer = dict(net.named_parameters())
    steps = next(name for name in layer if name.endswith("weight_steps") and len(layer[name]) == 3)
    assert (layer[steps].grad != 0).tolist() == [True, False, False]
    assert layer[steps.replace("weight_steps", "weight")].grad.abs().sum() > 0


def test_a_pretrained_network_starts_with_its_weights_and_their_steps(tmp_path):
    import timm

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=5)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = {"name": "resnet10t", "input_size": 32, "pretrained": str(tmp_path / "weights.pth"), "width": [0.5, 1.0]}
    family = FAMILIES["mixed_precision"]("from_timm", json.dumps(options), (8,), num_classes=5)
    weights = family.weights()
    weight = weights["layer1.0.conv1.weight"]
    assert weights["layer1.0.conv1.weight_steps"].item() == pytest.approx((2 * weight.abs().mean() / 127**0.5).item())
    assert weight.norm().item() == pytest.approx(model.layer1[0].conv1.weight.norm().item(), rel=1e-5)
    with torch.device("meta"):
        assert weights.keys() == family.build(family.space.largest).state_dict().keys()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (8, 4)}, "bits rise, from 2 to 8, such as"),
        ({"bits": (1, 4)}, "bits rise, from 2 to 8, such as"),
        ({"space": "mine.py:family"}, "a space of this package, not of 'mine.py:family'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES["mixed_precision"](**options)


def test_a_space_without_bits_counts_none():
    with pytest.raises(ValueError, match="bit_operations is of spaces whose layers choose their bits"):
        count("bit_operations", FAMILIES["mobilenet_v3_micro"]())
