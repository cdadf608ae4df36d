import pytest
import torch
from torch import nn

from supernet.evaluation import expected_calibration_error, quality


class Table(nn.Module):
    """Takes [N, 1, 1, 1] numbers of rows of a fixed table of probabilities; gives their logarithms."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x):
        return self.rows[x.flatten().long()].log()


def test_calibration_error_by_hand():
    # bins of (0, 1/2] and (1/2, 1]: two of confidence 0.5, one right; three of 0.9, 0.9 and 0.6, one right
    confidences = torch.tensor([0.5, 0.5, 0.9, 0.9, 0.6])
    correct = torch.tensor([True, False, True, False, False])
    expected = (2 * abs(1 / 2 - 0.5) + 3 * abs(1 / 3 - 0.8)) / 5
    assert expected_calibration_error(confidences, correct, bins=2) == pytest.approx(expected)


def test_a_gap_in_one_bin_is_not_made_up_for_in_another():
    confidences, correct = torch.tensor([0.25, 1.0]), torch.tensor([True, False])
    assert expected_calibration_error(confidences, correct) == pytest.approx((0.75 + 1) / 2)
    assert expected_calibration_error(confidences, correct, bins=1) == pytest.approx(0.25 / 2)


def test_top1_and_top5_over_batches():
    rows = [[0.4, 0.3, 0.1, 0.09, 0.06, 0.05], [0.1, 0.5, 0.1, 0.1, 0.1, 0.1]]
    model = Table(rows)
    images = torch.tensor([0.0, 0.0, 0.0, 1.0]).view(4, 1, 1, 1)
    labels = torch.tensor([0, 1, 5, 1])
    found = quality(model, [(images[:3], labels[:3]), (images[3:], labels[3:])])
    assert found.top1 == 2 / 4
    assert found.top5 == 3 / 4
    # confidences 0.4 (one of three right) and 0.5 (right), in different bins of 1/15
    assert found.calibration_error == pytest.approx((3 * abs(1 / 3 - 0.4) + 0.5) / 4)


def test_a_network_that_always_says_the_same_is_right_by_chance_alone():
    found = quality(Table([[1 / 6] * 6]), [(torch.zeros(6, 1, 1, 1), torch.arange(6))])
    assert found.top1 == pytest.approx(1 / 6)
    assert found.top5 == pytest.approx(5 / 6)
    assert found.calibration_error == pytest.approx(0, abs=1e-7)


def test_no_images_are_an_error():
    with pytest.raises(ValueError, match="no images"):
        quality(Table([[1.0]]), [])
