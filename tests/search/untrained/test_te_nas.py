from collections import OrderedDict

import pytest
import torch
from torch import nn

from search.untrained.mixed_operations import MixedOperation, mix
from search.untrained.proxies import PROXIES, nasbench201_proxies
from search.untrained.te_nas import (
    Proxies,
    TeNasConfig,
    condition_numbers,
    initialise,
    measure_architecture,
    prune,
    random_patches,
    region_counts,
    search_by_pruning,
)
from supernet import Choice, SearchSpace
from supernet.families import FAMILIES

SPACE = SearchSpace({"first": ("none", "narrow", "wide"), "second": ("none", "narrow", "wide")})
SMALL = TeNasConfig(repeats=2, ntk_images=6, region_images=60, region_batch=20)


def operation(name: str) -> nn.Module:
    kernel_size = {"narrow": 1, "wide": 3}
    if name == "none":
        return nn.Identity()
    return nn.Conv2d(2, 2, kernel_size[name], padding="same", bias=False)


def build(arch) -> nn.Module:
    def slot(name: str) -> nn.Module:
        return nn.Sequential(OrderedDict({arch[name]: operation(arch[name])}))

    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(1, 2, 1),
            first=slot("first"),
            relu=nn.ReLU(),
            second=slot("second"),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            classifier=nn.Linear(2, 3),
        )
    )


TINY = Proxies(build, build, patch=(1, 3, 3))


@pytest.fixture
def images():
    return torch.randn(10, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def grey(images):
    return images[:, :1]


def test_settings_are_those_of_the_authors_code():
    settings = TeNasConfig()
    assert (settings.repeats, settings.ntk_images, settings.region_images, settings.region_batch) == (3, 72, 3000, 1000)
    assert settings.batch_norm == "batch"
    network = nasbench201_proxies().ntk(FAMILIES["nasbench201"]().space.largest)
    assert network.stem[0].out_channels == 3
    with pytest.raises(ValueError, match="repeats=0"):
        TeNasConfig(repeats=0)


@pytest.mark.parametrize("name", PROXIES)
def test_proxies_measure_every_operation_of_their_space(name):
    family = FAMILIES[name]()
    proxies = PROXIES[name](10, 3)
    images = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = TeNasConfig(repeats=1, ntk_images=4, region_images=50, batch_norm="frozen")
    smallest, largest = (
        measure_architecture(proxies, arch, images, settings) for arch in (family.space.smallest, family.space.largest)
    )
    assert 1 <= smallest.regions < largest.regions <= 50
    assert largest.condition_number >= 1


def test_a_draw_depends_on_the_seed_and_on_names_alone(images):
    network, bigger = build({"first": "narrow", "second": "wide"}), build({"first": "wide", "second": "wide"})
    initialise(network, "fan_in", 3, 1)
    initialise(bigger, "fan_in", 3, 1)
    torch.testing.assert_close(network.second.wide.weight, bigger.second.wide.weight, rtol=0, atol=0)
    assert not torch.equal(bigger.first.wide.weight, bigger.second.wide.weight)
    before = network.stem.weight.clone()
    initialise(network, "fan_in", 3, 2)
    assert not torch.equal(network.stem.weight, before)
    assert network.classifier.bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize(("mode", "fan"), [("fan_in", 50), ("fan_out", 800)])
def test_weights_have_kaimings_variance(mode, fan):
    layer = nn.Conv2d(2, 32, 5)
    initialise(layer, mode, 0)
    assert layer.weight.var().item() == pytest.approx(2 / fan, rel=0.1)


def test_patches_are_cut_out_of_the_images():
    images = torch.arange(2 * 3 * 5 * 6).view(2, 3, 5, 6)  # every pixel has its own value
    patches = random_patches(images, (2, 3, 2), 500, torch.Generator().manual_seed(0))
    corners = patches[:, :, :1, :1]
    steps = torch.arange(3)[:, None] * 6 + torch.arange(2)
    assert torch.equal(patches, corners + steps)
    channel = corners.flatten(1) // 30
    assert torch.equal(channel[:, 0] // 3, channel[:, 1] // 3)  # of one image
    assert (channel[:, 0] < channel[:, 1]).all()
    assert len(torch.unique(corners[:, 0])) == 2 * 2 * 3 * 5  # every image, channel but the last, and place
    with pytest.raises(ValueError, match=r"\[4, 3, 2\] cannot be cut out of images of \[3, 5, 6\]"):
        random_patches(images, (4, 3, 2), 1, torch.Generator())


def test_measurements_are_means_over_draws(grey):
    arch = SPACE.largest
    measured = measure_architecture(TINY, arch, grey, SMALL, seed=1)
    assert measured == measure_architecture(TINY, arch, grey, SMALL, seed=1)
    assert measured != measure_architecture(TINY, arch, grey, SMALL, seed=2)
    conditions = condition_numbers(build(arch), grey, SMALL, 1)
    regions = region_counts(build(arch), (1, 3, 3), grey, SMALL, 1)
    assert len(set(conditions)) == 2
    assert measured == pytest.approx((conditions.mean(), regions.mean()))


def test_a_mixed_operation_is_the_mean_of_its_operations(grey):
    torch.manual_seed(0)
    mixed = mix(SPACE, build, {"first": ("narrow", "wide", "none"), "second": ("wide",)})
    assert isinstance(mixed.first, MixedOperation)
    assert mixed.state_dict().keys() == {
        *build({"first": "narrow", "second": "wide"}).state_dict(),
        *build({"first": "wide", "second": "wide"}).state_dict(),
    }
    x = mixed.stem(grey)
    expected = (mixed.first.narrow(x) + mixed.first.wide(x) + x) / 3
    torch.testing.assert_close(mixed.first(x), expected)


def test_a_mixed_operation_of_one_is_the_plain_network(grey):
    arch = {"first": "wide", "second": "narrow"}
    mixed = mix(SPACE, build, {name: (value,) for name, value in arch.items()})
    plain = build(arch)
    plain.load_state_dict(mixed.state_dict())
    torch.testing.assert_close(mixed(grey), plain(grey), rtol=0, atol=0)


def test_the_supernet_of_a_published_space_can_be_mixed(images):
    space = FAMILIES["nasbench201"]().space
    candidates = {name: choice.values for name, choice in space.choices.items()}
    for network in (nasbench201_proxies().ntk, nasbench201_proxies().regions):
        mixed = mix(space, network, candidates)
        assert all(len(module) == 5 for module in mixed.modules() if isinstance(module, MixedOperation))
    mixed = mix(space, nasbench201_proxies().ntk, candidates)
    assert sum(isinstance(module, MixedOperation) for module in mixed.modules()) == 18


def test_pruning_cuts_what_hurts_least():
    # how much the condition number falls with each cut; regions fall alike, so that this alone decides
    value = {"a": 1, "b": 2, "c": 3, "x": 6, "y": 5, "z": 4}
    space = SearchSpace({"first": ("a", "b", "c"), "second": ("x", "y", "z")})
    rounds = []

    def change(whole, part):
        (cut,) = (operation for name in whole for operation in set(whole[name]) - set(part[name]))
        return value[cut], 0.5

    assert prune(space, change, on_round=rounds.append) == {"first": "a", "second": "z"}
    assert rounds == [{"first": ("a", "b"), "second": ("y", "z")}, {"first": ("a",), "second": ("z",)}]


def test_pruning_adds_ranks_and_breaks_ties_by_the_condition_number():
    # falls of condition number and regions; cut first what has the smaller sum of ranks
    falls = {"a": (0.9, 0.3), "b": (0.5, 0.1), "c": (0.1, 0.2)}  # ranks 1 + 3, 2 + 1, 3 + 2
    space = SearchSpace({"only": ("a", "b", "c")})

    def change(whole, part):
        (cut,) = set(whole["only"]) - set(part["only"])
        return falls[cut]

    # b goes first; then a has ranks 1 + 2 and c has 2 + 1, and a lets the condition number fall more
    assert prune(space, change) == {"only": "c"}


def test_pruning_rounds_as_the_authors_do():
    falls = {"a": (0.1004, 0.2), "b": (0.1001, 0.1)}
    space = SearchSpace({"only": ("a", "b")})

    def change(whole, part):
        (cut,) = set(whole["only"]) - set(part["only"])
        return falls[cut]

    assert prune(space, change) == {"only": "a"}  # equal in the first, so that b goes for its regions
    assert prune(space, change, digits=6) == {"only": "b"}


def test_search_by_pruning_ends_in_an_architecture_of_the_space(grey):
    rounds = []
    arch = search_by_pruning(SPACE, TINY, grey, SMALL, on_round=rounds.append)
    assert SPACE.validate(arch) == arch
    assert "none" not in arch.values()
    assert len(rounds) == 1  # two operations were left in the beginning
    assert arch == search_by_pruning(SPACE, TINY, grey, SMALL)
    everything = search_by_pruning(SPACE, TINY, grey, SMALL, exclude=(), on_round=rounds.append)
    assert len(rounds) == 3
    assert SPACE.validate(everything) == everything


def test_bad_input_is_named(grey):
    with pytest.raises(ValueError, match=r"choice 'width' is one of the numbers \(1, 2\)"):
        prune(SearchSpace({"width": (1, 2)}), lambda whole, part: (0, 0))
    dependent = SearchSpace({"first": ("a", "b"), "second": Choice(("c", "d"), when={"first": ("a",)})})
    with pytest.raises(ValueError, match="choice 'second' depends on others"):
        prune(dependent, lambda whole, part: (0, 0))
    with pytest.raises(ValueError, match="'first' has no operation left when none, narrow, wide are excluded"):
        prune(SPACE, lambda whole, part: (0, 0), exclude=("none", "narrow", "wide"))
    with pytest.raises(ValueError, match="operations of choice 'first' cannot be mixed"):
        mix(SPACE, lambda arch: nn.Sequential(operation("narrow")), {"first": ("narrow", "wide"), "second": ("none",)})
