import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.slicing import blocks, centred, leading, take
from supernet.subnets import LentSubnet, Part, Plan, Slot

SPACE = SearchSpace({"width": (2, 4, 6), "kernel_size": (3, 5)})


class Model(nn.Module):
    def __init__(self, arch):
        super().__init__()
        width = arch["width"]
        self.conv = nn.Conv2d(3, width, arch["kernel_size"], padding="same")
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, 5, 1)

    def forward(self, x):
        return self.last(self.norm(self.conv(x)).relu()).mean((2, 3))


@pytest.fixture
def net():
    return Supernet(SPACE, Model).train()


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("rule", "shape"),
    [(leading, (4, 3, 5, 5)), (centred, (2, 3, 3, 3)), (blocks(2), (2, 3, 5, 5)), (leading, (6, 4, 5, 5))],
)
def test_gradients_are_added_to_the_shared_tensor_as_autograd_would(rule, shape, memory_format):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, 5, 5, generator=generator).to(memory_format=memory_format).requires_grad_()
    weight = torch.randn(shape, generator=generator)
    kept = {"weight": torch.empty(shape, device="meta")}
    slot = Slot("weight", kept, "weight", Part("weight", torch.Size(shape), rule, None), {"shared": whole}, "shared")
    subnet = LentSubnet(nn.Module(), Plan("", (), (slot,), (), {}))
    (take(whole, torch.Size(shape), rule) * weight).sum().backward()
    expected = whole.grad
    whole.grad = None
    for times in (1, 2):
        (subnet.lent(accumulate=True)[0] * weight).sum().backward()
        assert torch.equal(whole.grad, times * expected)
        assert whole.grad.stride() == whole.stride()


def test_a_step_of_several_subnets_gives_the_sum_of_their_gradients(net):
    archs = [SPACE.largest, SPACE.validate({"width": 4, "kernel_size": 3}), SPACE.smallest, SPACE.largest]
    for arch in archs:
        net(X, arch, accumulate=True).square().sum().backward()
    accumulated = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    for arch in archs:
        net(X, arch).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(accumulated[name], parameter.grad), name


def test_gradients_come_from_features_as_from_the_output(net):
    """A loss need not be of what the network gives."""
    features = []
    handle = net.skeleton(SPACE.smallest).conv.register_forward_hook(lambda *args: features.append(args[2]))
    net.train()(X, SPACE.smallest, accumulate=True)
    handle.remove()
    features.pop().sum().backward()
    assert net.conv.weight.grad is not None
    assert net.last.weight.grad is None


def test_two_subnets_of_one_loss_each_give_their_gradient(net):
    loss = sum(net(X, arch, accumulate=True).square().sum() for arch in (SPACE.smallest, SPACE.largest))
    loss.backward()
    found = net.conv.weight.grad.clone()
    net.zero_grad()
    for arch in (SPACE.smallest, SPACE.largest):
        net(X, arch).square().sum().backward()
    torch.testing.assert_close(found, net.conv.weight.grad)


def test_a_subnet_holds_nothing_when_it_has_run(net):
    module, weights = net.skeleton(SPACE.smallest), []
    handle = module.conv.register_forward_hook(lambda layer, *_: weights.append(weakref.ref(layer.weight)))
    gc.disable()  # what is let go is free at once, not when Python looks for circles
    try:
        output = net.train()(X, SPACE.smallest, accumulate=True)
        assert all(tensor.is_meta for tensor in module.state_dict().values())
        del output
        assert weights[0]() is None
    finally:
        gc.enable()
    handle.remove()
    with pytest.raises(RuntimeError):
        net(X[:, :2], SPACE.smallest)
    assert all(tensor.is_meta for tensor in module.state_dict().values())


def test_statistics_land_in_the_shared_buffers(net):
    before = net.norm.running_mean.clone()
    net(X, SPACE.smallest, accumulate=True)
    assert (net.norm.running_mean[:2] != before[:2]).all()
    assert torch.equal(net.norm.running_mean[2:], before[2:])
    assert net.norm.num_batches_tracked == 1


def test_tensors_that_are_replaced_are_those_that_count(net):
    net.eval()(X, SPACE.smallest)  # what lending takes is known from here on
    with torch.no_grad():
        net.conv.weight.data = net.conv.weight.data.to(memory_format=torch.channels_last)  # other strides
        net.last.bias = nn.Parameter(torch.ones(5))
        net.norm.running_var = torch.full((6,), 2.0)
    for arch in SPACE:
        assert torch.equal(net(X, arch), net.extract(arch)(X))
    net.double()
    assert net(X.double(), SPACE.smallest).dtype == torch.float64
    assert torch.equal(copy.deepcopy(net)(X.double(), SPACE.smallest), net(X.double(), SPACE.smallest))


def test_a_module_that_sets_its_own_mode_keeps_it(net):
    class Frozen(nn.BatchNorm2d):
        def train(self, mode=True):
            return super().train(False)

    def build(arch):
        model = Model(arch)
        model.norm = Frozen(arch["width"])
        return model

    net = Supernet(SPACE, build).train()
    before = net.norm.running_mean.clone()
    net(X, SPACE.smallest)
    assert torch.equal(net.norm.running_mean, before)


def test_modes_are_those_of_the_supernet_whatever_ran_before(net):
    module = net.skeleton(SPACE.smallest)
    for training in (True, False, True):
        net.train(training)(X, SPACE.smallest)
        assert {child.training for child in module.modules()} == {training}


def test_gradients_of_a_tied_tensor_add_up():
    class Twice(nn.Module):
        def __init__(self, arch):
            super().__init__()
            self.first = nn.Linear(arch["width"], arch["width"], bias=False)
            self.second = nn.Linear(arch["width"], arch["width"], bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)))

    space = SearchSpace({"width": (2, 4)})
    net, x = Supernet(space, Twice), torch.randn(3, 2)
    plain = net.extract(space.smallest)
    for _ in range(2):
        net(x, space.smallest, accumulate=True).sum().backward()
        plain(x).sum().backward()
    assert torch.equal(net.first.weight.grad[:2, :2], plain.first.weight.grad)


def test_tensors_with_one_gradient_keep_it_apart():
    """What autograd gives to several as the same tensor is added to by each on its own."""

    class Sum(nn.Module):
        def __init__(self, arch):
            super().__init__()
            self.one, self.other = nn.Parameter(torch.ones(arch["width"])), nn.Parameter(torch.ones(arch["width"]))

        def forward(self, x):
            return (self.one + self.other) * x

    space = SearchSpace({"width": (2, 4)})
    net = Supernet(space, Sum)
    net(torch.ones(4), space.largest, accumulate=True).sum().backward()
    net.one.grad.add_(1)
    assert net.other.grad.tolist() == [1, 1, 1, 1]


def test_gradients_that_lie_in_the_same_memory_are_kept_apart():
    """Those that autograd gives to a tensor and to a view of another."""

    class Sum(nn.Module):
        def __init__(self, arch):
            super().__init__()
            self.one, self.other = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(4))
            self.linear = nn.Linear(4, arch["width"])

        def forward(self, x):
            return self.linear(x + (self.one.flatten() + self.other))

    net, x = Supernet(SearchSpace({"width": (2, 4)}), Sum), torch.ones(3, 4)
    for arch in net.space:
        net(x, arch, accumulate=True).sum().backward()
    found = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    net.zero_grad()
    for arch in net.space:
        net(x, arch).sum().backward()
    for name, parameter in net.named_parameters():
        assert torch.equal(found[name], parameter.grad), name


def test_a_module_of_the_supernet_that_is_replaced_is_the_one_that_counts(net):
    net.eval()(X, SPACE.smallest)
    net.last = nn.Conv2d(6, 5, 1)
    for arch in SPACE:
        assert torch.equal(net(X, arch), net.extract(arch)(X))
