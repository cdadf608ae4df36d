import pytest
import timm
import torch
from timm.models.metaformer import Scale
from torch import nn

from supernet.channels import narrow, trace


class Residual(nn.Module):
    def __init__(self, chs: int, mid_chs: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(chs, mid_chs, 1)
        self.bn = nn.BatchNorm2d(mid_chs)
        self.depthwise = nn.Conv2d(mid_chs, mid_chs, 3, padding=1, groups=mid_chs)
        self.project = nn.Conv2d(mid_chs, chs, 1)

    def forward(self, x):
        return x + self.project(self.depthwise(torch.relu(self.bn(self.expand(x)))))


def small() -> nn.Sequential:
    blocks = nn.Sequential(nn.Conv2d(3, 4, 3), Residual(4, 6), Residual(4, 8))
    return nn.Sequential(blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def groups_of(model: nn.Module, *shape: int) -> dict[str, set]:
    """The dimensions that each group of channels lies in, as one block."""
    groups = trace(model, torch.empty(shape)).channels
    assert all(group.plain for group in groups)
    return {group.name: {(member.tensor, member.dim) for member in group.members} for group in groups}


def test_channels_that_a_residual_ties_are_found_by_hand():
    groups = groups_of(small(), 1, 3, 8, 8)
    assert groups == {
        "0.0": {
            ("0.0.weight", 0),
            ("0.0.bias", 0),
            *((f"0.{block}.expand.weight", 1) for block in (1, 2)),
            *((f"0.{block}.project.{tensor}", 0) for block in (1, 2) for tensor in ("weight", "bias")),
            ("3.weight", 1),
        },
        **{
            f"0.{block}.expand": {
                *((f"0.{block}.{layer}.{t}", 0) for layer in ("expand", "bn", "depthwise") for t in ("weight", "bias")),
                (f"0.{block}.bn.running_mean", 0),
                (f"0.{block}.bn.running_var", 0),
                (f"0.{block}.project.weight", 1),
            }
            for block in (1, 2)
        },
    }


def test_residual_blocks_at_the_end_of_a_sequence_may_go():
    assert trace(small(), torch.empty(1, 3, 8, 8)).removable == {"0": {"1": 1, "2": 2}}


class PreActivation(nn.Module):
    """The residual surrounds the sequence; none of its layers is a block of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)
        self.branch = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.branch(x)).mean((2, 3))


def test_a_branch_of_a_residual_stays_whole():
    found = trace(PreActivation(), torch.empty(1, 3, 8, 8))
    assert [group.producers for group in found.channels] == [("stem.weight", "branch.2.weight")]
    assert found.removable == {}


def test_layers_are_counted_by_hand():
    layers = {layer.module: layer for layer in trace(small(), torch.empty(1, 3, 8, 8)).layers}
    assert layers["0.0"].macs == 36 * 9 * 3 * 4  # 6 x 6 pixels, 3 x 3 weights
    assert layers["3"].macs == 4 * 5
    assert layers["0.1.depthwise"].macs == 36 * 9 * 6
    assert [
        [group.name for group in layers[name].channels] for name in ("0.0", "0.1.expand", "0.1.depthwise", "3")
    ] == [
        ["0.0"],
        ["0.1.expand", "0.0"],
        ["0.1.expand"],
        ["0.0"],
    ]
    assert len(layers) == 8


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.head(self.conv(x).flatten(1))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.head(torch.cat([self.a(x), self.b(x)], 1)).mean((2, 3))


def test_a_weight_that_is_computed_is_that_of_the_layer():
    class Standardised(nn.Conv2d):
        def forward(self, x):
            return nn.functional.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True))

    model = nn.Sequential(Standardised(3, 4, 3), nn.Conv2d(4, 5, 1))
    found = trace(model, torch.empty(1, 3, 8, 8))
    assert [(group.name, group.producers) for group in found.channels] == [("0", ("0.weight",))]
    assert [layer.macs for layer in found.layers] == [36 * 9 * 3 * 4, 36 * 4 * 5]


class Unknown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        return self.head(torch.cumsum(self.conv(x), 1)).mean((2, 3))


class Written(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        x = self.conv(x)
        y = torch.zeros_like(x)
        y[:] = x
        return self.head(y).mean((2, 3))


@pytest.mark.parametrize(
    "model",
    [
        Written(),
        Concatenated(),
        Unknown(),
    ],
)
def test_what_is_written_concatenated_or_unknown_is_fixed(model):
    assert groups_of(model, 1, 3, 8, 8) == {}


def test_attention_keeps_its_heads():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=5)
    groups = groups_of(model, 1, 3, 32, 32)
    assert list(groups) == ["patch_embed.proj", "blocks.0.mlp.fc1"]
    assert {("cls_token", 2), ("pos_embed", 2), ("blocks.0.attn.qkv.weight", 1), ("head.weight", 1)} <= groups[
        "patch_embed.proj"
    ]


def test_a_narrower_model_is_one_that_was_made_so():
    model = small()
    groups = {group.name: group for group in trace(model, torch.empty(1, 3, 8, 8)).channels}
    weight = model[0][1].expand.weight.detach().clone()
    narrow(model, {groups["0.0"]: 2, groups["0.1.expand"]: 3})
    assert torch.equal(model[0][1].expand.weight, weight[:3, :2])
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    expected = small()
    expected[0][0], expected[0][1], expected[3] = nn.Conv2d(3, 2, 3), Residual(2, 3), nn.Linear(2, 5)
    expected[0][2].expand, expected[0][2].project = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 2, 1)
    assert repr(model) == repr(expected)
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in expected.state_dict().items()}


def test_the_shape_in_which_a_module_sees_its_vector_follows():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Scale(4, use_nchw=True), nn.Conv2d(4, 5, 1))
    (group,) = trace(model, torch.empty(1, 3, 8, 8)).channels
    assert narrow(model, {group: 2})(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 8, 8)
    assert model[1].shape == (2, 1, 1)
