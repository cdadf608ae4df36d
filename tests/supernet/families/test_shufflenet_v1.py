import numpy as np
import pytest
import torch
from torch.nn.functional import channel_shuffle

from supernet.families import FAMILIES
from supernet.families.shufflenet_v1 import CHANNELS, Block


@pytest.mark.parametrize("groups", CHANNELS)
def test_a_block_is_what_the_paper_says(groups):
    """Against a block put together of torch's own shuffle, with a stride and without."""
    torch.manual_seed(0)
    out = CHANNELS[groups][0]
    x = torch.randn(2, out, 6, 6)
    block = Block(out, out, groups).eval()
    main = channel_shuffle(block.bn1(block.conv1(x)).relu(), groups)
    main = block.bn3(block.conv3(block.bn2(block.conv2(main))))
    assert torch.equal(block(x), (x + main).relu())
    halved = Block(out, 2 * out, groups, stride=2).eval()(x)
    assert halved.shape == (2, 2 * out, 3, 3)
    pooled = torch.nn.functional.avg_pool2d(x, 3, 2, 1).relu()
    assert torch.equal(halved[:, :out], pooled)


def test_the_network_of_three_groups_has_the_published_size():
    """138 million multiply-accumulates and 1.9 million parameters, as its authors list it."""
    family = FAMILIES["shufflenet_v1"](groups=3)
    assert family.macs(family.space.largest) == pytest.approx(138e6, rel=0.005)
    assert round(family.parameters(family.space.largest) / 1e6, 1) == 1.9


def test_layers_in_groups_become_narrower_where_the_shuffle_lets_them():
    family = FAMILIES["shufflenet_v1"](groups=2, num_classes=5, input_size=32)
    assert {name.rpartition(".")[2] for name in family.space.choices} == {"depth", "width"}
    net = family.supernet().eval()
    arch = family.space.sample(np.random.default_rng(0))
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(net(images, arch), net.extract(arch)(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"groups": 5}, "has 1, 2, 3, 4, 8 groups, not 5"), ({"scale": 0.29}, "which scale 0.29 does not give")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        FAMILIES["shufflenet_v1"](**options)
