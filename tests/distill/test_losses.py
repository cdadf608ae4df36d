import math

import pytest
import torch
import torch.nn.functional as F

from distill.losses import (
    adaptive_alpha_divergence,
    alpha_divergence,
    kl_divergence,
    mutual_learning,
    soft_cross_entropy,
)

# one image, two classes: p = (3/4, 1/4), q = (1/2, 1/2)
TEACHER = torch.tensor([[math.log(3), 0.0]], dtype=torch.float64)
STUDENT = torch.zeros(1, 2, dtype=torch.float64)
KL_PQ = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
KL_QP = -0.5 * math.log(1.5) - 0.5 * math.log(0.5)


def logits(seed: int, scale: float = 1.5, shape=(6, 5)) -> torch.Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def defined_divergence(student: torch.Tensor, teacher: torch.Tensor, alpha: float) -> torch.Tensor:
    """D_alpha of each image, as it is defined."""
    q, p = student.softmax(dim=1), teacher.softmax(dim=1)
    return (q * ((p / q) ** alpha - 1)).sum(dim=1) / (alpha * (alpha - 1))


def finite_differences(function, at: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        shift = torch.zeros_like(at)
        shift.view(-1)[index] = step
        gradient.view(-1)[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


def gradient(loss, student: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    student = student.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(student, *args, **kwargs), student)
    return result


def test_hand_worked_values():
    assert soft_cross_entropy(STUDENT, TEACHER).item() == pytest.approx(math.log(2))
    assert kl_divergence(STUDENT, TEACHER).item() == pytest.approx(KL_PQ)
    assert alpha_divergence(STUDENT, TEACHER, alpha=1).item() == pytest.approx(KL_PQ)
    assert alpha_divergence(STUDENT, TEACHER, alpha=0).item() == pytest.approx(KL_QP)
    # 1/2 (sum q^2 / p - 1) = 1/2 (1/3 + 1 - 1) = 1/6; alpha = 2: 1/2 (sum p^2 / q - 1) = 1/2 (9/8 + 1/8 - 1) = 1/8
    assert alpha_divergence(STUDENT, TEACHER, alpha=-1).item() == pytest.approx(1 / 6)
    assert alpha_divergence(STUDENT, TEACHER, alpha=2).item() == pytest.approx(1 / 8)
    # weights q / p = (2/3, 2), the second clipped at 1.5: 1/2 (1/2 2/3 + 1/2 3/2 - 1) = 1/24
    assert alpha_divergence(STUDENT, TEACHER, alpha=-1, clip=1.5).item() == pytest.approx(1 / 24)


def test_temperature_softens_and_scales():
    teacher, student = logits(0), logits(1)
    temperature = 4.0
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    kl = (p * (p / q).log()).sum(1).mean()
    entropy = -(p * p.log()).sum(1).mean()
    torch.testing.assert_close(kl_divergence(student, teacher, temperature), 16 * kl)
    torch.testing.assert_close(soft_cross_entropy(student, teacher, temperature), 16 * (kl + entropy))
    torch.testing.assert_close(
        gradient(kl_divergence, student, teacher, temperature),
        gradient(soft_cross_entropy, student, teacher, temperature),
    )


def test_soft_cross_entropy_is_torchs_on_probabilities():
    teacher, student = logits(0), logits(1)
    torch.testing.assert_close(soft_cross_entropy(student, teacher), F.cross_entropy(student, teacher.softmax(1)))


@pytest.mark.parametrize("alpha", [-1.0, -0.3, 0.4, 0.999, 2.0])
def test_alpha_divergence_and_its_gradient_are_those_of_the_definition(alpha):
    teacher, student = logits(2), logits(3)
    torch.testing.assert_close(
        alpha_divergence(student, teacher, alpha), defined_divergence(student, teacher, alpha).mean()
    )
    expected = finite_differences(lambda at: defined_divergence(at, teacher, alpha).mean(), student)
    torch.testing.assert_close(gradient(alpha_divergence, student, teacher, alpha), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_kl_is_the_limit(alpha):
    teacher, student = logits(4), logits(5)
    limit = kl_divergence(student, teacher) if alpha else kl_divergence(teacher, student)
    torch.testing.assert_close(alpha_divergence(student, teacher, alpha), limit)
    near = alpha_divergence(student, teacher, alpha + 1e-6)
    torch.testing.assert_close(near, limit, rtol=1e-4, atol=1e-7)
    expected = finite_differences(lambda at: alpha_divergence(at, teacher, alpha), student)
    torch.testing.assert_close(gradient(alpha_divergence, student, teacher, alpha), expected, rtol=1e-6, atol=1e-8)


def test_clipped_gradient_is_the_estimator():
    teacher, student = logits(6, scale=3), logits(7, scale=3)
    p, q = teacher.softmax(1), student.softmax(1)
    weights = (q / p).clamp(max=5.0)
    assert (weights == 5).any()
    at = student.clone().requires_grad_()
    estimator = (q * weights * at.log_softmax(1)).sum(1).mean()  # -1 / alpha at alpha = -1
    (expected,) = torch.autograd.grad(estimator, at)
    torch.testing.assert_close(gradient(alpha_divergence, student, teacher, -1.0, clip=5.0), expected)
    torch.testing.assert_close(
        alpha_divergence(student, teacher, -1.0, clip=5.0), ((q * weights).sum(1) - 1).mean() / 2
    )


def test_adaptive_takes_the_larger_of_the_two_for_each_image():
    sure, unsure = [6.0, 0.0, 0.0], [1.0, 0.0, 0.0]
    student = torch.tensor([sure, unsure], dtype=torch.float64)
    teacher = torch.tensor([unsure, sure], dtype=torch.float64)
    per_image = [
        [alpha_divergence(s[None], t[None], alpha).item() for alpha in (-1, 1)] for s, t in zip(student, teacher)
    ]
    assert per_image[0][0] < per_image[0][1]  # a student that is too sure
    assert per_image[1][0] > per_image[1][1]  # one that is not sure enough
    expected = sum(max(values) for values in per_image) / 2
    assert adaptive_alpha_divergence(student, teacher, clip=None).item() == pytest.approx(expected)


def test_adaptive_gradient_is_that_of_the_chosen_divergence():
    teacher, student = logits(8), logits(9)
    low, high = defined_divergence(student, teacher, -1), alpha_divergence_of_each(student, teacher, 1.0)
    chosen = low > high
    assert chosen.any()
    assert not chosen.all()

    def definition(at):
        larger = torch.where(chosen, defined_divergence(at, teacher, -1), alpha_divergence_of_each(at, teacher, 1.0))
        return larger.mean()

    expected = finite_differences(definition, student)
    torch.testing.assert_close(
        gradient(adaptive_alpha_divergence, student, teacher, clip=None), expected, rtol=1e-6, atol=1e-8
    )


def alpha_divergence_of_each(student, teacher, alpha):
    return torch.stack([alpha_divergence(s[None], t[None], alpha) for s, t in zip(student, teacher)])


@pytest.mark.parametrize(
    "loss",
    [
        soft_cross_entropy,
        kl_divergence,
        adaptive_alpha_divergence,
        lambda student, teacher: alpha_divergence(student, teacher, -1.0, clip=5.0),
    ],
)
def test_teacher_gets_no_gradient_and_extremes_stay_finite(loss):
    teacher = torch.tensor([[200.0, -200.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    student = torch.tensor([[-200.0, 200.0, 0.0], [300.0, 0.0, -300.0]], requires_grad=True)
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.isfinite().all()


def test_half_precision_is_computed_in_float32():
    teacher, student = logits(0), logits(1)
    half = adaptive_alpha_divergence(student.bfloat16(), teacher.bfloat16())
    assert half.dtype == torch.float32
    same = adaptive_alpha_divergence(student.bfloat16().float(), teacher.bfloat16().float())
    torch.testing.assert_close(half, same, rtol=0, atol=0)


def test_agreement_costs_nothing():
    student = logits(0)
    for loss in (kl_divergence, adaptive_alpha_divergence):
        assert loss(student, student).item() == pytest.approx(0, abs=1e-12)
        assert gradient(loss, student, student).abs().max() < 1e-12


def test_mutual_learning_of_two_and_three():
    assert mutual_learning([STUDENT, TEACHER]).item() == pytest.approx(KL_PQ + KL_QP)
    # each of the two that agree learns from the one that differs, at half weight; that one learns from both
    assert mutual_learning([STUDENT, TEACHER, STUDENT]).item() == pytest.approx(KL_PQ + KL_QP)
    first, second = logits(0).requires_grad_(), logits(1).requires_grad_()
    mutual_learning([first, second]).backward()
    torch.testing.assert_close(first.grad, gradient(kl_divergence, first.detach(), second.detach()))
    torch.testing.assert_close(second.grad, gradient(kl_divergence, second.detach(), first.detach()))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"\[6, 5\] and \[6, 4\]"):
        kl_divergence(logits(0), logits(1, shape=(6, 4)))
    with pytest.raises(ValueError, match="temperature is positive, not 0"):
        soft_cross_entropy(logits(0), logits(1), temperature=0)
    with pytest.raises(ValueError, match=r"not 0\.5"):
        alpha_divergence(logits(0), logits(1), alpha=-1, clip=0.5)
    with pytest.raises(ValueError, match="at least two networks, not 1"):
        mutual_learning([logits(0)])
