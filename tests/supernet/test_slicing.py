import pytest
import torch
from torch import nn

from supernet.slicing import blocks, centred, leading, rule_for, take


def test_leading_keeps_the_first_entries_of_every_dimension():
    tensor = torch.arange(12).reshape(3, 4)
    assert leading(tensor, torch.Size((2, 3))).tolist() == [[0, 1, 2], [4, 5, 6]]


def test_centred_keeps_leading_channels_and_the_middle_of_the_kernel():
    kernel = torch.arange(2 * 25).reshape(2, 1, 5, 5)
    assert centred(kernel, torch.Size((1, 1, 3, 3))).tolist() == [[[[6, 7, 8], [11, 12, 13], [16, 17, 18]]]]
    assert centred(kernel, torch.Size((1, 1, 3, 1))).flatten().tolist() == [7, 12, 17]


def test_blocks_slices_every_block_on_its_own():
    tensor = torch.arange(12).reshape(6, 2)  # three blocks of two rows
    assert blocks(3)(tensor, torch.Size((3, 1))).tolist() == [[0], [4], [8]]


@pytest.mark.parametrize(
    ("layer", "rule"), [(nn.Conv2d(1, 1, 3), centred), (nn.Conv1d(1, 1, 3), centred), (nn.Linear(1, 1), leading)]
)
def test_kernels_are_centred_and_all_else_leads(layer, rule):
    assert rule_for(layer, "weight") is rule
    assert rule_for(layer, "bias") is leading


@pytest.mark.parametrize("rule", [leading, blocks(2)])
def test_gradients_land_in_the_part_and_nowhere_else(rule):
    shared = torch.arange(16.0).reshape(4, 4).requires_grad_()
    take(shared, torch.Size((2, 3)), rule).backward(torch.tensor([[1.0, 2, 3], [4, 5, 6]]))
    rows = (0, 1) if rule is leading else (0, 2)
    expected = torch.zeros(4, 4)
    expected[rows, :3] = torch.tensor([[1.0, 2, 3], [4, 5, 6]])
    assert torch.equal(shared.grad, expected)


def test_a_whole_tensor_is_passed_on_and_a_vector_is_a_view():
    tensor = torch.zeros(4, 4)
    assert take(tensor, tensor.shape, leading) is tensor
    statistics = torch.zeros(4)
    take(statistics, torch.Size((2,)), leading).add_(1)
    assert statistics.tolist() == [1, 1, 0, 0]


def test_a_part_of_a_weight_is_dense_in_the_format_of_the_whole():
    weight = torch.randn(8, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    part = take(weight, torch.Size((4, 2, 3, 3)), centred)
    assert part.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(part, weight[:4, :2])
    assert take(torch.randn(8, 8), torch.Size((4, 4)), leading).is_contiguous()


@pytest.mark.parametrize(
    ("rule", "shape"), [(leading, (4, 3, 5, 5)), (centred, (2, 3, 3, 3)), (blocks(2), (2, 3, 5, 5))]
)
def test_accumulating_adds_to_the_gradient_what_autograd_would(rule, shape):
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(6, 4, 5, 5, generator=generator).requires_grad_()
    weight = torch.randn(shape, generator=generator)
    (take(whole, torch.Size(shape), rule) * weight).sum().backward()
    expected = whole.grad
    whole.grad = None
    for times in (1, 2):
        (take(whole, torch.Size(shape), rule, accumulate=True) * weight).sum().backward()
        assert torch.equal(whole.grad, times * expected)
