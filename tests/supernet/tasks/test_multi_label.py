"""Any number of classes an image: the loss, what a teacher teaches, and the mean average precision."""

import math

import numpy as np
import pytest
import torch

from supernet.families.named import make_family
from supernet.tasks import Classification, MultiLabel
from supernet.tasks.multi_label import average_precisions

TASK = MultiLabel(Classification(3, 3))
DRAW = torch.Generator().manual_seed(0)
LOGITS, TAUGHT = torch.randn(6, 3, generator=DRAW), torch.randn(6, 3, generator=DRAW)
MARKS = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]], dtype=torch.float32)
IMAGES = torch.zeros(6, 3, 8, 8)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_the_loss_is_the_mean_cross_entropy_of_each_class_by_itself():
    terms = [
        -math.log(sigmoid(logit) if mark else 1 - sigmoid(logit))
        for logit, mark in zip(LOGITS.flatten().tolist(), MARKS.flatten().tolist())
    ]
    assert TASK.loss(LOGITS, (IMAGES, MARKS)).item() == pytest.approx(np.mean(terms), rel=1e-5)
    assert TASK.loss(torch.zeros(6, 3), (IMAGES, MARKS)).item() == pytest.approx(TASK.uninformed_loss)


def test_a_student_lowers_the_divergence_of_each_probability():
    terms = []
    for own, taught in zip(LOGITS.flatten().tolist(), TAUGHT.flatten().tolist()):
        p, q = sigmoid(taught), sigmoid(own)
        terms.append(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)))
    assert TASK.distil(LOGITS, TAUGHT, (IMAGES, MARKS)).item() == pytest.approx(np.mean(terms), rel=1e-4)
    assert TASK.distil(TAUGHT, TAUGHT, (IMAGES, MARKS)).item() == pytest.approx(0, abs=1e-7)


def test_average_precision_by_hand():
    """From the highest score on: hit, miss, hit, miss gives (1 / 1 + 2 / 3) / 2."""
    scores = np.array([[4.0], [3.0], [2.0], [1.0]])
    marks = np.array([[1.0], [0.0], [1.0], [0.0]])
    assert average_precisions(scores, marks) == pytest.approx([(1 + 2 / 3) / 2])


def test_average_precision_is_the_mean_precision_at_each_hit():
    draw = np.random.default_rng(0)
    scores, marks = draw.standard_normal((50, 4)), draw.integers(0, 2, (50, 4)).astype(float)
    for k, found in enumerate(average_precisions(scores, marks)):
        order = np.argsort(-scores[:, k])
        hits = marks[order, k]
        assert found == pytest.approx((np.cumsum(hits) / np.arange(1, 51))[hits > 0].mean())


def test_metrics_are_over_all_batches_and_the_classes_that_are_shown():
    parts = [(IMAGES[:2], MARKS[:2]), (IMAGES[2:], MARKS[2:])]
    found = TASK.metrics([LOGITS[:2], LOGITS[2:]], parts)
    expected = average_precisions(LOGITS[:, :2].numpy(), MARKS[:, :2].numpy()).mean()
    assert found["mean_average_precision"] == pytest.approx(expected)
    assert next(iter(found)) == TASK.metric
    answered, shown = LOGITS > 0, MARKS > 0
    right = (answered & shown).sum().item()
    wrong = (answered != shown).sum().item()  # false positives and false negatives
    assert found["f1"] == pytest.approx(2 * right / (2 * right + wrong))
    assert TASK.metrics([-LOGITS.abs()], [(IMAGES, torch.zeros(6, 3))]) == {"mean_average_precision": 0.0, "f1": 0.0}


@pytest.mark.parametrize("marks", [MARKS[:, :2], MARKS * 2, MARKS - 1, MARKS[:, 0]])
def test_what_are_no_marks_is_refused(marks):
    TASK.check_batch((IMAGES, MARKS))
    TASK.check_batch((IMAGES, MARKS, torch.zeros(len(IMAGES), dtype=torch.int64)))  # of a second task
    with pytest.raises(ValueError, match=r"marks are .* and should be 0 or 1, \[N, 3\]"):
        TASK.check_batch((IMAGES, marks))


def test_data_say_that_images_have_several_labels():
    arguments = {"num_classes": 4, "several_labels": True}
    family = make_family("mobilenet_v3_micro", "{}", arguments)
    assert family.task == MultiLabel(make_family("mobilenet_v3_micro", "{}", {"num_classes": 4}).task)
    assert family.space == make_family("mobilenet_v3_micro", "{}", {"num_classes": 4}).space
    texts = {"num_classes": 4, "vocabulary": 100, "padding": 0, "length": 16}
    with pytest.raises(ValueError, match="the images have several labels each, and the space 'text_encoder'"):
        make_family("text_encoder", "{}", texts | {"several_labels": True})
