import copy
import pickle
from functools import partial

import numpy as np
import pytest
import timm
import torch
from timm.models.mobilenetv3 import _gen_mobilenet_v3
from timm.optim import create_optimizer_v2
from torch import nn

from supernet import Choice, SearchSpace, Supernet
from supernet.families import FAMILIES
from supernet.slicing import layer_rule, take
from supernet.supernet import NO_DROP, DropRates

SPACE = SearchSpace({"depth": (1, 2), "width": (4, 8), "kernel_size.1": Choice((3, 5), when={"depth": (2,)})})


class SmallCNN(nn.Module):
    def __init__(self, depth: int, width: int, kernel_size: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.blocks = nn.Sequential(
            *(nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2) for _ in range(depth - 1))
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def build(arch) -> SmallCNN:
    return SmallCNN(arch["depth"], arch["width"], arch.get("kernel_size.1", 3))


@pytest.fixture(scope="module")
def family():
    return FAMILIES["mobilenet_v3_micro"]()


@pytest.fixture(scope="module")
def micro(family):
    return family.supernet().eval()


def images(count: int = 2, size: int = 16) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


class Blur(nn.Module):
    """Has a constant, which is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.full((1, 1, 3, 3), 1 / 9), persistent=False)

    def forward(self, x):
        return nn.functional.conv2d(x, self.kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])


@pytest.mark.parametrize("pieces", [None, lambda arch: {"0": arch["width"], "1": 0, "4": arch["width"]}])
def test_constants_are_of_the_type_that_the_supernet_is_converted_to(pieces):
    def build(arch):
        width = arch["width"]
        layers = (nn.Conv2d(3, width, 1), Blur(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        return nn.Sequential(*layers)

    net = Supernet(SearchSpace({"width": (4, 8)}), build, pieces=pieces).eval()
    for dtype in (torch.float64, torch.float32):
        net, x = net.to(dtype), images().to(dtype)
        for arch in (net.space.smallest, net.space.largest):
            assert torch.equal(net(x, arch), net.extract(arch)(x))
            assert net(x, arch).dtype == dtype


def region(shared: torch.Tensor, shape: torch.Size, rule) -> torch.Tensor:
    """Ones where a subnet's tensor of `shape` lies in the shared one, zeros elsewhere."""
    probe = torch.zeros_like(shared, requires_grad=True)
    take(probe, shape, rule).sum().backward()
    return probe.grad


@pytest.mark.exhaustive  # fewer of every family are tested anyway
def test_200_subnets_and_their_gradients_equal_the_plain_models_bit_for_bit(family, micro):
    generator, x = np.random.default_rng(0), images()
    for _ in range(200):
        arch = family.space.sample(generator)
        plain = micro.extract(arch)
        micro.zero_grad()
        output, expected = micro(x, arch), plain(x)
        assert torch.equal(output, expected)
        output.square().sum().backward()
        expected.square().sum().backward()
        shared = dict(micro.named_parameters())
        for name, parameter in plain.named_parameters():
            rule = layer_rule(plain, name)
            gradient = shared.pop(name).grad
            assert torch.equal(take(gradient, parameter.shape, rule), parameter.grad)
            assert not (gradient * (1 - region(gradient, parameter.shape, rule))).any()
        assert all(parameter.grad is None for parameter in shared.values())


def test_the_largest_subnet_takes_timms_state_dict_without_renaming():
    torch.manual_seed(0)
    pretrained = timm.create_model("mobilenetv3_large_100", num_classes=10).eval()
    space = SearchSpace({"width": (0.75, 1.0)})
    net = Supernet(space, lambda arch: _gen_mobilenet_v3("mobilenetv3_large_100", arch["width"], num_classes=10)).eval()
    net.load_state_dict(pretrained.state_dict())
    x = images(size=64)
    assert torch.equal(net(x, space.largest), pretrained(x))
    assert torch.equal(net(x, space.smallest), net.extract(space.smallest)(x))


def test_the_state_dict_holds_the_union_of_all_tensors_at_their_largest():
    net = Supernet(SPACE, build)
    largest = build(SPACE.largest)
    assert {n: t.shape for n, t in net.state_dict().items()} == {n: t.shape for n, t in largest.state_dict().items()}


def test_a_tensor_is_stored_as_large_as_the_operation_that_has_it_largest():
    space = SearchSpace({"operation": ("wide", "narrow"), "width": (2, 4)})

    def build(arch):
        width = arch["width"] * (3 if arch["operation"] == "wide" else 1)
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 5))

    net = Supernet(space, build)
    assert net.state_dict()["0.weight"].shape == (12, 3, 3, 3)
    for operation, width in (("wide", 12), ("narrow", 4)):
        model = net.extract({"operation": operation, "width": 4})
        assert torch.equal(model[0].weight, net.get_parameter("0.weight")[:width])
        assert torch.equal(model[3].weight, net.get_parameter("3.weight")[:, :width])


def test_operations_with_names_of_their_own_are_all_stored():
    layers = {"conv": nn.Linear, "wide": nn.Bilinear}
    space = SearchSpace({"operation": ("conv", "wide"), "width": (1, 2)})

    def build(arch):
        size = (2, arch["width"]) if arch["operation"] == "conv" else (2, 2, arch["width"])
        return nn.ModuleDict({arch["operation"]: layers[arch["operation"]](*size)})

    shapes = {name: list(tensor.shape) for name, tensor in Supernet(space, build).state_dict().items()}
    assert shapes == {"conv.weight": [2, 2], "conv.bias": [2], "wide.weight": [2, 2, 2], "wide.bias": [2]}


def test_an_extracted_subnet_has_its_own_weights_and_the_mode_of_the_supernet():
    net = Supernet(SPACE, build)
    model = net.extract(SPACE.smallest)
    assert type(model) is SmallCNN
    assert model.training
    before = net.get_parameter("stem.0.weight").detach().clone()
    with torch.no_grad():
        model.stem[0].weight.zero_()
    assert torch.equal(net.get_parameter("stem.0.weight"), before)
    assert not net.eval().extract(SPACE.smallest).training


def test_weights_follow_from_the_seed_and_leave_the_global_generator_alone():
    state = torch.get_rng_state()
    first, again, other = (Supernet(SPACE, build, seed=seed).head.weight for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_training_updates_the_running_statistics_of_the_part_in_use():
    net = Supernet(SPACE, build)
    net(images(), SPACE.smallest)
    mean = net.get_buffer("stem.1.running_mean")
    assert (mean[:4] != 0).all()
    assert (mean[4:] == 0).all()


@pytest.mark.parametrize("rates", [DropRates(0.5), DropRates(0.5, 0.3)])
def test_subnets_drop_as_modules_that_are_built_with_the_rates(family, numpy_generator, rates):
    net, x = family.supernet().train(), images(size=24)
    dropped = []
    for arch in [family.space.sample(numpy_generator) for _ in range(8)]:
        plain = family.build(arch, **rates._asdict()).train()
        plain.load_state_dict(net.extract(arch).state_dict())
        outputs = []
        for run in (plain, partial(net, arch=arch, rates=rates), partial(net, arch=arch)):
            torch.manual_seed(0)
            outputs.append(run(x))
        assert torch.equal(outputs[0], outputs[1])
        dropped.append(not torch.equal(outputs[1], outputs[2]))
        assert torch.equal(net.eval()(x, arch, rates=rates), net(x, arch))
        net.train()
    assert all(dropped)


def test_subnets_that_drop_are_put_together_from_pieces_in_a_copy_too(family, numpy_generator):
    built = []

    def build(family, arch, **options):
        built.append(arch)
        return family.build(arch, **options)

    choices = family.space.choices.items()
    kinds = ("depth", "resolution")
    space = family.space.restrict({n: c.values[-1:] for n, c in choices if not n.endswith(kinds)})
    net = Supernet(space, partial(build, family), pieces=family.pieces)
    archs = [space.sample(numpy_generator) for _ in range(30)]
    counts = []
    for copied in (net, copy.deepcopy(net)):  # as a moving average is
        for rates in (NO_DROP, DropRates(0.1)):
            built.clear()
            for arch in archs:
                copied._subnet(arch, rates)
            counts.append(len(built))
    assert counts[0] <= counts[1] == counts[2] == counts[3] < len(archs) / 3


def test_copies_and_pickles_compute_the_same():
    net = Supernet(SPACE, build).eval()
    x, arch = images(), SPACE.smallest
    expected = net(x, arch)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x, arch), expected)


def test_an_architecture_of_another_space_is_refused():
    with pytest.raises(ValueError, match=r"choice 'width' is one of \(4, 8\), not 6"):
        Supernet(SPACE, build)(images(), {"depth": 1, "width": 6})


class Shrinking(nn.Module):
    """A residual that is added where the shapes happen to be equal, which no attribute tells."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, width, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return y + x if self.conv.in_channels == self.conv.out_channels else y


def test_a_residual_inside_forward_is_found_with_an_example():
    space = SearchSpace({"width": (4, 8)})

    def build(arch):
        return nn.Sequential(Shrinking(arch["width"]))

    Supernet(space, build)
    with pytest.raises(ValueError, match=r"module '0' calls add in one of .*'width': 4.*'width': 8.*pin it"):
        Supernet(space, build, example=torch.zeros(1, 8, 4, 4))
    Supernet(SPACE, globals()["build"], example=images(1))


def test_a_users_own_model_becomes_a_supernet_trains_and_is_taken_out():
    generator = np.random.default_rng(0)
    labels = torch.arange(64) % 2
    x = images(64) + labels[:, None, None, None]
    net = Supernet(SPACE, build, example=x[:1])
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        for arch in (SPACE.largest, SPACE.sample(generator), SPACE.smallest):
            nn.functional.cross_entropy(net(x, arch), labels).backward()
        optimizer.step()
    for arch in (SPACE.largest, SPACE.smallest):
        model = net.extract(arch)  # in training mode, as its statistics are not its own yet
        assert (model(x).argmax(1) == labels).float().mean() > 0.9


def test_what_a_plain_model_keeps_from_decaying_does_not_decay_in_a_supernet():
    space = SearchSpace({"depth": (1, 2)})
    options = {"img_size": 32, "patch_size": 16, "embed_dim": 64, "num_heads": 1, "num_classes": 4}
    net = Supernet(space, lambda arch: timm.models.VisionTransformer(depth=arch["depth"], **options))
    assert Supernet(SPACE, build).no_weight_decay() == set()
    for network in (net, copy.deepcopy(net)):
        groups = create_optimizer_v2(network, "sgd", 0.1, 1e-4).param_groups
        ids = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
        without = {name for name, parameter in network.named_parameters() if id(parameter) in ids}
        assert {"pos_embed", "cls_token", "blocks.1.norm1.weight"} <= without
        assert not {"blocks.1.mlp.fc1.weight", "head.weight"} & without


class Mixed(nn.Module):
    """A module of several inputs that works on them in place."""

    def __init__(self, width):
        super().__init__()
        self.images, self.more = nn.Conv2d(3, width, 1), nn.Linear(2, width)

    def forward(self, images, numbers, *, scale=None, flip=False):
        x = self.images(images.mul_(2)).mean((2, 3)) + sum(self.more(number.add_(1)) for number in numbers)
        x = x if scale is None else x * scale.add_(1)
        return {"x": x.flip(0) if flip else x, "count": len(x)}


def test_any_inputs_go_through_and_stay_as_they_are():
    net = Supernet(SearchSpace({"width": (2, 4)}), lambda arch: Mixed(arch["width"])).eval()
    inputs, scale = (torch.ones(5, 3, 4, 4), [torch.ones(5, 2), torch.ones(5, 2)]), torch.ones(5, 1)
    for arch in net.space:
        plain = net.extract(arch)
        for more in ({}, {"flip": True}, {"flip": True, "scale": scale}):
            found = net(*inputs, arch=arch, **more)
            assert found["count"] == 5
            assert all((tensor == 1).all() for tensor in (inputs[0], *inputs[1], scale))
            assert torch.equal(net(*inputs, arch, **more)["x"], found["x"])
            expected = plain(*copy.deepcopy(inputs), **copy.deepcopy(more))
            assert torch.equal(found["x"], expected["x"])


def test_integers_are_refused_where_the_example_had_none():
    space = SearchSpace({"width": (2, 4)})
    tokens = torch.zeros(3, 5, dtype=torch.int64)

    def build(arch):
        return nn.Sequential(nn.Embedding(7, arch["width"]), nn.Linear(arch["width"], 2))

    net = Supernet(space, build, example=tokens[:1])
    assert net(tokens, space.smallest).shape == (3, 5, 2)
    with pytest.raises(ValueError, match=r"the inputs are torch\.float64 and the weights torch\.float32"):
        Supernet(space, lambda arch: nn.Linear(3, arch["width"]))(torch.zeros(1, 3).double(), space.smallest)
    floats = Supernet(space, lambda arch: nn.Linear(3, arch["width"]), example=torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"the inputs are torch\.int64 and the weights torch\.float32"):
        floats(torch.zeros(1, 3, dtype=torch.int64), space.smallest)
