import pytest
import torch
from torch import nn

from supernet.answers.answers import Answers, Bin, OfClass, answers_of, expected_calibration_error, quality


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


@pytest.fixture
def answers():
    """Five images of three classes, of which the second and the last are answered wrongly."""
    table = Table([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1]])
    images = torch.tensor([0.0, 0.0, 1.0, 2.0, 1.0]).view(5, 1, 1, 1)
    labels = torch.tensor([0, 1, 1, 1, 0])
    return answers_of(table, [(images[:2], labels[:2]), (images[2:], labels[2:])])


def test_what_classes_are_taken_for(answers):
    assert answers.confusion().tolist() == [[1, 1, 0], [1, 2, 0], [0, 0, 0]]
    assert answers.by_class() == [OfClass(2, 2, 1), OfClass(3, 3, 2), OfClass(0, 0, 0)]
    first, second, third = answers.by_class()
    assert (first.accuracy, second.precision) == (1 / 2, 2 / 3)
    assert (third.accuracy, third.precision) == (None, None)


def test_the_surest_errors_come_first(answers):
    assert answers.surest_errors(5) == [4, 1]  # with 0.8 and 0.7
    assert answers.surest_errors(1) == [4]


def test_reliability_is_what_the_calibration_error_is_made_of(answers):
    bins = answers.reliability(4)
    assert bins[0] == Bin(0.0, 0.25, 0, 0.0, 0.0)
    assert bins[2] == Bin(0.5, 0.75, 3, pytest.approx((0.7 + 0.7 + 0.6) / 3), pytest.approx(2 / 3))
    assert bins[3] == Bin(0.75, 1.0, 2, pytest.approx(0.8), 0.5)
    gaps = sum(own.images * abs(own.accuracy - own.confidence) for own in bins) / 5
    assert expected_calibration_error(answers.probabilities[:, 0], answers.right, 4) == pytest.approx(gaps)


def test_five_classes_of_many_are_kept():
    found = answers_of(Table([[1 / 8] * 8]), [(torch.zeros(2, 1, 1, 1), torch.tensor([0, 7]))])
    assert isinstance(found, Answers)
    assert found.classes.shape == (2, 5)
    assert found.confusion().shape == (8, 8)
