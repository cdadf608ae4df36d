"""Every rule on a small model of its own: what varies, at what cost, and that reordering keeps the function."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet.channels import narrow, trace
from supernet.channels.importance import order_channels
from supernet.costs import count_macs


class Calls(nn.Module):
    """Calls a function between two layers, with the tensors that it needs as parameters."""

    def __init__(self, function, outputs: int = 12, inputs: int = 12, last: nn.Module | None = None, **shapes) -> None:
        super().__init__()
        self.first, self.function = nn.Conv2d(3, outputs, 1), function
        self.last = last or nn.Conv2d(inputs, 5, 1)
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.empty(shape)))

    def forward(self, x):
        return self.last(self.function(self.first(x), self)).flatten(1)


class Standardised(nn.Conv2d):
    def forward(self, x):
        weight = F.batch_norm(self.weight.reshape(1, self.out_channels, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


class Vectors(nn.Module):
    """Channels last."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x.flatten(2).transpose(1, 2)).flatten(1)


def grn(x, m):
    norms = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + torch.addcmul(
        m.bias.view(1, -1, 1, 1), m.scale.view(1, -1, 1, 1), x * norms / norms.mean(1, keepdim=True)
    )


def gated(x, m):
    value, gate = x.chunk(2, dim=1)
    return value * gate.sigmoid()


def plain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 12, 1), *layers, nn.Conv2d(12, 5, 1), nn.Flatten())


ELASTIC = {  # with the numbers of channels that can vary, of a block where they come in blocks
    "GroupNorm": (plain(nn.GroupNorm(3, 12)), [4]),
    "GroupNorm of one": (plain(nn.GroupNorm(1, 12)), [12]),
    "InstanceNorm": (plain(nn.InstanceNorm2d(12, affine=True)), [12]),
    "GRN": (Calls(grn, bias=12, scale=12), [12]),
    "PReLU": (plain(nn.PReLU(12)), [12]),
    "PReLU of one": (plain(nn.PReLU()), [12]),
    "standardised": (
        nn.Sequential(nn.Conv2d(3, 8, 1), Standardised(8, 12, 3), nn.Conv2d(12, 5, 1), nn.Flatten()),
        [8, 12],
    ),
    "transposed": (plain(nn.ConvTranspose2d(12, 12, 2, stride=2), nn.ReLU()), [12, 12]),
    "grouped": (plain(nn.Conv2d(12, 24, 3, groups=3), nn.Conv2d(24, 12, 1)), [4, 8, 12]),
    "multiplied": (plain(nn.Conv2d(12, 24, 3, groups=12), nn.Conv2d(24, 12, 1)), [12, 12]),
    "gate": (Calls(gated, outputs=24), [12]),
    "glu": (nn.Sequential(nn.Conv2d(3, 24, 1), nn.GLU(1), nn.Conv2d(12, 5, 1), nn.Flatten()), [12]),
    "flattened": (nn.Sequential(nn.Conv2d(3, 12, 1), nn.Flatten(), nn.Linear(12 * 16, 5)), [12]),
    "unshuffled": (Calls(lambda x, m: F.pixel_unshuffle(x, 2), inputs=48), [12]),
    "shuffled": (Calls(lambda x, m: F.pixel_shuffle(F.pixel_unshuffle(x, 2), 2)), [12]),
    "unfolded": (
        Calls(lambda x, m: F.unfold(x, 2), last=nn.Conv1d(48, 5, 1)),
        [12],
    ),
    "repeated": (Calls(lambda x, m: torch.cat([x, x.relu()], 1), inputs=24), [12]),
    "softmax": (Calls(lambda x, m: x.softmax(1)), [12]),
    "einsum": (Calls(lambda x, m: torch.einsum("bchw,dc->bdhw", x, m.weight), weight=(12, 12)), [12]),
    "rows": (Vectors(nn.Linear(3, 12), nn.LayerNorm(12), nn.ReLU(), nn.Linear(12, 5)), [12]),
    "position": (Calls(lambda x, m: x + m.places, places=(1, 12, 4, 4)), [12]),
    "table": (Calls(lambda x, m: x + m.table[torch.arange(4)].T[None, :, :, None], table=(7, 12)), [12]),
    "channels as rows": (Calls(lambda x, m: F.linear(x, m.mixing), mixing=(4, 4)), [12]),
    "products": (Calls(lambda x, m: x @ x.transpose(2, 3) @ x), [12]),
}


def random_vectors(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.uniform_(-1, 1, generator=generator)
    return model.double().eval()


@pytest.mark.parametrize("name", ELASTIC)
def test_what_varies_is_reordered_narrowed_and_counted(name):
    model, sizes = ELASTIC[name]
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    expected = random_vectors(model)(x)
    found = trace(model, x)
    assert [group.size for group in found.channels] == sizes
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    order_channels(model, found.channels, "l1")
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(model(x), expected)
    halves = {group: group.size // 2 for group in found.channels}
    expected_macs = sum(
        math.prod([layer.macs, *(halves[group] / group.size for group in layer.channels)]) for layer in found.layers
    )
    assert narrow(model, halves)(x).shape == expected.shape
    assert count_macs(model, (3, 4, 4)) == expected_macs


FIXED = {
    "neighbours": Calls(lambda x, m: x * F.conv1d(x.mean((2, 3))[:, None], m.w, padding=1).mT[..., None], w=(1, 1, 3)),
    "constant": Calls(lambda x, m: x * torch.linspace(0, 1, 12, device=x.device)[:, None, None]),
    "part": Calls(lambda x, m: x[:, :6], inputs=6),
    "uneven": Calls(lambda x, m: x.split([4, 8], 1)[1], inputs=8),
    "rolled": Calls(lambda x, m: x.roll(1, 1)),
    "flipped": Calls(lambda x, m: x.flip(1)),
    "padded": Calls(lambda x, m: F.pad(x, (0, 0, 0, 0, 1, 1)), inputs=14),
    "iterated": Calls(lambda x, m: torch.stack([*x.transpose(0, 1)], 1)),
    "heads": Calls(lambda x, m: x.reshape(2 if len(x) == 2 else 1, 3, 4, 4, 4).sum(1), inputs=4),
}


@pytest.mark.parametrize("name", FIXED)
def test_channels_whose_order_matters_are_fixed(name):
    found = trace(FIXED[name], torch.empty(1, 3, 4, 4))
    assert found.channels == ()
    assert list(found.fixed) == ["first"]


def test_constants_outside_the_state_dict_keep_their_order():
    model = Calls(lambda x, m: x * m.constant[:, None, None])
    model.register_buffer("constant", torch.linspace(0, 1, 12), persistent=False)
    assert trace(model, torch.empty(1, 3, 4, 4)).channels == ()
