"""Distillation losses on features: pure functions of what a student's and a teacher's layers compute for one batch.

Every loss is a scalar, computed in float32 at least. The teacher is detached. Student and teacher may differ in
channels (and, except for attention, in resolution): what is compared is relations within each network's own features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# B batch, C channels, H height, W width, D features of an image


def attention_transfer(student: Tensor, teacher: Tensor, power: float = 2.0) -> Tensor:
    """Mean squared difference of attention maps (Zagoruyko & Komodakis, arXiv 1612.03928, eq. 2).

    mean over images and positions of (a_student - a_teacher)^2, where a = Q / ||Q||_2 [B, HW] and Q = sum_C |x|^power.
    The mean of squares is what the authors' code computes, with weight 1000; the paper writes the norm. Features are
    [B, C, H, W]; channels may differ, ValueError if images or positions do.
    """
    if student.dim() != 4 or teacher.dim() != 4 or student[:, 0].shape != teacher[:, 0].shape:
        raise ValueError(
            "attention maps are compared position by position: features [batch, channels, height, width] of the same "
            f"batch, height and width, not {list(student.shape)} and {list(teacher.shape)}"
        )
    return F.mse_loss(_attention(student, power), _attention(teacher.detach(), power))


def relational_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation of distances (Park et al., arXiv 1904.05068, section 3.2.1).

    mean over pairs of images of huber(d_student - d_teacher), where d_ij = ||x_i - x_j||_2 / mu, mu is the mean
    distance of different images, and huber(e) = e^2 / 2 up to 1, |e| - 1/2 beyond. The mean is over all B^2 pairs, an
    image with itself included, as in the authors' code. The paper's weight is 25. Features are [B, ...].
    """
    student, teacher = _rows(student, teacher)
    return F.smooth_l1_loss(_relative_distances(student), _relative_distances(teacher))


def relational_angle(student: Tensor, teacher: Tensor) -> Tensor:
    """Relational distillation of angles (Park et al., arXiv 1904.05068, section 3.2.2).

    mean over triples of images of huber(cos_student - cos_teacher), where cos_ijk is the cosine of the angle at x_j
    between x_i - x_j and x_k - x_j, 0 where two of them coincide, and huber is that of `relational_distance`. The mean
    is over all B^3 triples, as in the authors' code. The paper's weight is 50. Features are [B, ...]; takes memory for
    B^2 (B + D) numbers.
    """
    student, teacher = _rows(student, teacher)
    return F.smooth_l1_loss(_angle_cosines(student), _angle_cosines(teacher))


def similarity_preserving(student: Tensor, teacher: Tensor) -> Tensor:
    """Images that look alike to the teacher shall look alike to the student (Tung & Mori, arXiv 1907.09682, eq. 1-4).

    ||G_student - G_teacher||_F^2 / B^2, where the rows of G = X X^T [B, B] are scaled to unit length and X holds an
    image's activations in each row. The paper's weight is 3000. Features are [B, ...].
    """
    student, teacher = _rows(student, teacher)
    return F.mse_loss(F.normalize(student @ student.T, dim=1), F.normalize(teacher @ teacher.T, dim=1))


def _attention(features: Tensor, power: float) -> Tensor:
    return F.normalize(_at_least_float32(features).abs().pow(power).sum(dim=1).flatten(1), dim=1)


def _relative_distances(rows: Tensor) -> Tensor:
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")  # exact for near neighbours
    mean = distances.sum() / (distances > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=torch.finfo(mean.dtype).tiny)


def _angle_cosines(rows: Tensor) -> Tensor:
    directions = F.normalize(rows[None] - rows[:, None], dim=2)  # [B at j, B to i, D]
    return directions @ directions.transpose(1, 2)  # [B at j, B i, B k]


def _rows(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both as [B, D], the teacher detached."""
    if student.dim() < 2 or teacher.dim() < 2 or len(student) != len(teacher):
        raise ValueError(
            "student and teacher need features [batch, ...] of the same images, "
            f"not {list(student.shape)} and {list(teacher.shape)}"
        )
    return _at_least_float32(student).flatten(1), _at_least_float32(teacher.detach()).flatten(1)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
