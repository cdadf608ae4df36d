import copy
from collections import OrderedDict
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from supernet.costs import count_macs, count_parameters
from supernet.families import from_model, from_timm


def pretrained(name: str, num_classes: int = 10, **options) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=num_classes, **options).eval()


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "importance"),
    [
        ("mobilenetv3_small_050", "l1"),
        pytest.param("resnet18", "geometric_median", marks=pytest.mark.exhaustive),
        ("convnext_atto", "l1"),
        ("mobilenetv4_conv_small_035", "bn_scale"),
        pytest.param("mobilenetv3_small_050", "geometric_median", marks=pytest.mark.exhaustive),
        pytest.param("resnet18", "bn_scale", marks=pytest.mark.exhaustive),
        pytest.param("convnext_atto", "geometric_median", marks=pytest.mark.exhaustive),
        pytest.param("mobilenetv4_conv_small_035", "l1", marks=pytest.mark.exhaustive),
    ],
)
def test_the_largest_subnets_logits_equal_the_pretrained_models(tmp_path, name, importance):
    model = pretrained(name)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    family = from_timm(name, num_classes=10, pretrained=tmp_path / "weights.pth", importance=importance, input_size=32)
    net = family.supernet().eval()
    x = images()
    assert (net(x, family.space.largest) - model(x)).abs().max() < 1e-5
    assert family.build(family.space.largest).state_dict().keys() == model.state_dict().keys()


def test_a_local_directory_is_a_source_of_weights(tmp_path):
    model = pretrained("resnet18", channels=(16, 32, 64, 128))
    save_for_hf(model, tmp_path, model_args={"channels": (16, 32, 64, 128)}, safe_serialization=True)
    family = from_timm(f"local-dir:{tmp_path}", pretrained=True, input_size=32)
    x = images()
    assert family.num_classes == 10
    assert (family.supernet().eval()(x, family.space.largest) - model(x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "name", ["efficientnet_b0", "mobilenetv2_035", "mobilenetv4_conv_small", "resnet50", "seresnet18", "regnety_002"]
)
def test_other_families_of_timm_are_elastic_too(name):
    family = from_timm(name, num_classes=10, input_size=64)
    for arch in (family.space.largest, family.space.smallest):
        with torch.device("meta"):
            model = family.build(arch).eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            assert model(torch.empty(1, 3, 64, 64, device="meta")).shape == (1, 10)
        assert counter.get_total_flops() == 2 * family.macs(arch)
        assert sum(p.numel() for p in model.parameters()) == family.parameters(arch)
    assert 5 * family.macs(family.space.smallest) < 3 * family.macs(family.space.largest)


@pytest.mark.exhaustive
def test_swin_transformers_are_elastic_in_width_and_depth():
    family = from_timm("swin_tiny_patch4_window7_224", num_classes=5)
    values = {name: choice.values for name, choice in family.space.choices.items()}
    assert values["layers.2.blocks.depth"] == (3, 5, 6)
    assert values["patch_embed.proj.width"] == (48, 72, 96)
    assert values["layers.3.downsample.reduction.width"] == (384, 576, 768)
    assert values["layers.0.blocks.0.mlp.fc1.width"] == (192, 288, 384)
    assert 5 * family.macs(family.space.smallest) < family.macs(family.space.largest)
    net, arch, x = family.supernet().eval(), family.space.smallest, torch.randn(1, 3, 224, 224)
    assert torch.equal(net(x, arch), net.extract(arch)(x))


def test_weights_are_loaded_when_they_are_needed(tmp_path):
    family = from_timm("resnet10t", pretrained=tmp_path / "not_there.pth", num_classes=10, input_size=32)
    assert family.build(family.space.smallest)(images()).shape == (2, 10)
    family.supernet(pretrained=False)
    with pytest.raises(ValueError, match=r"no file of weights '.*not_there\.pth'"):
        family.supernet()


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"nonsense")
    with pytest.raises(ValueError, match=r"cannot read the weights in '.*weights\.pth': .+") as error:
        from_timm("resnet10t", pretrained=path, num_classes=10, input_size=32).supernet()
    assert len(str(error.value).splitlines()) == 1
    torch.save(timm.create_model("resnet18", num_classes=10).state_dict(), path)
    with pytest.raises(ValueError, match=r"weights\.pth': .* size mismatch for layer2\.0\.downsample\.1\.weight"):
        from_timm("resnet10t", pretrained=path, num_classes=10, input_size=32).supernet()
    with pytest.raises(ValueError, match=r"cannot read the configuration of 'local-dir:.*nowhere'"):
        from_timm(f"local-dir:{tmp_path / 'nowhere'}")


def test_without_weights_the_seed_decides():
    family = from_timm("resnet10t", num_classes=10, input_size=32)
    first, again, other = (family.supernet(seed).get_parameter("fc.weight") for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_widths_and_depths_are_fractions_of_the_models():
    space = from_timm("resnet18", (0.25, 1.0), (0.5, 1.0), input_size=32).space
    assert space.choices["layer2.depth"].values == (1, 2)
    assert space.choices["layer2.0.conv1.width"].values == (32, 128)
    assert space.choices["layer2.1.conv1.width"].when == {"layer2.depth": (2,)}
    assert space.choices["layer2.0.conv2.width"].when == {}  # of the residual stream
    assert "fc.width" not in space.choices


def test_subnets_are_models_of_timms_own_class():
    family = from_timm("resnet18", num_classes=10, input_size=32)
    model = family.supernet().eval().extract(family.space.smallest)
    assert type(model) is timm.models.ResNet
    assert len(model.layer1) == 1
    assert model.layer1[0].conv1.in_channels == 32
    assert model(images()).shape == (2, 10)


def test_pruning_channels_that_do_nothing_changes_nothing():
    model = pretrained("resnet18")
    inner = [(stage, block) for stage in (1, 2, 3, 4) for block in (0, 1)]
    with torch.no_grad():
        for stage, block in inner:  # of the channels inside a block, every second one is zero
            model.get_parameter(f"layer{stage}.{block}.conv1.weight")[::2] = 0
    expected = model(images())
    family = from_model(
        lambda: timm.create_model("resnet18", num_classes=10), images(), (0.5, 1.0), (1.0,), pretrained=lambda: model
    )
    pruned = {f"layer{stage}.{block}.conv1.width": 32 * 2 ** (stage - 1) for stage, block in inner}
    arch = family.space.validate({**family.space.largest, **pruned})
    assert (family.supernet().eval()(images(), arch) - expected).abs().max() < 1e-5
    assert family.macs(arch) < 0.6 * family.macs(family.space.largest)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3))
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def test_a_model_of_ones_own_becomes_elastic():
    family = from_model(Own, torch.empty(1, 1, 8, 8))
    assert {name: choice.values for name, choice in family.space.choices.items()} == {
        "features.0.width": (4, 6, 8),
        "features.3.width": (8, 12, 16),
    }
    arch = family.space.smallest
    assert family.parameters(arch) == (9 * 4 + 4) + 2 * 4 + (9 * 4 * 8 + 8) + (8 * 4 + 4)
    assert family.macs(arch) == 64 * 9 * 4 + 36 * 9 * 4 * 8 + 8 * 4
    assert (family.num_classes, family.in_chans, family.input_size) == (4, 1, 8)
    net = family.supernet().eval()
    x = torch.randn(2, 1, 8, 8)
    for arch in (family.space.sample(np.random.default_rng(seed)) for seed in range(3)):
        assert torch.equal(net(x, arch), net.extract(arch)(x))


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"timm has no model 'resnet19'; similar ones: .*resnet18"):
        from_timm("resnet19")
    with pytest.raises(ValueError, match=r"fractions of the width rise to 1, .*, not \(0\.5, 0\.75\)"):
        from_timm("resnet18", width=(0.5, 0.75))
    with pytest.raises(
        ValueError, match=r"Sequential has no width or depth that could vary \(no layer is followed\); write a builder"
    ):
        from_model(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), torch.empty(1, 3, 2, 2))
    family = from_model(Own, torch.empty(1, 1, 8, 8))
    with pytest.raises(ValueError, match="does not take drop_path_rate; set them to 0"):
        family.build(family.space.largest, drop_path_rate=0.1)


class Named(nn.Module):
    """Calls its blocks in three ways, two of which need all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(1, 8, 1), nn.Linear(8, 4)
        self.by_index, self.looped, self.by_name = (nn.ModuleList(Block() for _ in range(3)) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for index in range(3):
            x = self.by_index[index](x)
        for block in self.looped:
            x = block(x)
        for name in "012":
            x = getattr(self.by_name, name)(x)
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return x + torch.relu(self.conv(x))


def test_a_depth_that_does_not_run_is_left_out():
    family = from_model(Named, torch.empty(1, 1, 8, 8))
    assert {name: choice.values for name, choice in family.space.choices.items()} == {
        "looped.depth": (2, 3),
        "stem.width": (4, 6, 8),
    }
    arch = family.space.smallest
    assert family.macs(arch) == 64 * 4 + 8 * 64 * 4 * 4 + 4 * 4
    net, x = family.supernet().eval(), torch.randn(2, 1, 8, 8)
    assert torch.equal(net(x, arch), net.extract(arch)(x))


class Stubborn(nn.Module):
    """One of its layers has to have the width that it has, which no rule can know."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mid, self.head = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.mid(self.stem(x))
        if x.shape[1] != 16:
            raise KeyError(x.shape[1])
        return self.head(x).mean((2, 3))


def test_channels_that_cannot_vary_fix_themselves_alone():
    assert list(from_model(Stubborn, torch.empty(1, 1, 8, 8)).space.choices) == ["stem.width"]


def test_fixed_widths_do_not_forbid_depth():
    def create():
        return nn.Sequential(nn.Conv2d(1, 8, 1), Cumulative(), nn.Sequential(*(Block() for _ in range(4))), Pooled())

    assert from_model(create, torch.empty(1, 1, 8, 8)).space.choices["2.depth"].values == (2, 3, 4)


class Cumulative(nn.Module):
    def forward(self, x):
        return x.cumsum(1)


class Pooled(nn.Module):
    def forward(self, x):
        return x.mean((2, 3))


def test_a_space_with_little_to_choose_is_told_with_what_is_fixed(caplog):
    def create():
        layers = [nn.Conv2d(1, 64, 3), Cumulative(), nn.Conv2d(64, 64, 3), Cumulative(), nn.Conv2d(64, 8, 1)]
        return nn.Sequential(*layers, nn.Conv2d(8, 4, 1), Pooled())

    from_model(create, torch.empty(1, 1, 8, 8))
    assert [record.getMessage() for record in caplog.records] == [
        "the smallest subnet of this Sequential keeps 99% of the MACs: fixed are 0 and 1 more by cumsum"
    ]
    caplog.clear()
    from_model(Own, torch.empty(1, 1, 8, 8))
    assert not caplog.records


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"a family's images are square, \[B, C, H, H\], not \[1, 1, 8, 12\]"):
        from_model(Own, torch.empty(1, 1, 8, 12))


class Unfollowed(nn.Module):
    """Layers without a rule, which cost what they cost at any width of the others."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.hidden = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 16, 1)
        self.back, self.up = nn.Conv2d(16, 8, 1), nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.lstm, self.attention = nn.LSTM(8, 6, batch_first=True), nn.MultiheadAttention(6, 2, batch_first=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = self.up(self.back(self.hidden(self.stem(x).cumsum(1))).cumsum(1)).cumsum(1)
        x, _ = self.lstm(x.flatten(2).mT)
        x = torch.einsum("bnc,bmc->bnm", x, x) @ x
        return self.head(self.attention(x, x, x)[0].mean(1))


def test_what_is_not_followed_is_counted_as_well():
    family = from_model(Unfollowed, torch.empty(1, 1, 4, 4))
    assert list(family.space.choices) == ["hidden.width"]
    lstm, attention = 4 * 6 * (8 + 6), 4 * 6 * 6
    for arch, width in ((family.space.largest, 16), (family.space.smallest, 8)):
        outside = 16 * 8 + 64 * 8 * 8 + 64 * lstm + 64 * attention + 2 * 64 * 64 * 6 + 2 * 64 * 64 * 6 + 6 * 4
        assert family.macs(arch) == outside + 16 * 2 * 8 * width
        assert family.macs(arch) == count_macs(family.build(arch), (1, 4, 4))


class Rigid(Own):
    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)) + torch.eye(16)[0].to(x.device))


def test_a_forward_that_needs_its_widths_keeps_them():
    assert "features.3.width" not in from_model(Rigid, torch.empty(1, 1, 8, 8)).space.choices


class Borrowed(nn.Module):
    """Cuts what one layer puts out into as many channels as another's, which runs whatever their numbers are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.other, self.mid, self.head = (nn.Conv2d(a, b, 1) for a, b in ((1, 8), (8, 8), (8, 8), (8, 4)))

    def forward(self, x):
        x = self.stem(x)
        y = self.mid(x).reshape(len(x), x.shape[1], -1)
        return self.head(self.other(x)).mean((2, 3)) + (y.mT @ y).amax((1, 2))[:, None]


def test_widths_that_would_cut_the_channels_of_others_are_left_out():
    family = from_model(Borrowed, torch.empty(1, 1, 8, 8))
    assert list(family.space.choices) == ["other.width"]


def test_groups_whose_inputs_alone_vary_are_parts():
    """As of a convolution whose outputs are fixed."""

    def create():
        layers = nn.Conv2d(1, 16, 1), nn.Conv2d(16, 8, 3, groups=2), Cumulative(), nn.Conv2d(8, 4, 1)
        return nn.Sequential(*layers, Pooled())

    family = from_model(create, torch.empty(1, 1, 8, 8))
    assert {name: choice.values for name, choice in family.space.choices.items()} == {"0.width": (4, 6, 8)}
    net = family.supernet().eval()
    part, x = net.extract(family.space.smallest), torch.randn(2, 1, 8, 8)
    leading = [0, 1, 2, 3, 8, 9, 10, 11]  # of each of the two blocks that the groups take in
    assert torch.equal(part[0].weight, net.get_parameter("0.weight")[leading])
    assert torch.equal(part[1].weight, net.get_parameter("1.weight")[:, :4])
    assert torch.equal(net(x, family.space.smallest), part(x))


def test_lists_of_blocks_within_blocks_that_have_names_become_shorter_with_them():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            return x + self.conv(x)

    def create():
        inner = OrderedDict(first=Residual(), second=Residual())
        stage = nn.Sequential(OrderedDict(down=nn.Conv2d(3, 8, 1), one=Residual(), blocks=nn.Sequential(inner)))
        return nn.Sequential(stage, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))

    family = from_model(create, torch.empty(1, 3, 8, 8))
    assert dict(family.space.choices["0.blocks.depth"].when) == {"0.depth": (3,)}
    assert list(family.build(family.space.smallest)[0]._modules) == ["down", "one"]
    assert family.macs(family.space.smallest) == count_macs(family.build(family.space.smallest), (3, 8, 8))


def test_tied_layers_become_narrower_together():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 1)
            self.first = nn.Conv2d(32, 64, 1)
            self.second = nn.Conv2d(64, 64, 3, padding=1)
            self.third = nn.Conv2d(64, 64, 3, padding=1)
            self.third.weight = self.second.weight
            self.head = nn.Linear(64, 5)

        def forward(self, x):
            x = self.third(self.second(self.first(self.stem(x)).relu()).relu())
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    pretrained = Tied()
    family = from_model(Tied, torch.empty(1, 3, 8, 8), pretrained=lambda: copy.deepcopy(pretrained))
    net, images = family.supernet().eval(), torch.randn(2, 3, 8, 8)
    assert "third.weight" not in net.state_dict()
    logits = net(images, family.space.largest)
    assert (logits - pretrained(images)).abs().max() < 1e-5 * logits.abs().max()
    assert not torch.equal(net.second.weight, pretrained.second.weight)  # in the order of importance
    model = net.extract(family.space.smallest)
    assert model.third.weight is model.second.weight
    assert model.third.weight.shape == (32, 32, 3, 3)
    assert (model.third.in_channels, model.third.out_channels) == (32, 32)
    assert torch.equal(model(images), net(images, family.space.smallest))
    assert family.parameters(family.space.smallest) == count_parameters(model)
    assert family.macs(family.space.smallest) == count_macs(model, (3, 8, 8))


def test_channels_are_sorted_by_activations_on_the_data():
    """Channels of which some are never above 0, one always and one half of the time."""
    layers = nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8, 3)[..., None, None] * 1e-3)
        model[0].bias.fill_(-1.0)
        model[0].bias[5], model[0].bias[2] = 1.0, 0.0
    images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    data = SimpleNamespace(calibration_batches=lambda size, count, seed: [(images[:count], None)])
    create = partial(copy.deepcopy, model)
    family = from_model(create, images[:1], (0.5, 1.0), pretrained=create, importance="activations")
    net = family.supernet(data=data)
    assert net.state_dict()["0.bias"].tolist() == [1.0, 0.0] + 6 * [-1.0]
    torch.testing.assert_close(net(images, family.space.largest), model(images))
    with pytest.raises(ValueError, match="sorted by training examples: say whose"):
        family.supernet()
    assert family.supernet(pretrained=False) is not None
