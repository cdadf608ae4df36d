"""Companions: modules that are trained beside a network and thrown away, such as connectors to a teacher's features.

They are no part of the network: neither saved with it, nor counted, nor exported. Features are [B, C, H, W], tokens
[B, N, C] or vectors [B, C]; what connects two of them is linear in the channels of each position, a 1x1 convolution.

Of a network with fewer channels than a companion was made for, such as a subnet's, the channels are the leading ones,
and so are the companion's weights that are used.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# B batch, C channels, H height, W width, N tokens, K classes


class Hint(nn.Module):
    """The distance of the teacher's features from a linear function r of the student's, which is learnt with it.

    mean over images, positions and the teacher's channels of (teacher - r(student))^2. FitNets (Romero et al., arXiv
    1412.6550, equation 3) sums the squares and halves the sum, and trains by this first and by the teacher's answers
    afterwards; here it is one of the losses of a step.
    """

    def __init__(self, student_channels: int, teacher_channels: int) -> None:
        super().__init__()
        self.regressor = nn.Linear(student_channels, teacher_channels)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _same_positions(student, teacher)
        return F.mse_loss(_leading(self.regressor, student, teacher.shape[-1]).float(), teacher)


class VariationalInformation(nn.Module):
    """Minus the log-likelihood of the teacher's features t by a normal distribution that the student's s predict, up to
    a constant (VID: Ahn et al., arXiv 1904.05835):

        mean over images, positions and channels c of log(v_c) / 2 + (t_c - m_c(s))^2 / (2 v_c)

    The means m are three layers of 1x1 convolutions with ReLUs between; the variance v_c = log(1 + exp(a_c)) + `least`
    is learnt for each channel and the same everywhere, and begins with `initial`.
    """

    def __init__(self, student_channels: int, teacher_channels: int, initial: float = 5.0, least: float = 1e-5) -> None:
        super().__init__()
        width = teacher_channels
        self.mean = nn.Sequential(
            nn.Linear(student_channels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.least = least
        self.raw_variance = nn.Parameter(torch.full((teacher_channels,), initial - least).expm1().log())

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        student, teacher = _same_positions(student, teacher)
        first, *middle, last = self.mean
        hidden = _leading(first, student)
        for layer in middle:
            hidden = layer(hidden)
        mean = _leading(last, hidden, teacher.shape[-1]).float()
        variance = F.softplus(self.raw_variance[: teacher.shape[-1]]) + self.least
        return (variance.log() / 2 + (teacher - mean).square() / (2 * variance)).mean()


class Head(nn.Module):
    """Logits [B, K] from the mean of features over their positions: an auxiliary classifier."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        last = channels_last(features)
        return _leading(self.classifier, last.flatten(1, -2).mean(1) if last.dim() > 2 else last).float()


def channels(features: Tensor) -> int:
    """How many channels features have."""
    return channels_last(features).shape[-1]


def channels_last(features: Tensor) -> Tensor:
    """[B, C, H, W] as [B, H, W, C]; tokens and vectors as they are. ValueError for anything else."""
    if features.dim() not in (2, 3, 4):
        raise ValueError(f"features are [B, C, H, W], [B, N, C] or [B, C], not {list(features.shape)}")
    return features.permute(0, 2, 3, 1) if features.dim() == 4 else features


def _leading(layer: nn.Linear, features: Tensor, outputs: int | None = None) -> Tensor:
    """What `layer` makes of features that have its leading inputs: its leading `outputs`, or all."""
    return F.linear(features, layer.weight[:outputs, : features.shape[-1]], layer.bias[:outputs])


def _same_positions(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both with channels last, the teacher in float32, without gradient; ValueError if images or positions differ."""
    own, taught = channels_last(student), channels_last(teacher.detach()).float()
    if own.shape[:-1] != taught.shape[:-1]:
        raise ValueError(
            "a student's and a teacher's features are compared position by position: of the same batch, height and "
            f"width, not {list(student.shape)} and {list(teacher.shape)}"
        )
    return own, taught
