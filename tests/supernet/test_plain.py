"""Models that people bring: each works, or is refused in one line."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from supernet import SearchSpace, Supernet
from supernet.calibration import calibrate
from supernet.families import Family, from_model
from supernet.plain import plain
from supernet.training.execution import channels_last

SPACE = SearchSpace({"width": (4, 8)})


class Own(nn.Module):
    def __init__(self, width: int = 8, normalised=lambda layer: layer, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv = normalised(nn.Conv2d(3, width, 3, padding=1))
        self.norm = norm(width)
        self.second = normalised(nn.Conv2d(width, width, 3, padding=1))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.second(self.norm(self.conv(x)).relu()).mean((2, 3)))


def images(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def own_family(**options) -> Family:
    return Family(SPACE, lambda arch: Own(arch["width"], **options), 4, input_size=8)


@pytest.mark.parametrize(
    "wrap", [nn.DataParallel, torch.compile, lambda module: torch.compile(nn.DataParallel(module))]
)
def test_what_is_wrapped_around_a_model_is_taken_off(wrap):
    bare = Own()
    assert plain(wrap(bare)) is bare
    net = Supernet(SPACE, lambda arch: wrap(Own(arch["width"])))
    assert net.state_dict().keys() == bare.state_dict().keys()
    assert type(net.extract(SPACE.smallest)) is Own
    family = from_model(lambda: wrap(Own()), torch.empty(1, 3, 8, 8))
    assert type(family.supernet().extract(family.space.smallest)) is Own


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:FutureWarning")
def test_torchscript_and_lazy_modules_are_refused_by_name():
    scripted = torch.jit.trace(nn.Conv2d(3, 8, 1), images())
    with pytest.raises(ValueError, match=r"module '0' is TorchScript \(Conv2d\).*give the module that it was made of"):
        Supernet(SPACE, lambda arch: nn.Sequential(scripted))
    lazy = r"'0.weight' has no shape yet: run the lazy modules on an image, or say their sizes"
    with pytest.raises(ValueError, match=lazy):
        Supernet(SPACE, lambda arch: nn.Sequential(nn.LazyConv2d(8, 1)))
    with pytest.raises(ValueError, match=lazy):
        from_model(lambda: nn.Sequential(nn.LazyConv2d(8, 1)), torch.empty(1, 3, 8, 8))


def test_a_copy_of_a_model_is_its_own_family():
    torch.manual_seed(0)
    model = Own().eval()
    before = copy.deepcopy(model.state_dict())
    family = from_model(lambda: copy.deepcopy(model), torch.empty(1, 3, 8, 8))
    net = family.supernet().eval()
    assert torch.equal(net(images(), family.space.largest), model(images()))
    assert net(images(), family.space.smallest).shape == (2, 4)
    assert family.macs(family.space.smallest) < family.macs(family.space.largest)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_same_module_twice_is_refused():
    model = Own()
    with pytest.raises(ValueError, match=r"`build` gives the same Own twice: .*copy\.deepcopy"):
        Supernet(SPACE, lambda arch: model)
    assert not any(parameter.is_meta for parameter in model.parameters())


class Outputs(Own):
    def __init__(self, form) -> None:
        super().__init__()
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        (lambda y: {"out": y}, r"gives a dict of 'out': a tensor \[\d, 4\] instead of logits \[B, K\]"),
        (lambda y: (y, y), r"gives a tuple of a tensor \[\d, 4\], a tensor \[\d, 4\] instead of logits"),
        (lambda y: y[:, :, None, None], r"gives a tensor \[\d, 4, 1, 1\] instead of logits"),
    ],
)
def test_a_family_of_a_model_without_logits_is_refused(form, message):
    with pytest.raises(ValueError, match=message):
        from_model(lambda: Outputs(form), torch.empty(1, 3, 8, 8))


def test_a_supernet_gives_whatever_its_modules_give():
    class Two(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.conv = nn.Conv2d(3, width, 1)

        def forward(self, x):
            return {"map": self.conv(x), "mean": (x.mean(),)}

    net = Supernet(SPACE, lambda arch: Two(arch["width"]), example=images())
    found, expected = net(images(), SPACE.smallest), net.extract(SPACE.smallest)(images())
    assert torch.equal(found["map"], expected["map"])
    assert found["map"].shape[1] == 4


def test_batch_normalisation_without_running_statistics_is_left_alone():
    family = own_family(norm=partial(nn.BatchNorm2d, track_running_stats=False))
    net = family.supernet()
    model = net.extract(SPACE.smallest).eval()
    expected = model(images())
    calibrate(model, [images()])
    assert torch.equal(model(images()), expected)
    assert torch.equal(net.eval()(images(), SPACE.smallest), expected)
    assert family.macs(SPACE.smallest) == 64 * 9 * (3 * 4 + 4 * 4) + 4 * 4


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "normalised",
    [
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
    ],
)
def test_parametrised_layers_are_sliced_like_what_they_make(normalised):
    """The kernels of 5 shrink about their centre to 3."""

    class Layer(nn.Module):
        def __init__(self, width, kernel_size):
            super().__init__()
            self.conv = normalised(nn.Conv2d(3, width, kernel_size, padding=kernel_size // 2))
            self.head = nn.Linear(width, 4)

        def forward(self, x):
            return self.head(self.conv(x).mean((2, 3)))

    varies = {} if normalised in (parametrizations.spectral_norm, nn.utils.spectral_norm) else {"kernel_size": (3, 5)}
    space = SearchSpace({"width": (4, 8), **varies})
    family = Family(space, lambda arch: Layer(arch["width"], arch.get("kernel_size", 3)), 4, input_size=8)
    net = family.supernet().eval()
    for twin in (net, copy.deepcopy(net)):
        for arch in (space.smallest, space.largest):
            assert torch.equal(twin(images(), arch), net.extract(arch)(images()))
    net(images(), space.smallest).sum().backward()
    direction = next(
        name for name, parameter in net.named_parameters() if parameter.dim() == 4 and parameter.shape[1] == 3
    )
    whole, part = net.get_parameter(direction), net.extract(space.smallest).get_parameter(direction)
    assert torch.equal(part, whole[:4, :, 1:4, 1:4] if varies else whole[:4])
    assert net.get_parameter(direction).grad[:4].abs().sum() > 0
    assert family.parameters(space.smallest) == sum(p.numel() for p in family.build(space.smallest).parameters())


class Volumes(nn.Module):
    """Takes an image for a volume of one slice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat, self.head = nn.Conv3d(3, 4, 1), nn.Conv2d(4, 4, 3), nn.Linear(4, 10)

    def forward(self, x):
        return self.head(self.flat(self.conv(x[:, :, None])[:, :, 0]).mean((2, 3)))


def test_kernels_of_five_dimensions_are_no_obstacle_to_channels_last():
    model = channels_last(Volumes())
    assert model.flat.weight.is_contiguous(memory_format=torch.channels_last)
    assert model.conv.weight.is_contiguous()


def test_other_numbers_than_real_ones_may_be_parameters():
    class Odd(Own):
        def __init__(self, width):
            super().__init__(width)
            self.index = nn.Parameter(torch.arange(4), requires_grad=False)
            self.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))
            self.table = [torch.ones(8)]

        def forward(self, x):
            return (super().forward(x * self.table[0]) * self.phase.abs())[:, self.index]

    class First(nn.Module):
        """Whose first parameter is no real number."""

        def __init__(self, width):
            super().__init__()
            self.index = nn.Parameter(torch.arange(4), requires_grad=False)
            self.rest = Odd(width)

        def forward(self, x):
            return self.rest(x)[:, self.index]

    family = Family(SPACE, lambda arch: First(arch["width"]), 4, input_size=8)
    net = family.supernet().eval()
    assert torch.equal(net(images(), SPACE.smallest), net.extract(SPACE.smallest)(images()))
    with pytest.raises(ValueError, match=r"the images are torch\.float64 and the weights torch\.float32"):
        net(images().double(), SPACE.smallest)
