import numpy as np
import pytest
import torch

from supernet.families import FAMILIES
from supernet.families.shufflenet import OPERATIONS, SCALES, Layer, ShuffleBlock, from_string, to_string

SEARCHED = "2,1,0,1,2,0,2,0,2,0,2,3,0,0,0,0,3,2,3,3"  # the authors'


def test_holds_four_operations_in_twenty_blocks_and_eight_scales_of_each():
    assert FAMILIES["shufflenet_spos"]().space.size == 4**20
    space = FAMILIES["shufflenet_spos"](channel_search=True).space
    assert space.size == 4**20 * 8**20
    assert space.choices["blocks.19.scale"].values == SCALES


def test_the_authors_architecture_has_their_macs_and_parameters():
    family = FAMILIES["shufflenet_spos"]()
    arch = family.space.validate(from_string(SEARCHED))
    assert (family.macs(arch), family.parameters(arch)) == (322_918_720, 3_529_312)
    assert FAMILIES["shufflenet_spos"](affine=True).parameters(arch) == 3_558_464
    whole = FAMILIES["shufflenet_spos"](channel_search=True)
    scaled = whole.space.validate({**arch, **{f"blocks.{block}.scale": 1.0 for block in range(20)}})
    assert (whole.macs(scaled), whole.parameters(scaled)) == (322_918_720, 3_529_312)


@pytest.mark.parametrize(
    ("operation", "millions"), [("shuffle_3", 295.8), ("shuffle_5", 313.7), ("shuffle_7", 340.4), ("xception", 358.8)]
)
def test_networks_of_one_operation_have_the_authors_macs(operation, millions):
    family = FAMILIES["shufflenet_spos"]()
    assert round(family.macs({f"blocks.{block}": operation for block in range(20)}) / 1e6, 1) == millions


def test_numbers_and_architectures_are_inverse():
    arch = from_string(SEARCHED)
    assert (arch["blocks.0"], arch["blocks.1"], arch["blocks.2"]) == ("shuffle_7", "shuffle_5", "shuffle_3")
    assert arch["blocks.19"] == "xception"
    assert to_string(arch) == SEARCHED


@pytest.mark.parametrize("text", ["", SEARCHED[:-2], SEARCHED + ",0", SEARCHED[:-1] + "4", SEARCHED.replace(",", "")])
def test_other_numbers_are_refused(text):
    with pytest.raises(ValueError, match="is 20 numbers from 0 to 3 with commas between, not"):
        from_string(text)


@pytest.mark.parametrize(
    ("size", "strides", "last"),
    [(224, 5, 7), (128, 5, 4), (96, 5, 3), (64, 4, 4), (32, 3, 4), (24, 3, 3), (8, 1, 4), (3, 0, 3)],
)
def test_small_images_leave_out_the_first_strides(size, strides, last):
    family = FAMILIES["shufflenet_spos"](num_classes=10, input_size=size)
    with torch.device("meta"):
        model = family.build(family.space.smallest)
    convs = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert sum(conv.stride == (2, 2) for conv in convs) == max(2 * strides - (strides == 5), 0)  # two in a block
    assert model.blocks(model.stem(torch.empty(1, 3, size, size, device="meta"))).shape[2:] == (last, last)
    with pytest.raises(ValueError, match="at least 3 pixels a side, not 2"):
        FAMILIES["shufflenet_spos"](input_size=2)


def test_even_channels_pass_a_block_and_odd_ones_are_changed():
    block = ShuffleBlock(Layer(8, 8, 1, 4), "shuffle_3", 4, False, 0.0).eval()
    block.main = torch.nn.Module()
    block.main.forward = lambda x: -x
    x = torch.arange(8.0).reshape(1, 8, 1, 1).expand(2, 8, 4, 4)
    assert block(x)[0, :, 0, 0].tolist() == [0, 2, 4, 6, -1, -3, -5, -7]


def test_the_first_block_of_a_stage_gives_the_channels_that_are_missing():
    block = ShuffleBlock(Layer(16, 64, 2, 8), "xception", 32, True, 0.5).train()
    assert block.beside(torch.zeros(2, 16, 8, 8)).shape == (2, 16, 4, 4)
    assert block.main(torch.zeros(2, 16, 8, 8)).shape == (2, 48, 4, 4)
    assert block.drop_path.drop_prob == 0  # it has nothing beside it that passes unchanged


def test_scales_narrow_the_middle_of_a_block_alone():
    family = FAMILIES["shufflenet_spos"](num_classes=10, input_size=32, channel_search=True)
    arch = family.space.sample(np.random.default_rng(0))
    with torch.device("meta"):
        model, widest = family.build(arch), family.build(family.space.validate({**arch, "blocks.4.scale": 1.6}))
    for name, tensor in model.state_dict().items():
        if not name.startswith("blocks.4."):
            assert tensor.shape == widest.state_dict()[name].shape
    for scale, width in zip(SCALES, (16, 32, 48, 64, 80, 96, 112, 128)):
        assert Layer(160, 160, 1, 28).middle(scale) == width
    assert Layer(64, 64, 1, 56).middle(1.4) == 44  # of 44.8


def test_batchnorm_has_a_scale_only_in_networks_that_are_trained_alone():
    for affine in (False, True):
        family = FAMILIES["shufflenet_spos"](num_classes=10, input_size=32, affine=affine)
        with torch.device("meta"):
            model = family.build(
                family.space.validate({f"blocks.{block}": OPERATIONS[block % 4] for block in range(20)})
            )
        norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        assert {norm.affine for norm in norms} == {affine}
        assert model.classifier.bias is None
