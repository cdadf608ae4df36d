from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet import SearchSpace, Supernet
from supernet.slicing import blocks, centred

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


class Concatenated(nn.Module):
    """Two branches of `a` and `b` channels, what `join` makes of them, and the layers of `behind` on `joined` ones."""

    def __init__(self, a: int, b: int, join, behind) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, a, 1), nn.Conv2d(3, b, 1)
        self.behind = behind(a + b)
        self.join = join

    def forward(self, x):
        return self.behind(self.join(self.a(x), self.b(x)))


class Gate(nn.Module):
    """Squeeze and excitation by one layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(3, width, 1)

    def forward(self, x):
        return x * self.expand(x[:, :3].mean((2, 3), keepdim=True)).sigmoid()


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(1, 2, width))

    def forward(self, x):
        return self.gamma[:, None, None] * x


def cat(a, b):
    return torch.cat([a, b], 1)


def linear(channels: int) -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


COLUMNS = blocks(2, centred, dim=1)
CONCATENATIONS = {  # how, what is behind it, its tensors that would be sliced wrongly and their rules
    "cat": (cat, lambda n: nn.Conv2d(n, 4, 3, padding=1), {"behind.weight": COLUMNS}),
    "through activation and pooling": (
        lambda a, b: F.max_pool2d(F.relu(cat(a, b)), 2),
        lambda n: nn.Conv2d(n, 4, 1),
        {"behind.weight": COLUMNS},
    ),
    "hstack": (lambda a, b: torch.hstack((a, b)), lambda n: nn.Conv2d(n, 4, 1), {"behind.weight": COLUMNS}),
    "stack": (
        lambda a, b: torch.stack([a, b], 1).flatten(1, 2),
        lambda n: nn.Conv2d(n, 4, 1),
        {"behind.weight": COLUMNS},
    ),
    "average and linear": (cat, linear, {"behind.2.weight": blocks(2, dim=1)}),
    "mean and linear": (
        lambda a, b: cat(a, b).mean((2, 3)),
        lambda n: nn.Linear(n, 5),
        {"behind.weight": blocks(2, dim=1)},
    ),
    "channels last": (
        lambda a, b: cat(a, b).permute(0, 2, 3, 1),
        lambda n: nn.Linear(n, 5),
        {"behind.weight": blocks(2, dim=1)},
    ),
    "maps and linear": (
        cat,
        lambda n: nn.Sequential(nn.Flatten(), nn.Linear(36 * n, 5)),
        {"behind.1.weight": blocks(2, dim=1)},
    ),
    "pixels": (
        lambda a, b: F.pixel_unshuffle(cat(a, b), 2),
        lambda n: nn.Conv2d(4 * n, 5, 1),
        {"behind.weight": COLUMNS},
    ),
    "batch norm": (
        cat,
        lambda n: nn.BatchNorm2d(n),
        {f"behind.{name}": blocks(2) for name in ("running_mean", "running_var", "weight", "bias")},
    ),
    "layer norm": (
        lambda a, b: cat(a, b).flatten(2).transpose(1, 2),
        lambda n: nn.LayerNorm(n),
        {"behind.weight": blocks(2), "behind.bias": blocks(2)},
    ),
    "depthwise": (
        cat,
        lambda n: nn.Conv2d(n, n, 3, groups=n),
        {"behind.weight": blocks(2, centred), "behind.bias": blocks(2)},
    ),
    "gate": (cat, Gate, {"behind.expand.weight": blocks(2), "behind.expand.bias": blocks(2)}),
    "scale": (cat, Scale, {"behind.gamma": blocks(2)}),
}


@pytest.mark.parametrize("case", CONCATENATIONS)
def test_what_comes_behind_a_concatenation_is_refused_unless_it_has_rules(case):
    join, behind, rules = CONCATENATIONS[case]

    def build(arch):
        return Concatenated(arch["width"], arch["width"], join, behind)

    for missing in rules:  # any one of them
        others = {name: rule for name, rule in rules.items() if name != missing}
        with pytest.raises(ValueError, match=rf"of '{missing}' are parts that `\w+` puts together, .*slicing rules by"):
            Supernet(SPACE, build, others, example=EXAMPLE)
    net = Supernet(SPACE, build, rules, example=EXAMPLE).eval()
    whole = net.extract(SPACE.largest)
    expected = Concatenated(4, 4, join, behind).eval()
    with torch.no_grad():
        for name, tensor in whole.state_dict().items():
            want = expected.state_dict()[name]
            if name in rules:
                dim = 1 if want.shape[0] == tensor.shape[0] else 0
                halves = tensor.unflatten(dim, (2, -1))
                tensor = halves.narrow(dim + 1, 0, want.shape[dim] // 2).flatten(dim, dim + 1)
            want.copy_(tensor[tuple(slice(size) for size in want.shape)])
    images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net(images, SPACE.smallest), expected(images))


@pytest.mark.parametrize("case", CONCATENATIONS)
def test_a_last_part_that_varies_alone_is_accepted(case):
    join, behind, _ = CONCATENATIONS[case]
    if case != "stack":  # which takes parts of one size
        Supernet(SPACE, lambda arch: Concatenated(4, arch["width"], join, behind), example=EXAMPLE)


def test_concatenations_within_concatenations_are_followed():
    class Layer(nn.Conv2d):
        def forward(self, x):
            return torch.cat([x, super().forward(x).relu()], 1)

    def dense(widths):
        ins = [3 + sum(widths[:i]) for i in range(len(widths) + 1)]
        layers = nn.Sequential(*(Layer(n, width, 1) for n, width in zip(ins, widths)))
        return nn.Sequential(OrderedDict(layers=layers, head=nn.Conv2d(ins[-1], 5, 1)))

    def accept(space, widths):
        return Supernet(SearchSpace(space), lambda arch: dense(widths(**arch)), example=EXAMPLE)

    accept({"depth": (1, 2, 3)}, lambda depth: [4] * depth)
    accept({"last": (4, 8)}, lambda last: [4, 4, last])
    with pytest.raises(ValueError, match=r"the inputs of 'layers\.2\.weight' are parts that `cat` puts together"):
        accept({"first": (4, 8)}, lambda first: [first, 4, 4])


def test_channels_of_flattened_maps_are_leading_columns_unless_the_inner_dimension_varies():
    def build(arch, tokens=False):
        conv = nn.Conv2d(3, arch["width"], 1)
        order = [nn.Flatten(2), Transposed()] if tokens else []
        return nn.Sequential(conv, *order, nn.Flatten(), nn.Linear(36 * arch["width"], 5))

    Supernet(SPACE, build, example=EXAMPLE)
    with pytest.raises(ValueError, match=r"the inputs of '4\.weight' are parts that `flatten` puts together"):
        Supernet(SPACE, lambda arch: build(arch, tokens=True), example=EXAMPLE)


class Transposed(nn.Module):
    def forward(self, x):
        return x.transpose(1, 2)
