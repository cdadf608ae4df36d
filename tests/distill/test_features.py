import math

import pytest
import torch

from distill.features import attention_transfer, relational_angle, relational_distance, similarity_preserving

LOSSES = [attention_transfer, relational_distance, relational_angle, similarity_preserving]


def features(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.randn((4, channels, 2, 2), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def huber(error: float) -> float:
    return error**2 / 2 if abs(error) < 1 else abs(error) - 0.5


def test_attention_of_one_image():
    # sum of squares over channels: student (9 + 0, 0 + 16) = (9, 16), over its norm; teacher (1, 0)
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    teacher = torch.tensor([[[[5.0, 0.0]]]])
    norm = math.hypot(9, 16)
    expected = ((9 / norm - 1) ** 2 + (16 / norm) ** 2) / 2
    assert attention_transfer(student, teacher).item() == pytest.approx(expected)
    assert attention_transfer(student, teacher, power=1).item() == pytest.approx((0.4**2 + 0.8**2) / 2)


def test_distances_of_three_points():
    # student: 3, 4, 5 with mean 4; teacher: on a line 1, 1, 2 with mean 4/3
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0], [1.0], [-1.0]])
    errors = [3 / 4 - 3 / 4, 4 / 4 - 3 / 4, 5 / 4 - 6 / 4]
    expected = 2 * sum(map(huber, errors)) / 9
    assert relational_distance(student, teacher).item() == pytest.approx(expected)


def test_angles_of_three_points():
    # student: a right angle at the first point, 4/5 and 3/5 elsewhere; teacher: the first between the others
    student = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[0.0], [1.0], [-1.0]])
    errors = [0 - -1, 4 / 5 - 1, 3 / 5 - 1]
    expected = 2 * sum(map(huber, errors)) / 27  # an angle of a direction with itself is 0 in both
    assert relational_angle(student, teacher).item() == pytest.approx(expected)


def test_angles_equal_a_loop_over_triples():
    student, teacher = features(0), features(1, channels=2)

    def cosine(rows, i, j, k):
        first, second = rows[i] - rows[j], rows[k] - rows[j]
        norms = first.norm() * second.norm()
        return 0.0 if norms == 0 else (first @ second / norms).item()

    triples = [(i, j, k) for i in range(4) for j in range(4) for k in range(4)]
    pair = student.flatten(1), teacher.flatten(1)
    expected = sum(huber(cosine(pair[0], *t) - cosine(pair[1], *t)) for t in triples) / 64
    assert relational_angle(student, teacher).item() == pytest.approx(expected)


def test_similarity_of_two_images():
    # student: orthogonal images, the identity; teacher: equal images, every entry 1 / sqrt 2
    student = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    entry = math.sqrt(0.5)
    expected = 2 * ((1 - entry) ** 2 + entry**2) / 4
    assert similarity_preserving(student, teacher).item() == pytest.approx(expected)


@pytest.mark.parametrize("loss", LOSSES)
def test_scale_and_channel_order_do_not_matter_and_the_teacher_is_detached(loss):
    student, teacher = features(0).requires_grad_(), features(1, channels=5).requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.abs().max() > 0
    torch.testing.assert_close(loss(student, teacher), loss(7 * student.flip(1), 0.1 * teacher.flip(1)))
    assert loss(student, 3 * student).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_is_right_by_finite_differences(loss):
    teacher = features(1)
    assert torch.autograd.gradcheck(lambda student: loss(student, teacher), features(0).requires_grad_())


@pytest.mark.parametrize("loss", LOSSES)
def test_images_that_coincide_give_finite_gradients(loss):
    student = torch.zeros(4, 3, 2, 2, requires_grad=True)
    loss(student, features(1).float()).backward()
    assert student.grad.isfinite().all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[4, 3, 2, 2\] and \[4, 3, 1, 1\]"):
        attention_transfer(features(0), features(0)[..., :1, :1])
    for loss in (relational_distance, relational_angle, similarity_preserving):
        with pytest.raises(ValueError, match=r"\[4, 3, 2, 2\] and \[3, 3, 2, 2\]"):
            loss(features(0), features(0)[:3])
