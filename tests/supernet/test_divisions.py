import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet import SearchSpace, Supernet
from supernet.slicing import blocks

SPACE = SearchSpace({"width": (4, 8)})
EXAMPLE = torch.zeros(1, 3, 6, 6)


class Divided(nn.Module):
    """A layer of `parts * width` outputs, what `divide` makes of them, and a layer that takes `width` of these."""

    def __init__(self, width: int, parts: int, divide, kind: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, parts * width, 1) if kind == "conv" else nn.Linear(3, parts * width)
        self.norm = nn.BatchNorm2d(parts * width) if kind == "conv" else nn.LayerNorm(parts * width)
        self.head = nn.Linear(width, 5)
        self.divide, self.width, self.kind = divide, width, kind

    def forward(self, x):
        x = self.norm(self.first(x)) if self.kind == "conv" else self.norm(self.first(x.flatten(2).transpose(1, 2)))
        y = self.divide(x.relu(), self.width)
        return self.head(y.mean((2, 3)) if self.kind == "conv" else y.mean(1))


def gated(x, dim):
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


DIVIDED = {
    "glu of channels": (2, lambda x, width: F.glu(x, 1), "conv"),
    "glu of tokens": (2, lambda x, width: F.glu(x), "linear"),
    "chunk": (2, lambda x, width: gated(x, 1), "conv"),
    "chunk of tokens": (2, lambda x, width: gated(x, -1), "linear"),
    "split": (3, lambda x, width: sum(torch.split(x, width, dim=-1)), "linear"),
    "split, channels last": (
        2,
        lambda x, width: sum(x.permute(0, 2, 3, 1).split(width, -1)).permute(0, 3, 1, 2),
        "conv",
    ),
    "slices": (2, lambda x, width: x[:, :width] * x[:, width:], "conv"),
    "slices of the last": (2, lambda x, width: x[..., :width] * x[..., width:], "linear"),
    "narrow": (2, lambda x, width: x.narrow(1, 0, width) + x.narrow(1, width, width), "conv"),
    "reshape": (3, lambda x, width: x.reshape(*x.shape[:2], 3, width).sum(2), "linear"),
    "unflatten": (2, lambda x, width: x.unflatten(1, (2, width)).sum(1), "conv"),
}


@pytest.mark.parametrize("case", DIVIDED)
def test_a_divided_layer_is_refused_unless_it_has_rules(case):
    parts, divide, kind = DIVIDED[case]

    def build(arch):
        return Divided(arch["width"], parts, divide, kind)

    with pytest.raises(
        ValueError, match=r"the outputs of 'first\.weight' are divided by `\w+`, .*slicing rules by name"
    ):
        Supernet(SPACE, build, example=EXAMPLE)
    rules = {"first.*": blocks(parts), "norm.*": blocks(parts)}
    if kind == "conv":
        rules = {"norm.num_batches_tracked": lambda tensor, shape: tensor} | rules
    net = Supernet(SPACE, build, rules, example=EXAMPLE).eval()
    whole, part = net.extract(SPACE.largest), net.extract(SPACE.smallest)
    with torch.no_grad():  # the rows of the larger one that the smaller one has not are those of channels 4 to 7
        expected = Divided(4, parts, divide, kind).eval()
        for name in ("first.weight", "first.bias", "norm.weight", "norm.bias"):
            rows = whole.get_parameter(name).unflatten(0, (parts, 8))[:, :4].flatten(0, 1)
            expected.get_parameter(name).copy_(rows)
        expected.head.load_state_dict(part.head.state_dict())
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images, SPACE.smallest), expected(images))


@pytest.mark.parametrize(
    "divide",
    [
        lambda x, width: x.view(*x.shape, 1).flatten(2),  # nothing is divided
        lambda x, width: x.unflatten(2, (-1, 2)).sum(3).repeat(1, 1, 2),  # heads of two channels, fewer of them
        lambda x, width: torch.cat([x[..., :2], x[..., 2:]], -1),  # the first block is as large as before
        lambda x, width: x.chunk(2, 1)[0],  # along the tokens
    ],
)
def test_leading_rows_of_blocks_that_begin_where_they_did_are_a_smaller_layer(divide):
    Supernet(SPACE, lambda arch: Divided(arch["width"], 1, divide, "linear"), example=EXAMPLE)
