"""Sources and transforms, each against a module written by hand."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.costs import count_parameters
from supernet.families import Family
from supernet.supernet import rule_name
from supernet.training.loop.average import MovingAverage
from supernet.views import View, tied, tied_names

# B batch, C channels, K classes

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class RoundToBits:
    """The nearest of 2^bits - 1 equally spaced values, with a straight-through gradient."""

    bits: int

    def __call__(self, weight):
        step = weight.detach().abs().amax() / (2 ** (self.bits - 1) - 1)
        return weight + ((weight / step).round() * step - weight).detach()


@dataclass(frozen=True)
class Mask:
    """Zero but for the leading part of the rows."""

    part: float

    def __call__(self, weight):
        kept = torch.zeros_like(weight)
        kept[: int(len(weight) * self.part)] = 1
        return weight * kept


class TiedEnds(nn.Module):
    """The weight of the first layer is that of the last, as in language models with tied embeddings."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width, bias=False)
        self.mix = nn.Linear(width, width)
        self.head = nn.Linear(8, width, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.mix(self.embed(x)).relu() @ self.head.weight


WIDTHS = SearchSpace({"width": (2, 4)})


def tied_ends(arch):
    return TiedEnds(arch["width"])


class Repeated(nn.Module):
    """Blocks one after the other."""

    def __init__(self, depth: int, width: int, bits: int = 8) -> None:
        super().__init__()
        self.stem = nn.Linear(8, width)
        self.blocks = nn.Sequential(*(nn.Linear(width, width) for _ in range(depth)))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).relu())


DEEP = SearchSpace({"depth": (1, 2, 3), "width": (4, 8), "blocks.bits": (2, 4, 8), "sparse": (False, True)})


def repeated(arch):
    return Repeated(arch["depth"], arch["width"])


def shared_blocks(arch):
    """Blocks with one weight, rounded; every other block with the leading half of its rows alone if `sparse`."""
    views = {}
    for index in range(arch["depth"]):
        transform = Mask(0.5) if arch["sparse"] and index % 2 else RoundToBits(arch["blocks.bits"])
        views[f"blocks.{index}.weight"] = View("blocks.0.weight", transform)
    return views


@pytest.fixture(scope="module")
def deep():
    return Supernet(DEEP, repeated, views=shared_blocks)


def arch_of(depth=3, width=8, bits=8, sparse=False):
    return DEEP.validate({"depth": depth, "width": width, "blocks.bits": bits, "sparse": sparse})


def all_archs():
    return [arch_of(d, w, b, s) for d in (1, 2, 3) for w in (4, 8) for b in (2, 4, 8) for s in (False, True)]


# ties


def test_a_tied_tensor_is_stored_once_under_its_first_name():
    net = Supernet(WIDTHS, tied_ends)
    assert list(net.state_dict()) == ["embed.weight", "mix.weight", "mix.bias"]
    assert count_parameters(net) == 4 * 8 + 4 * 4 + 4


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("accumulate", [False, True])
def test_gradients_of_a_tied_tensor_are_those_of_the_module_written_by_hand(width, accumulate):
    net = Supernet(WIDTHS, tied_ends)
    embed, mix, bias = (tensor.clone().requires_grad_() for tensor in net.state_dict().values())
    expected = ((X @ embed[:width].T) @ mix[:width, :width].T + bias[:width]).relu() @ embed[:width]
    expected.square().sum().backward()
    output = net(X, {"width": width}, accumulate=accumulate)
    output.square().sum().backward()
    torch.testing.assert_close(output, expected)
    for own, by_hand in zip(net.parameters(), (embed, mix, bias)):
        torch.testing.assert_close(own.grad, by_hand.grad)


@pytest.mark.parametrize("width", [2, 4])
def test_an_extracted_module_is_tied_again_and_has_the_same_gradients_bit_for_bit(width):
    net = Supernet(WIDTHS, tied_ends)
    model = net.extract({"width": width})
    assert model.head.weight is model.embed.weight
    assert count_parameters(model) == 8 * width + width * width + width
    output, own = net(X, {"width": width}), model(X)
    assert torch.equal(output, own)
    output.square().sum().backward()
    own.square().sum().backward()
    assert torch.equal(net.embed.weight.grad[:width], model.embed.weight.grad)
    assert not net.embed.weight.grad[width:].any()


def test_weights_of_a_tied_module_load_and_other_ones_do_not():
    net, plain = Supernet(WIDTHS, tied_ends), TiedEnds(4)
    weights = plain.state_dict()
    assert "head.weight" in weights
    net.load_state_dict(weights)
    assert torch.equal(net(X, WIDTHS.largest), plain(X))
    net.load_state_dict(net.state_dict())
    net.load_state_dict({name: tensor for name, tensor in weights.items() if name != "embed.weight"})
    assert torch.equal(net(X, WIDTHS.largest), plain(X))
    with pytest.raises(ValueError, match=r"weights of 'head.weight' are no part of 'embed.weight'"):
        net.load_state_dict(weights | {"head.weight": weights["head.weight"] + 1})


def test_copies_pickles_and_averages_keep_a_tied_tensor_one():
    net = Supernet(WIDTHS, tied_ends)
    average = MovingAverage(net, decay=0.5)
    before = net.embed.weight.detach().clone()
    with torch.no_grad():
        net.embed.weight.zero_()
    average.update(net, 2)
    assert torch.equal(average.module.embed.weight, before / 2)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), average.module):
        assert list(twin.state_dict()) == list(net.state_dict())
        assert twin.extract(WIDTHS.smallest).head.weight.shape == (2, 8)


def test_a_tied_tensor_does_not_decay_if_one_of_its_names_does_not():
    class Model(TiedEnds):
        def no_weight_decay(self):
            return {"head.weight"}

    net = Supernet(WIDTHS, lambda arch: Model(arch["width"]))
    assert net.no_weight_decay() == {"embed.weight"}
    groups = create_optimizer_v2(net, "sgd", 0.1, 1e-4).param_groups
    assert {id(net.embed.weight), id(net.mix.bias)} == {
        id(p) for group in groups if not group["weight_decay"] for p in group["params"]
    }


def test_a_choice_may_tie_a_tensor_or_not():
    def build(arch):
        model = TiedEnds(arch["width"])
        if arch["head"] == "own":
            model.head.weight = nn.Parameter(torch.zeros(arch["width"], 8))
        return model

    space = SearchSpace({"head": ("tied", "own"), "width": (2, 4)})
    net = Supernet(space, build)
    assert set(net.state_dict()) == {"embed.weight", "mix.weight", "mix.bias", "head.weight"}
    own, one = (net.extract({"head": head, "width": 2}) for head in ("own", "tied"))
    assert not own.head.weight.any()
    assert one.head.weight is one.embed.weight


# sources


def by_hand(net, arch, x):
    """What `repeated` computes on `shared_blocks`, and leaves for the shared tensors, written out."""
    leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in net.state_dict().items()}
    w, bits = arch["width"], RoundToBits(arch["blocks.bits"])
    x = x @ leaves["stem.weight"][:w].T + leaves["stem.bias"][:w]
    for index in range(arch["depth"]):
        weight = leaves["blocks.0.weight"][:w, :w]
        weight = Mask(0.5)(weight) if arch["sparse"] and index % 2 else bits(weight)
        x = x @ weight.T + leaves[f"blocks.{index}.bias"][:w]
    return x.relu() @ leaves["head.weight"][:, :w].T + leaves["head.bias"], leaves


def test_layers_with_one_source_are_stored_once(deep):
    biases = [f"blocks.{index}.bias" for index in range(3)]
    assert sorted(deep.state_dict()) == sorted(
        ["stem.weight", "stem.bias", "blocks.0.weight", *biases, "head.weight", "head.bias"]
    )
    assert count_parameters(deep) == 8 * 8 + 8 + 8 * 8 + 3 * 8 + 3 * 8 + 3


@pytest.mark.parametrize("accumulate", [False, True])
def test_sources_slices_and_transforms_compose_as_written_by_hand(deep, accumulate):
    for arch in all_archs():
        deep.zero_grad()
        expected, leaves = by_hand(deep, arch, X)
        expected.square().sum().backward()
        output = deep(X, arch, accumulate=accumulate)
        output.square().sum().backward()
        torch.testing.assert_close(output, expected)
        for name, parameter in deep.named_parameters():
            if leaves[name].grad is None:
                assert parameter.grad is None
            else:
                torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-4, atol=1e-4)


def test_an_extracted_module_holds_transformed_weights_and_one_for_equal_views(deep):
    for arch in all_archs():
        model = deep.extract(arch)
        assert torch.equal(deep(X, arch), model(X))
        weights = [block.weight for block in model.blocks]
        assert all(weight is weights[0] for weight in weights[::2])
        assert all((weight is weights[0]) != arch["sparse"] for weight in weights[1::2])
        part = deep.get_parameter("blocks.0.weight")[: arch["width"], : arch["width"]]
        assert torch.equal(weights[0], RoundToBits(arch["blocks.bits"])(part))
        assert len(weights[0].unique()) < 2 ** arch["blocks.bits"]
        assert count_parameters(model) == sum(p.numel() for p in {id(p): p for p in model.parameters()}.values())


def test_a_transform_is_not_left_out_where_the_tensor_is_whole(deep):
    coarse, fine = (deep(X, arch_of(bits=bits)) for bits in (2, 8))
    assert not torch.equal(coarse, fine)


def test_gradients_of_an_extracted_module_are_those_of_the_supernet_without_a_transform():
    net = Supernet(DEEP, repeated, views=one_source)
    for arch in (DEEP.largest, arch_of(width=4), arch_of(depth=2)):
        net.zero_grad()
        model, width = net.extract(arch), arch["width"]
        assert torch.equal(net(X, arch), model(X))
        net(X, arch).square().sum().backward()
        model(X).square().sum().backward()
        assert torch.equal(net.get_parameter("blocks.0.weight").grad[:width, :width], model.blocks[0].weight.grad)


def one_source(arch):
    return {f"blocks.{index}.weight": View("blocks.0.weight") for index in range(arch["depth"])}


def test_layers_of_one_source_may_be_differently_large():
    """The second block is half as wide as the first, and has the leading part of its weight."""

    def build(arch):
        return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, arch["width"]))

    net = Supernet(SearchSpace({"width": (2, 4)}), build, views=lambda arch: {"2.weight": View("0.weight")})
    assert net.state_dict()["0.weight"].shape == (8, 8)
    assert "2.weight" not in net.state_dict()
    model = net.extract({"width": 4})
    assert torch.equal(model[2].weight, net.get_parameter("0.weight")[:4])
    assert model[2].weight is not model[0].weight
    net(X, {"width": 4}, accumulate=True).sum().backward()
    model(X).sum().backward()
    expected = model[0].weight.grad.clone()
    expected[:4] += model[2].weight.grad
    torch.testing.assert_close(net.get_parameter("0.weight").grad, expected)
    net.load_state_dict(model.state_dict())


def test_a_source_may_be_the_name_of_no_module():
    def views(arch):
        return {f"blocks.{index}.weight": View("bank") for index in range(arch["depth"])}

    net = Supernet(DEEP, repeated, views=views)
    assert "bank" in net.state_dict()
    assert not any(name.startswith("blocks") and name.endswith("weight") for name in net.state_dict())
    assert torch.equal(net(X, DEEP.largest), net.extract(DEEP.largest)(X))


def test_a_rule_by_the_name_of_a_source_is_that_of_all_its_parts():
    def trailing(tensor, shape):
        return tensor[tensor.shape[0] - shape[0] :, : shape[1]]

    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, tensor, shape):
            return trailing(tensor, shape) * self.scale

    for rule, scale in ((trailing, 1), (Learned(), 2)):
        net = Supernet(DEEP, repeated, {"blocks.0.weight": rule}, views=one_source)
        model = net.extract(arch_of(width=4))
        expected = scale * net.get_parameter("blocks.0.weight")[4:, :4]
        assert all(torch.equal(block.weight, expected) for block in model.blocks)
        assert (f"{rule_name('blocks.0.weight')}.scale" in net.state_dict()) == (scale == 2)


def test_what_is_sliced_differently_has_no_source_in_common():
    def build(arch):
        width = arch["width"]
        return nn.ModuleDict({"rnn": nn.LSTM(width, width), "linear": nn.Linear(width, 4 * width)})

    with pytest.raises(ValueError, match=r"'linear\.weight' of .* is not sliced as others are that have"):
        Supernet(WIDTHS, build, views=lambda arch: {"linear.weight": View("rnn.weight_ih_l0")})


def test_misnamed_and_contradictory_views_are_refused():
    with pytest.raises(ValueError, match=r"`views` names 'block.weight', which is no tensor of the TiedEnds"):
        Supernet(WIDTHS, tied_ends, views=lambda arch: {"block.weight": View("mix.weight")})
    with pytest.raises(ValueError, match=r"'head\.weight' and 'embed\.weight' are one .* no view of its"):
        Supernet(WIDTHS, tied_ends, views=lambda arch: {"head.weight": View(transform=Mask(0.5))})
    with pytest.raises(ValueError, match=r"transform \[8\] is not hashable"):
        View(transform=[8])


def test_tying_keeps_what_the_module_itself_ties():
    module = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    module[2].weight = module[1].weight
    tied(module, {"1.weight": View("0.weight")})
    assert tied_names(module.state_dict(keep_vars=True)) == {"1.weight": "0.weight", "2.weight": "0.weight"}


# forward passes that repeat a module, or leave early


class Loop(nn.Module):
    """One block, `depth` times, with a residual."""

    def __init__(self, depth: int, width: int) -> None:
        super().__init__()
        self.depth = depth
        self.stem = nn.Linear(8, width)
        self.blocks = nn.ModuleList([nn.Linear(width, width)] * 3)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks[: self.depth]:
            x = x + block(x).relu()
        return self.head(x)


LOOPS = SearchSpace({"depth": (1, 2, 3), "width": (4, 8)})


def test_a_block_that_is_repeated_has_the_gradients_of_the_loop_written_by_hand():
    net = Supernet(LOOPS, lambda arch: Loop(**arch), example=X)
    assert [name for name in net.state_dict() if name.startswith("blocks")] == ["blocks.0.weight", "blocks.0.bias"]
    for depth in (1, 2, 3):
        for width in (4, 8):
            net.zero_grad()
            leaves = {name: tensor.clone().requires_grad_() for name, tensor in net.state_dict().items()}
            x = X @ leaves["stem.weight"][:width].T + leaves["stem.bias"][:width]
            for _ in range(depth):
                x = x + (x @ leaves["blocks.0.weight"][:width, :width].T + leaves["blocks.0.bias"][:width]).relu()
            expected = x @ leaves["head.weight"][:, :width].T + leaves["head.bias"]
            expected.square().sum().backward()
            arch = {"depth": depth, "width": width}
            output = net(X, arch)
            output.square().sum().backward()
            torch.testing.assert_close(output, expected)
            for name, parameter in net.named_parameters():
                torch.testing.assert_close(parameter.grad, leaves[name].grad, rtol=1e-4, atol=1e-4)
            assert torch.equal(net.extract(arch)(X), net(X, arch))


def test_a_model_with_early_exits_passes():
    class Exits(nn.Module):
        def __init__(self, exit: int, width: int) -> None:
            super().__init__()
            self.exit = exit
            self.stages = nn.ModuleList([nn.Linear(8, width), nn.Linear(width, width)])
            self.heads = nn.ModuleList(nn.Linear(width, 3) for _ in range(2))

        def forward(self, x):
            for stage, head in zip(self.stages, self.heads):
                x = stage(x).relu()
                if stage is self.stages[self.exit]:
                    return head(x) * 2

    space = SearchSpace({"exit": (0, 1), "width": (4, 8)})
    net = Supernet(space, lambda arch: Exits(**arch), example=X)
    net(X, {"exit": 0, "width": 4}).sum().backward()
    assert net.heads._modules["1"].weight.grad is None
    assert net.heads._modules["0"].weight.grad[:, :4].any()


def test_a_loop_whose_steps_follow_the_width_is_refused():
    class Wrong(Loop):
        def forward(self, x):
            x = super().forward(x)
            return x * 2 if self.stem.out_features == 8 else x

    with pytest.raises(ValueError, match="calls mul in one of"):
        Supernet(LOOPS, lambda arch: Wrong(**arch), example=X)


# a family


def test_a_family_counts_a_source_once_and_builds_tied_modules():
    class OnImages(Repeated):
        def forward(self, x):
            return super().forward(x.mean((2, 3)))

    def build(arch, drop_rate=0.0, drop_path_rate=0.0):
        return OnImages(arch["depth"], arch["width"])

    family = Family(DEEP, build, num_classes=3, in_chans=8, input_size=2, views=one_source)
    net = family.supernet()
    for arch in (DEEP.smallest, DEEP.largest):
        assert family.parameters(arch) == count_parameters(net.extract(arch)) == count_parameters(family.build(arch))
    assert family.parameters(DEEP.largest) == count_parameters(net)
