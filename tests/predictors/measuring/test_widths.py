import pytest

from predictors import this_device
from predictors.measuring.widths import STEPS, least_step, liked_step


@pytest.mark.parametrize("block", STEPS)
def test_the_step_is_the_block_that_a_device_computes_in(block):
    assert least_step(lambda widths: [(-(-width // block)) ** 2 for width in widths]) == block


def test_widths_that_are_no_multiple_may_be_slower_than_more_channels():
    assert least_step(lambda widths: [width**2 * (3 if width % 8 else 1) for width in widths]) == 8


def test_a_device_that_takes_as_long_for_all_likes_no_step():
    assert least_step(lambda widths: [1.0 for _ in widths]) == STEPS[-1]


def test_this_device_is_asked():
    assert liked_step(this_device("onnxruntime"), turns=1) in STEPS
