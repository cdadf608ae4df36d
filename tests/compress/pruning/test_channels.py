"""Structured pruning against published counts, and against masks."""

import pytest
import torch
from torch import nn

from compress.pruning import prune_channels
from supernet.channels import trace
from supernet.channels.importance import activation_scores, channel_scores, order_channels
from supernet.costs import count_macs, count_parameters

VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
EXAMPLE = torch.empty(1, 3, 32, 32, device="meta")


def vgg16():
    """That of Li et al. for CIFAR-10: convolutions with BatchNorm, and one layer behind them."""
    layers, inputs = [], 3
    for width in VGG16:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            inputs = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)).eval()


def small():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(4, 2),
    ).eval()  # fmt: skip
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    return model


def test_vgg_16_a_has_the_published_reduction():
    """Li et al., ICLR 2017, arXiv 1608.08710: half of the first and of the last six convolutions; 34.2 % of the MACs
    and 64.0 % of the parameters go."""
    with torch.device("meta"):
        model = vgg16()
    convolutions = [name for name, module in model.named_children() if isinstance(module, nn.Conv2d)]
    macs, parameters = count_macs(model, (3, 32, 32)), count_parameters(model)
    pruned = prune_channels(model, EXAMPLE, {convolutions[i]: 0.5 for i in (0, 7, 8, 9, 10, 11, 12)})
    left, left_parameters = count_macs(pruned, (3, 32, 32)), count_parameters(pruned)
    assert (round(macs / 1e6, 1), round(left / 1e6, 1)) == (313.2, 206.1)
    assert 1 - left / macs == pytest.approx(0.342, abs=5e-4)
    assert (round(parameters / 1e6, 2), round(left_parameters / 1e6, 2)) == (14.72, 5.26)
    assert 1 - left_parameters / parameters == pytest.approx(0.64, abs=5e-3)


@pytest.mark.parametrize("importance", ["l1", "geometric_median", "bn_scale"])
def test_what_is_pruned_computes_what_a_mask_would(importance):
    model, images = small(), torch.randn(4, 3, 8, 8)
    (scores,) = (
        s for name, s in channel_scores(model, trace(model, images).channels, importance).items() if name == "0"
    )
    dropped = scores.argsort(descending=True, stable=True)[5:]
    with torch.no_grad():
        for parameter in (
            model[1].weight,
            model[1].bias,
        ):  # 0, so that nothing is lost
            parameter[dropped] = 0
        expected = model(images)
        # by the scores from before they were set to 0, which those by |gamma| go by
        pruned = prune_channels(model, images, {"0": 5}, {"0": scores})
        assert pruned[0].weight.shape[0] == pruned[3].weight.shape[1] == 5
        torch.testing.assert_close(pruned(images), expected)


@pytest.mark.parametrize(
    ("keep", "message"),
    [({"0": 9}, "0 has 8 channels, of which 9 cannot be kept"), ({"6": 1}, "the channels of 6 cannot become fewer")],
)
def test_what_cannot_be_kept_is_refused(keep, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(small(), torch.randn(1, 3, 8, 8), keep)


def test_a_layer_keeps_a_channel_at_least():
    assert prune_channels(small(), torch.randn(1, 3, 8, 8), {"0": 0.01})[0].out_channels == 1


def test_the_channel_of_most_zeros_matters_least():
    """Three channels of two images of two pixels: 4, 1 and 2 of 4 positions are above 0 after the ReLU."""
    model = nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 2, 1)).eval()
    nn.init.dirac_(model[0].weight)
    images = torch.tensor([[[1.0, 2], [-1, 3], [1, -1]], [[1, 1], [-1, 0], [-2, 1]]])[..., None]  # [2, 3, 2, 1]
    found = trace(model, images)
    scores = activation_scores(model, found.channels, [(images[:1],), (images[1:],)])
    torch.testing.assert_close(scores["0"], torch.tensor([1.0, 0.25, 0.5]))
    order_channels(model, found.channels, scores)
    assert model[0].weight.flatten(1).argmax(1).tolist() == [0, 2, 1]


def test_channels_of_several_entries_count_each():
    """A flattened map: two channels of four positions each."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1))
    images = torch.tensor([1.0, 2, 3, -1]).reshape(1, 1, 2, 2)
    scores = activation_scores(model, trace(model, images).channels, [(images,)])
    torch.testing.assert_close(scores["0"], torch.tensor([0.75, 0.25]))
