import numpy as np
import pytest
import timm
import torch
from torch import nn

from netaug.augmentation import augment
from supernet.families import FAMILIES
from supernet.skeleton import Assembler, build_skeleton


@pytest.fixture(scope="module")
def mobilenet():
    return augment("mobilenetv2_035", num_classes=7, input_size=32)


@pytest.fixture(scope="module")
def net(mobilenet):
    return mobilenet.family.supernet(seed=3).eval()


def test_widths_and_expansions_are_three_times_in_two_steps(mobilenet):
    choices = {name: choice.values for name, choice in mobilenet.space.choices.items()}
    assert choices["conv_stem.width"] == (16, 32, 48)
    assert choices["blocks.4.0.conv_pwl.width"] == (32, 64, 96)
    assert choices["conv_head.width"] == (1280, 2560, 3840)
    assert choices["blocks.1.0.expansion"] == (1, 2, 3)
    # 16 inverted residuals, and what passes between: the stem, 7 stages and the head
    kinds = [name.rpartition(".")[2] for name in choices]
    assert (kinds.count("expansion"), kinds.count("width"), len(kinds)) == (16, 9, 25)


def test_the_authors_factors():
    found = augment("mobilenetv2_035", widths=(1, 1.8, 2.6), expansions=(1, 1.6, 2.2, 2.8), input_size=32)
    assert found.space.choices["conv_stem.width"].values == (16, 29, 42)  # 28.8 and 41.6
    assert found.space.choices["blocks.1.0.expansion"].values == (1, 1.6, 2.2, 2.8)


def test_expanded_channels_follow_the_input_and_the_expansion(mobilenet):
    arch = mobilenet.space.validate(
        {**mobilenet.space.smallest, "blocks.0.0.conv_pw.width": 24, "blocks.1.0.expansion": 2.0}
    )
    model = mobilenet.build(arch)
    block = model.blocks[1][0]
    # the stock block expands 8 channels to 48; three times as many come in, and it expands twice as far
    assert block.conv_pw.weight.shape == (48 * 2 * 3, 24, 1, 1)
    assert block.conv_dw.weight.shape == (288, 1, 3, 3)
    assert (block.conv_dw.groups, block.bn2.num_features) == (288, 288)
    assert block.conv_pwl.weight.shape == (8, 288, 1, 1)
    assert model.blocks[1][1].conv_pw.weight.shape == (48, 8, 1, 1)


def test_squeeze_and_excitation_is_inside_its_block():
    found = augment("mobilenetv3_small_050", input_size=32)
    inside = {entry.channels.name: (entry.block, entry.input.name) for entry in found.inside}
    assert inside["blocks.2.0.conv_pw"] == ("blocks.2.0", "blocks.1.0.conv_pwl")
    assert inside["blocks.2.0.se.conv_reduce"] == ("blocks.2.0", "blocks.1.0.conv_pwl")
    assert inside["blocks.0.0.se.conv_reduce"] == ("blocks.0.0", "conv_stem")  # a block without expansion


def test_other_models_have_an_inside_as_well():
    found = augment("resnet10t", input_size=32)
    assert {entry.block: entry.input.name for entry in found.inside} == {
        "layer1.0": "conv1.6",
        "layer2.0": "conv1.6",
        "layer3.0": "layer2.0.conv2",
        "layer4.0": "layer3.0.conv2",
    }


def test_the_smallest_subnet_is_the_stock_model_of_that_seed(mobilenet, net):
    torch.manual_seed(3)
    stock = timm.create_model("mobilenetv2_035", num_classes=7).eval()
    tiny = net.extract(mobilenet.space.smallest)
    assert list(tiny.state_dict()) == list(stock.state_dict())
    for name, tensor in stock.state_dict().items():
        assert torch.equal(tiny.state_dict()[name], tensor), name
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(net(images, mobilenet.space.smallest), stock(images))


def test_subnets_equal_plain_modules_bit_for_bit_and_skeletons_are_assembled_right(mobilenet, net):
    generator, images = np.random.default_rng(0), torch.randn(2, 3, 32, 32)
    assemble = Assembler(mobilenet.build, mobilenet.pieces, mobilenet.space.largest)
    for arch in [mobilenet.space.largest, *(mobilenet.space.sample(generator) for _ in range(3))]:
        module, built = assemble(arch), build_skeleton(mobilenet.build, arch)
        assert repr(module) == repr(built)
        shapes = [(name, tensor.shape) for name, tensor in built.state_dict().items()]
        assert [(name, tensor.shape) for name, tensor in module.state_dict().items()] == shapes
        assert torch.equal(net(images, arch), net.extract(arch)(images))


def test_building_a_skeleton_draws_no_random_numbers(mobilenet):
    state = torch.get_rng_state()
    build_skeleton(mobilenet.build, mobilenet.space.largest)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_subnet_of_a_family_is_augmented_at_its_resolution():
    family = FAMILIES["mobilenet_v3_micro"](num_classes=5)
    found = augment(family, r=2, s=1)
    assert found.input_size == family.resolution(family.space.smallest) == 24
    shapes = {name: tensor.shape for name, tensor in found.build(found.space.smallest).state_dict().items()}
    plain = family.build(family.space.smallest).state_dict()
    assert shapes == {name: tensor.shape for name, tensor in plain.items()}
    macs = found.family.macs
    assert macs(found.space.smallest) == family.macs(family.space.smallest) < macs(found.space.largest)


def test_what_cannot_be_augmented_is_refused():
    with pytest.raises(ValueError, match="r > 1 times as wide, in s >= 1 steps, not r = 1 and s = 2"):
        augment("mobilenetv2_035", r=1)
    with pytest.raises(ValueError, match=r"widths are factors that begin with 1 and rise, not \(1.8, 2.6\)"):
        augment("mobilenetv2_035", widths=(1.8, 2.6))
    with pytest.raises(ValueError, match="timm has no model 'mobilenet'"):
        augment("mobilenet")


def test_a_model_without_batch_norm_is_augmented_too():
    found = augment("convnext_atto", num_classes=3, input_size=64)
    model = found.build(found.space.largest)
    assert model.stages[0].blocks[0].mlp.fc1.weight.shape == (3 * 3 * 160, 3 * 40, 1, 1)
    assert isinstance(model.stages[0].blocks[0].norm, nn.Module)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
