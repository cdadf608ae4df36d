"""Exact facts of the named spaces."""

import pytest
import torch

from supernet.families import FAMILIES
from supernet.families.autoformer import RelativeAttention, RelativePositions


def test_ofa_mobilenet_v3_has_the_papers_size_and_the_authors_parameters():
    family = FAMILIES["ofa_mobilenet_v3"]()
    assert family.parameters(family.space.largest) == 7_664_760
    assert family.space.restrict({"resolution": (224,)}).size == 7371**5 == 21_758_655_492_572_485_851
    assert family.space.size == 25 * 7371**5


def test_ofa_mobilenet_v3_scales_every_width():
    model = FAMILIES["ofa_mobilenet_v3"](width_mult=1.2)
    largest = model.build(model.space.largest)
    widths = [stage[-1].conv_pwl.out_channels for stage in largest.blocks[1:-1]]
    assert widths == [32, 48, 96, 136, 192]  # 1.2 times 24, 40, 80, 112 and 160, to multiples of 8
    assert largest.conv_stem.out_channels == 24
    assert largest.blocks[-1][0].conv.out_channels == 1152
    assert largest.conv_head.out_channels == 1536


def test_kernel_transforms_are_off_by_default():
    assert not FAMILIES["ofa_mobilenet_v3"]().rules


def test_alphanet_counts_every_choice_of_a_stage():
    family = FAMILIES["alphanet"]()
    widths = 2 * 2 * 2 * 2 * 2 * 3 * 4 * 2 * 2
    depths = 2 * 3 * 4 * 4 * 6 * 6 * 2
    kernels, expansions, resolutions = 2**7, 3**4, 4
    assert family.space.size == widths * depths * kernels * expansions * resolutions
    # the papers' smallest and largest models have 203 and 1,937 million MACs, with 1x1 convolutions in some shortcuts
    assert family.macs(family.space.smallest) == pytest.approx(203e6, rel=0.03)
    assert family.macs(family.space.largest) == pytest.approx(1937e6, rel=0.01)


def test_ofa_resnet50_contains_resnet50d():
    family = FAMILIES["ofa_resnet50"]()
    space = family.space
    arch = {name: choice.values[-1] for name, choice in space.choices.items()}
    arch |= {name: 0.25 for name in arch if name.endswith("expand_ratio")}
    arch |= {"layer1.depth": 3, "layer2.depth": 4, "layer3.depth": 6, "layer4.depth": 3}
    assert family.parameters(space.validate(arch)) == 25_576_264  # timm's resnet50d


def test_autoformer_keeps_64_channels_a_head():
    family = FAMILIES["autoformer_tiny"](num_classes=10)
    for arch in (family.space.smallest, family.space.largest):
        for index, block in enumerate(family.build(arch).blocks):
            assert block.attn.head_dim == 64
            assert block.attn.qkv.out_features == 3 * 64 * arch[f"blocks.{index}.num_heads"]


def test_autoformer_slices_queries_keys_and_values_as_three_blocks():
    family = FAMILIES["autoformer_tiny"](num_classes=10)
    net = family.supernet()
    model = net.extract(family.space.smallest)
    shared, own = net.get_parameter("blocks.0.attn.qkv.weight"), model.blocks[0].attn.qkv.weight
    for part, whole in zip(own.chunk(3), shared.chunk(3)):
        assert (part == whole[: len(part), :192]).all()


@pytest.mark.parametrize(("size", "published"), [("tiny", 5.7e6), ("small", 22.9e6), ("base", 53.7e6)])
def test_autoformers_that_were_published_are_within_their_spaces(size, published):
    family = FAMILIES[f"autoformer_{size}"]()
    assert family.parameters(family.space.smallest) < published < family.parameters(family.space.largest)


def test_autoformer_base_has_the_parameters_of_a_published_subnet():
    """The one that MMRazor searched, of 54.319 million, by a count that leaves positions out."""
    heads = (10, 10, 10, 8, 10, 9, 8, 8, 9, 8, 10, 10, 9, 10)
    ratios = (3.5, 3.5, 3.5, 4, 3, 3, 3.5, 3.5, 4, 4, 4, 4, 4, 4)
    blocks = {f"blocks.{b}.num_heads": count for b, count in enumerate(heads)}
    blocks |= {f"blocks.{b}.mlp_ratio": ratio for b, ratio in enumerate(ratios)}
    family = FAMILIES["autoformer_base"]()
    arch = family.space.validate({"embed_dim": 576, "depth": 14} | blocks)
    absolute, relative = 197 * 576, 14 * 4 * 30 * 64
    assert family.parameters(arch) - absolute - relative == 54_319_240


def test_relative_positions_are_those_of_rows_and_columns():
    torch.manual_seed(0)
    positions = RelativePositions(side=3)
    vectors = positions()
    assert vectors.shape == (10, 10, 64)
    # patches 1 and 6 (tokens 2 and 7) lie at row 0, column 1 and row 2, column 0
    expected = positions.table_v[2 + 15] + positions.table_h[-1 + 15]
    assert torch.equal(vectors[2, 7], expected)
    assert torch.equal(vectors[0, 4], positions.table_v[0] + positions.table_h[0])
    assert torch.equal(vectors[4, 0], vectors[0, 4])


def test_relative_attention_is_what_the_formula_says():
    torch.manual_seed(0)
    attention = RelativeAttention(dim=24, num_heads=2, side=2, qkv_bias=True).eval()
    x = torch.randn(1, 5, 24)
    q, k, v = attention.qkv(x)[0].view(5, 3, 2, 64).unbind(1)  # [token, head, channel]
    keys, values = attention.rel_pos_k(), attention.rel_pos_v()
    rows = []
    for i in range(5):
        heads = []
        for h in range(2):
            logits = torch.stack([q[i, h] @ (k[j, h] + keys[i, j]) / 8 for j in range(5)])
            weights = logits.softmax(0)
            heads.append(sum(weights[j] * (v[j, h] + values[i, j]) for j in range(5)))
        rows.append(torch.cat(heads))
    torch.testing.assert_close(attention(x)[0], attention.proj(torch.stack(rows)))


def test_autoformer_without_relative_positions_is_timms_plain_transformer():
    family = FAMILIES["autoformer_tiny"](num_classes=10, relative_positions=False)
    assert not isinstance(family.build(family.space.smallest).blocks[0].attn, RelativeAttention)


def test_alphanets_stochastic_depth_is_in_the_last_two_stages_alone():
    family = FAMILIES["alphanet"]()
    model = family.build(family.space.largest, drop_path_rate=0.2)
    rates = [[getattr(block.drop_path, "drop_prob", 0.0) for block in stage] for stage in model.blocks[:7]]
    assert [sorted(set(found)) for found in rates] == [[0.0]] * 5 + [[0.2]] * 2
    assert [len(found) for found in rates] == [2, 5, 6, 6, 8, 8, 2]
