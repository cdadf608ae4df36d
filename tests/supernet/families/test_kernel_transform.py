import torch
from torch import nn

from supernet import SearchSpace, Supernet
from supernet.families.kernel_transform import KernelTransform
from supernet.slicing import centred


def random_transform() -> KernelTransform:
    rule = KernelTransform((3, 5, 7))
    with torch.no_grad():
        for matrix in rule.parameters():
            matrix.normal_(generator=torch.Generator().manual_seed(0))
    return rule


def test_a_smaller_kernel_is_a_plain_centre_at_the_start():
    weight = torch.randn(8, 1, 7, 7)
    for size in (3, 5, 7):
        shape = torch.Size((4, 1, size, size))
        assert torch.equal(KernelTransform((3, 5, 7))(weight, shape), centred(weight, shape))


def test_every_size_comes_from_the_next_larger_one():
    rule, weight = random_transform(), torch.randn(2, 1, 7, 7)
    five, three = (rule(weight, torch.Size((2, 1, size, size))) for size in (5, 3))
    for channel in range(2):
        expected = rule.get_parameter("7to5_matrix") @ weight[channel, 0, 1:6, 1:6].flatten()
        assert torch.allclose(five[channel].flatten(), expected, atol=1e-5)
        expected = rule.get_parameter("5to3_matrix") @ five[channel, 0, 1:4, 1:4].flatten()
        assert torch.allclose(three[channel].flatten(), expected, atol=1e-5)


def test_as_a_rule_it_has_weights_of_its_own_for_every_layer_which_learn():
    space = SearchSpace({"kernel_size": (3, 5)})

    def build(arch):
        k = arch["kernel_size"]
        return nn.Sequential(*(nn.Conv2d(4, 4, k, padding=k // 2, groups=4) for _ in range(2)))

    net = Supernet(space, build, {"*.weight": KernelTransform((3, 5))})
    matrices = {name: p for name, p in net.named_parameters() if name.startswith("slicing_rules")}
    assert list(matrices) == [f"slicing_rules.{layer}/weight.5to3_matrix" for layer in (0, 1)]
    x = torch.randn(1, 4, 8, 8)
    net(x, space.largest).sum().backward()
    assert all(matrix.grad is None for matrix in matrices.values())
    net(x, space.smallest).sum().backward()
    assert all(matrix.grad.any() for matrix in matrices.values())
    with torch.no_grad():
        matrices["slicing_rules.0/weight.5to3_matrix"].mul_(2)
    model = net.extract(space.smallest)
    assert torch.equal(model[0].weight, 2 * net.get_parameter("0.weight")[:, :, 1:4, 1:4])
    assert torch.equal(model(x), net(x, space.smallest))
