"""Combining scores that have nothing in common but their direction: by ranks, and by a vote."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# s scores, n architectures, m architectures of the reference

Rows = Sequence[Sequence[float]] | np.ndarray


def mean_rank(scores: Rows, reference: Rows | None = None) -> np.ndarray:
    """The mean over scores [s, n] of each architecture's rank [n], as a fraction in [0, 1]; higher is better.

    A rank is the fraction of the reference [s, m] that the score beats, ties counting half; the reference are the
    architectures themselves unless given, and a fixed one makes ranks comparable from call to call. Without it this is
    TE-NAS's equal-weight sum of ranks (arXiv 2102.11535, section 3.3), scaled.
    """
    return _beaten(scores, reference).mean(axis=(0, 2))


def majority_vote(scores: Rows, reference: Rows | None = None) -> np.ndarray:
    """The fraction of the reference that most of the scores [s, n] prefer each architecture to [n]; higher is better.

    For one pair each score has a vote, for the architecture of the higher value or half for either; an even vote
    counts half: the "vote" of Abdelfattah et al. (arXiv 2101.08134, section 4.2), between all pairs. The reference is
    as in `mean_rank`.
    """
    votes = _beaten(scores, reference).mean(axis=0)
    return np.where(votes == 0.5, 0.5, votes > 0.5).mean(axis=1)


def _beaten(scores: Rows, reference: Rows | None) -> np.ndarray:
    """Whether each architecture beats each of the reference in each score [s, n, m]: 1, 0, or 1/2 for a tie."""
    scores = np.asarray(scores, dtype=float)
    reference = scores if reference is None else np.asarray(reference, dtype=float)
    if (
        scores.ndim != 2
        or reference.ndim != 2
        or len(scores) != len(reference)
        or 0 in (*scores.shape, *reference.shape)
    ):
        raise ValueError(
            f"scores [scores, architectures] of the same kinds are ranked, not {scores.shape} among {reference.shape}"
        )
    if np.isnan(scores).any() or np.isnan(reference).any():
        raise ValueError("a score is NaN and has no rank; give a network that cannot be scored the worst score")
    ours, theirs = scores[:, :, None], reference[:, None, :]
    return (ours > theirs) + (ours == theirs) / 2
