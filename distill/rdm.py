"""Representational dissimilarity: how alike two networks see the same images, whatever their widths and layers.

Teacher Guided Architecture Search (Bashivan, Tensen & DiCarlo, arXiv 1808.01405) scores a candidate by its accuracy
after little training plus a weight times `teacher_guidance`, how well its layers tell images apart in the way that the
teacher's layers do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

# n images, D activations of an image, P = n (n - 1) / 2 pairs of different images, L layers

Correlation = Literal["pearson", "spearman"]


def dissimilarity(activations: Tensor) -> Tensor:
    """The representational dissimilarity matrix of one layer: 1 - Pearson correlation of each pair of images.

    Of activations [n, ...] gives [n, n] in float32 at least, symmetric, 0 on the diagonal, from 0 (the same pattern of
    activations) to 2 (opposite). Large means and extreme scales cost no digits; an image whose activations are all
    equal correlates with none (1). Costs n^2 D. ValueError for fewer than two activations.
    """
    rows = activations.flatten(1) if activations.dim() > 1 else activations[:, None]
    if rows.shape[1] < 2:
        raise ValueError(f"a correlation needs at least two activations of each image, not {list(activations.shape)}")
    rows = _standardise(rows.to(torch.promote_types(rows.dtype, torch.float32)))
    return (1 - rows @ rows.T).clamp(0, 2).fill_diagonal_(0)


def rdm_similarity(a: Tensor, b: Tensor, method: Correlation = "pearson") -> float:
    """How alike two dissimilarity matrices [n, n] of the same images are, from -1 to 1, higher is more alike.

    The Pearson or Spearman correlation of their upper triangles, the diagonal left out; ties have their mean rank.
    0 if all entries of one are equal. ValueError for matrices of different or fewer than three images.
    """
    return _similarities([a], [b], method).item()


def teacher_guidance(student: Sequence[Tensor], teacher: Sequence[Tensor], method: Correlation = "pearson") -> float:
    """How well a student's layers match a teacher's, from -1 to 1, higher is better (arXiv 1808.01405, section 3.1).

    mean over teacher layers of the maximum over student layers of `rdm_similarity`. `student` and `teacher` are the
    dissimilarity matrices [n, n] of their layers for the same images.
    """
    return _similarities(teacher, student, method).amax(dim=1).mean().item()


def _similarities(a: Sequence[Tensor], b: Sequence[Tensor], method: Correlation) -> Tensor:
    """The similarity of each matrix of `a` with each of `b` [L_a, L_b]."""
    if not a or not b:
        raise ValueError(f"there are no layers to compare: {len(a)} and {len(b)} dissimilarity matrices")
    count = len(a[0])
    if count < 3 or any(matrix.shape != (count, count) for matrix in (*a, *b)):
        shapes = sorted({str(list(matrix.shape)) for matrix in (*a, *b)})
        raise ValueError(f"dissimilarity matrices are of the same three or more images, not {', '.join(shapes)}")
    if method not in ("pearson", "spearman"):
        raise ValueError(f"the method is 'pearson' or 'spearman', not {method!r}")
    row, column = torch.triu_indices(count, count, offset=1, device=a[0].device)
    first, second = (torch.stack([matrix[row, column] for matrix in matrices]).double() for matrices in (a, b))
    if method == "spearman":
        first, second = (torch.stack([_ranks(values) for values in triangles]) for triangles in (first, second))
    return (_standardise(first) @ _standardise(second).T).clamp(-1, 1)


def _standardise(rows: Tensor) -> Tensor:
    """Every row with mean 0 and length 1, so that products are correlations; rows of equal entries become 0."""
    rows = rows - rows[:, :1]  # exact zeros for equal entries, and a large mean does not swamp the rest
    rows = rows - rows.mean(dim=1, keepdim=True)
    largest = rows.abs().amax(dim=1, keepdim=True)
    return normalize(rows / largest.where(largest > 0, 1), dim=1)


def _ranks(values: Tensor) -> Tensor:
    """Ranks from 1, ties at their mean."""
    _, position, counts = torch.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2).to(values.dtype)[position]
