"""Images to any number of classes each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from supernet.space import Arch
from supernet.tasks.classification import Classification
from supernet.tasks.task import Task

# N images, C channels, R resolution in pixels, K classes

Marked = tuple[Tensor, Tensor]  # images [N, C, R, R], and for each class whether they show it [N, K], 1 or 0


@dataclass(frozen=True)
class MultiLabel(Task):
    """Images [N, C, R, R] with marks [N, K], 1 for the classes that an image shows and 0 for the others; outputs are
    logits [N, K], each of a class by itself.

    The first metric, mAP, is over all images at once, so that logits and marks of all are in memory, 8 K bytes an
    image; it is no mean over images.
    """

    images: Classification
    """By which images are prepared and checked, and which says K."""

    input_names: ClassVar = ("images",)
    output_names: ClassVar = ("logits",)
    metric: ClassVar = "mean_average_precision"
    uninformed_loss: ClassVar = math.log(2)  # of even chances

    def inputs(self, batch: Marked, arch: Arch | None) -> tuple[Tensor]:
        return self.images.inputs(batch, arch)

    def loss(self, output: Tensor, batch: Marked) -> Tensor:
        """Binary cross-entropy, the mean over images and classes."""
        return F.binary_cross_entropy_with_logits(output, batch[1].to(output.dtype))

    def distil(self, output: Tensor, teacher_output: Tensor, batch: Marked) -> Tensor:
        """KL divergence of the probability of each class from the teacher's, the mean over images and classes."""
        taught = teacher_output.sigmoid()
        own = F.binary_cross_entropy_with_logits(output, taught)
        return own - F.binary_cross_entropy_with_logits(teacher_output, taught)

    def metrics(self, outputs: Iterable[Tensor], batches: Iterable[Marked]) -> dict[str, float]:
        """`mean_average_precision`, the mean of `average_precisions` over the classes that any image shows, and `f1`,
        2 TP / (2 TP + FP + FN) over all images and classes, where a class is answered if its logit is above 0."""
        pairs = [(output.float().cpu(), batch[1].cpu()) for output, batch in zip(outputs, batches)]
        logits, marks = (torch.cat(own).numpy() for own in zip(*pairs))
        answered, shown = logits > 0, marks > 0
        found = average_precisions(logits, marks)
        some = np.isfinite(found).any()
        total = answered.sum() + shown.sum()
        return {
            "mean_average_precision": float(np.nanmean(found)) if some else 0.0,
            "f1": float(2 * (answered & shown).sum() / total) if total else 0.0,
        }

    def check_batch(self, batch: Marked) -> None:
        images, marks = batch[:2]
        if marks.dim() != 2 or marks.shape[1] != self.images.num_classes or marks.min() < 0 or marks.max() > 1:
            raise ValueError(
                f"marks are {list(marks.shape)} from {marks.min():g} to {marks.max():g}, and should be 0 or 1, "
                f"[N, {self.images.num_classes}]"
            )
        self.images.check_batch((images, torch.zeros(1, dtype=torch.int64)))

    def check_output(self, output: object) -> None:
        self.images.check_output(output)


def average_precisions(scores: np.ndarray, marks: np.ndarray) -> np.ndarray:
    """The average precision [K] of each class, 0 to 1, higher is better; NaN for a class that no image shows.

    AP_k = sum_n (R_n - R_(n-1)) P_n over the distinct scores [N, K] of the class, from the highest on, where P_n and
    R_n are precision and recall of the images with at least that score (scikit-learn's; no interpolation).
    """
    from sklearn.metrics import average_precision_score

    return np.array(
        [
            average_precision_score(marks[:, k] > 0, scores[:, k]) if (marks[:, k] > 0).any() else np.nan
            for k in range(marks.shape[1])
        ]
    )
