"""Distillation losses on logits: pure functions of what a student and a teacher answer.

Every loss is a scalar, the mean over the batch, computed in float32 at least. The teacher is detached: gradients reach
the student alone. The loss on labels is torch's own, `F.cross_entropy(logits, labels, label_smoothing=0.1)`.

Some published methods use these losses as they are and differ in what is trained when, so they have no function here:
born-again networks (Furlanello et al., arXiv 1805.04770) train students of the teacher's own architecture, one after
another, each on the one before it, with `soft_cross_entropy`; a teacher assistant (Mirzadeh et al., arXiv 1902.03393)
is a network of middle size that learns from the teacher and then teaches the student, both with `kl_divergence` at a
temperature beside the labels. In-place distillation (BigNAS, arXiv 2003.11142) is `soft_cross_entropy` on the logits of
the supernet's largest subnet.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# B batch, K classes; p teacher's and q student's probabilities [B, K]


def soft_cross_entropy(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Cross-entropy on soft targets, T^2 * mean_B(-sum_K p log q), p = softmax(teacher / T), q = softmax(student / T).

    The factor T^2 keeps the size of the gradient as T changes (Hinton et al., arXiv 1503.02531, section 2). Differs
    from `kl_divergence` by the teacher's entropy, a constant: the gradients are the same. Logits are [B, K].
    """
    _check(student_logits, teacher_logits, temperature)
    targets = _log_probabilities(teacher_logits.detach() / temperature).exp()
    return -(temperature**2) * (targets * _log_probabilities(student_logits / temperature)).sum(dim=1).mean()


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 * mean_B KL(p || q) = T^2 * mean_B sum_K p (log p - log q), with p and q as in `soft_cross_entropy`.

    Zero where the student agrees with the teacher, positive elsewhere. Logits are [B, K].
    """
    _check(student_logits, teacher_logits, temperature)
    log_q = _log_probabilities(student_logits / temperature)
    log_p = _log_probabilities(teacher_logits.detach() / temperature)
    return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def mutual_learning(outputs: Sequence[Any], divergence: Callable[[Any, Any], Tensor] = kl_divergence) -> Tensor:
    """Deep mutual learning: what N networks that train side by side learn from each other (arXiv 1706.00384, eq. 9).

    sum_n 1 / (N - 1) sum_{m != n} D(own n, peer m). Outputs are logits [B, K], and the divergence is KL(p_m || p_n) of
    their probabilities, unless another is given; it has a gradient for the network's own output alone. Each network
    adds its own loss on the labels.
    """
    if len(outputs) < 2:
        raise ValueError(f"mutual learning needs the outputs of at least two networks, not {len(outputs)}")
    pairs = itertools.permutations(outputs, 2)
    return torch.stack([divergence(own, peer) for own, peer in pairs]).sum() / (len(outputs) - 1)


def alpha_divergence(student_logits: Tensor, teacher_logits: Tensor, alpha: float, clip: float | None = None) -> Tensor:
    """The alpha-divergence of the student from the teacher, mean over the batch (AlphaNet, arXiv 2102.07954, eq. 4-6).

    D_alpha(p || q) = sum_K q [(p / q)^alpha - 1] / (alpha (alpha - 1)), with its limits KL(p || q) at alpha = 1 and
    KL(q || p) at alpha = 0. A negative alpha punishes a student that is less sure than the teacher (q large where p
    is small), a positive one a student that is surer (q small where p is not).

    Its gradient is -1/alpha sum_K q (p / q)^alpha grad(log q). With `clip` the importance weights (p / q)^alpha are cut
    off there, both in the value and in the gradient. This bounds the gradient, but makes it the paper's estimator: it
    is no longer that of the value. Nothing is clipped at alpha = 0 and 1, where the gradient needs no bound (nor
    does the authors' code at 1). Without clipping, a negative alpha and a very sure teacher give huge losses.
    Logits are [B, K].
    """
    _check(student_logits, teacher_logits)
    return _alpha_divergence(student_logits, teacher_logits, alpha, clip).mean()


def adaptive_alpha_divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    alpha_min: float = -1.0,
    alpha_max: float = 1.0,
    clip: float | None = 5.0,
) -> Tensor:
    """For each image the larger of two clipped alpha-divergences, mean over the batch (AlphaNet, arXiv 2102.07954).

    mean_B max(D_alpha_min(p || q), D_alpha_max(p || q)), so that a student is corrected whether it is too sure or not
    sure enough; see `alpha_divergence`. The defaults are the paper's. Logits are [B, K].
    """
    _check(student_logits, teacher_logits)
    low = _alpha_divergence(student_logits, teacher_logits, alpha_min, clip)
    high = _alpha_divergence(student_logits, teacher_logits, alpha_max, clip)
    return torch.where(low > high, low, high).mean()


def _alpha_divergence(student_logits: Tensor, teacher_logits: Tensor, alpha: float, clip: float | None) -> Tensor:
    """D_alpha of each image [B]: the value of the (clipped) divergence with the gradient of the paper's estimator."""
    if clip is not None and clip < 1:
        raise ValueError(f"importance weights are clipped at 1 or more (1 where student and teacher agree), not {clip}")
    log_q = _log_probabilities(student_logits)
    with torch.no_grad():
        log_p = _log_probabilities(teacher_logits)
        log_ratio, q = log_p - log_q, log_q.exp()
        # -sum_K weights grad(log q) is the gradient; a constant in (p / q)^alpha has none, as sum_K q is 1
        if alpha == 1:
            weights = log_p.exp() - q
            value = (log_p.exp() * log_ratio).sum(dim=1)
        else:
            limit = torch.finfo(q.dtype).max if clip is None else clip - 1
            excess = (alpha * log_ratio).expm1().clamp(max=limit)  # (p / q)^alpha - 1
            weights = q * (log_ratio if alpha == 0 else excess / alpha)
            value = weights.sum(dim=1) / (alpha - 1)
    surrogate = -(weights * log_q).sum(dim=1)
    return value + surrogate - surrogate.detach()


def _log_probabilities(logits: Tensor) -> Tensor:
    return F.log_softmax(logits, dim=1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _check(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0) -> None:
    if student_logits.dim() != 2 or student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"student and teacher need logits of the same shape [batch, classes], not {list(student_logits.shape)} "
            f"and {list(teacher_logits.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"the temperature is positive, not {temperature}")
