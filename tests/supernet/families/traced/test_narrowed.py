import json

import pytest
import torch

from supernet.channels import narrow, trace
from supernet.families import FAMILIES
from supernet.families.named import make_family

ARCH = FAMILIES["mobilenet_v3_micro"]().space.smallest


def test_a_narrowed_subnet_is_the_subnet_with_fewer_channels():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=3)
    plain = family.build(ARCH)
    groups = trace(plain.eval(), *family.example(ARCH)).channels
    sizes = {group.name: group.size - 3 for group in groups[:4]}
    own = FAMILIES["narrowed"](arch=ARCH, channels=sizes, num_classes=3)
    expected = narrow(plain, {group: sizes[group.name] for group in groups[:4]})
    shapes = {name: tensor.shape for name, tensor in own.build(own.space.largest).state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in expected.state_dict().items()}
    assert own.macs(own.space.largest) < family.macs(ARCH)
    assert own.space.size == 1


def test_without_channels_it_is_the_subnet_itself():
    own, whole = FAMILIES["narrowed"](arch=ARCH), FAMILIES["mobilenet_v3_micro"]()
    model, expected = own.build(own.space.largest), whole.build(ARCH)
    model.load_state_dict(expected.state_dict())
    images = torch.rand(2, 3, ARCH["resolution"], ARCH["resolution"])
    assert torch.equal(model.eval()(images), expected.eval()(images))


def test_a_narrowed_subnet_may_be_narrowed_again():
    once = {"space": "mobilenet_v3_micro", "arch": dict(ARCH), "channels": {"conv_stem": 8}}
    twice = FAMILIES["narrowed"]("narrowed", json.dumps(once), channels={"conv_stem": 4})
    assert twice.build(twice.space.largest).conv_stem.out_channels == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": {"conv_stem": 10**6}}, r"the channels of conv_stem are 1 to \d+, not 1000000"),
        ({"channels": {"nothing": 4}}, "the channels of nothing are none that can become fewer, not 4"),
        ({"space": "mine.py:family"}, "a space of this package, not of 'mine.py:family'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES["narrowed"](**options)


def test_a_space_of_ones_own_says_by_an_option_how_it_is_narrowed(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from supernet.families import FAMILIES\n\n\ndef family(num_classes):\n"
        "    return FAMILIES['mobilenet_v3_micro'](num_classes=num_classes)\n"
    )
    space, taken = f"{tmp_path / 'mine.py'}:family", {"arch": dict(ARCH), "channels": {"conv_stem": 4}}
    found = make_family(space, json.dumps({"narrowed": taken}), {"num_classes": 3})
    expected = FAMILIES["narrowed"](**taken, num_classes=3)
    assert found.space == expected.space
    assert found.macs(found.space.largest) == expected.macs(expected.space.largest)
    for wrong, message in (({"channel": {}}, "channel"), ([], "narrowed is an object"), ({"channels": 3}, "channels")):
        with pytest.raises(ValueError, match=message):
            make_family(space, json.dumps({"narrowed": wrong}), {"num_classes": 3})
