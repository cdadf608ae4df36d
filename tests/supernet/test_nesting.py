import pytest
import torch
from torch import nn

from supernet import Choice, SearchSpace, Supernet
from supernet.families import Family
from supernet.nesting import covering_archs


class Block(nn.Module):
    """A convolution with a residual that a flag switches on."""

    def __init__(self, in_chs: int, out_chs: int, residual: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 3, padding=1)
        self.residual = residual

    def forward(self, x):
        return self.conv(x) + x if self.residual else self.conv(x)


def test_covering_archs_hold_the_largest_and_every_operation():
    space = SearchSpace({"width": (1, 2), "a": ("x", "y", "z"), "b": Choice(("p", "q"), when={"a": ("x", "y")})})
    archs = covering_archs(space)
    assert archs[0] == space.largest
    assert all(arch["width"] == 2 for arch in archs)
    assert {arch["a"] for arch in archs} == {"x", "y", "z"}
    assert {arch["b"] for arch in archs if "b" in arch} == {"p", "q"}


def test_what_the_largest_rules_out_is_covered_too():
    space = SearchSpace(
        {
            "depth": (1, 2),
            "pool": Choice(("max", "mean"), when={"depth": (1,)}),
            "size": Choice((2, 3), {"pool": ("max",)}),
        }
    )
    archs = covering_archs(space)
    assert archs[0] == space.largest == {"depth": 2}
    assert {(arch.get("pool"), arch.get("size")) for arch in archs} == {(None, None), ("max", 3), ("mean", None)}


def refused(space: SearchSpace, build) -> str:
    with pytest.raises(ValueError, match=r"module|tensor|parameter") as error:
        Supernet(space, build)
    return str(error.value)


def test_a_larger_tensor_in_a_smaller_architecture_is_refused():
    space = SearchSpace({"groups": (1, 2)})
    message = refused(space, lambda arch: nn.Conv2d(4, 4, 1, groups=arch["groups"]))
    for part in ("'weight'", "[4, 4, 1, 1]", "[4, 2, 1, 1]", "Arch({'groups': 1})", "Arch({'groups': 2})"):
        assert part in message


def test_another_number_of_dimensions_is_refused():
    space = SearchSpace({"dimensions": (1, 2)})
    build = {1: lambda: nn.Conv1d(2, 2, 1), 2: lambda: nn.Conv2d(2, 2, 1)}
    message = refused(space, lambda arch: build[arch["dimensions"]]())
    for part in ("'weight'", "[2, 2, 1]", "[2, 2, 1, 1]", "{'dimensions': 1}", "{'dimensions': 2}"):
        assert part in message


def test_even_and_odd_kernels_are_refused_together():
    message = refused(SearchSpace({"kernel_size": (2, 3)}), lambda arch: nn.Conv2d(1, 1, arch["kernel_size"]))
    assert "their sizes are all odd or all even" in message


def test_two_types_of_module_under_one_name_are_refused():
    space = SearchSpace({"act": ("relu", "gelu")})
    message = refused(
        space, lambda arch: nn.Sequential(nn.Linear(2, 2), {"relu": nn.ReLU, "gelu": nn.GELU}[arch["act"]]())
    )
    for part in ("'1'", "ReLU", "GELU", "Arch({'act': 'relu'})", "Arch({'act': 'gelu'})", "different names"):
        assert part in message


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_type_made_of_another_may_come_with_an_operation_but_not_with_a_size():
    kinds = {"plain": nn.Linear, "doubled": Doubled}
    net = Supernet(SearchSpace({"kind": tuple(kinds)}), lambda arch: kinds[arch["kind"]](2, 2))
    x = torch.ones(1, 2)
    assert torch.equal(net(x, {"kind": "doubled"}), 2 * net(x, {"kind": "plain"}))
    message = refused(
        SearchSpace({"width": (4, 8)}), lambda arch: (nn.Linear, Doubled)[arch["width"] == 4](2, arch["width"])
    )
    for part in ("Doubled", "Linear", "Arch({'width': 4})", "must not follow the sizes"):
        assert part in message


def test_a_residual_that_comes_and_goes_is_refused():
    space = SearchSpace({"width": (4, 8)})
    message = refused(space, lambda arch: nn.Sequential(Block(8, arch["width"], residual=arch["width"] == 8)))
    for part in ("'0'", "residual=False", "Arch({'width': 4})", "Arch({'width': 8})", "let the builder pin it"):
        assert part in message


def test_a_bias_that_comes_and_goes_is_refused():
    space = SearchSpace({"width": (4, 8)})
    message = refused(space, lambda arch: nn.Linear(2, arch["width"], bias=arch["width"] == 8))
    assert "bias=False in Arch({'width': 4}) but True in Arch({'width': 8})" in message


def test_a_tensor_that_only_smaller_architectures_have_is_refused():
    space = SearchSpace({"depth": (1, 2)})
    names = {1: "shallow", 2: "deep"}
    message = refused(space, lambda arch: nn.ModuleDict({names[arch["depth"]]: nn.Linear(2, 2)}))
    assert "a tensor 'shallow.weight' that the supernet lacks" in message
    assert "make the choice that brings it an unordered one" in message


def test_a_name_that_the_supernet_uses_is_refused():
    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.space = nn.Linear(2, width)

    message = refused(SearchSpace({"width": (1, 2)}), lambda arch: Model(arch["width"]))
    assert "has a member 'space'" in message
    assert "wrap the module" in message


def test_a_rule_for_no_tensor_is_refused():
    with pytest.raises(ValueError, match=r"no tensor of the supernet is named like the slicing rule 'conv\.\*'"):
        Supernet(SearchSpace({"width": (1, 2)}), lambda arch: nn.Linear(2, arch["width"]), {"conv.*": torch.narrow})


def test_a_connection_that_is_there_at_one_width_alone_is_found():
    class Block(nn.Sequential):
        def forward(self, x):
            y = super().forward(x)
            return x + y if x.shape == y.shape else y

    def build(arch, drop_rate=0.0, drop_path_rate=0.0):
        blocks = [Block(nn.Conv2d(3, 24, 1)), Block(nn.Conv2d(24, arch["width"], 1))]
        return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(arch["width"], 10))

    family = Family(SearchSpace({"width": (8, 12, 16, 20, 24, 28, 32, 36)}), build, num_classes=10, input_size=8)
    with pytest.raises(ValueError, match="module '1' calls add in one of"):
        family.supernet()
