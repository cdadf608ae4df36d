"""What a Gaussian model predicts for each measurement from those of all other architectures, without fitting again."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# n measurements


def left_out(
    targets: np.ndarray,
    dual: np.ndarray,
    diagonal: np.ndarray,
    block: Callable[[np.ndarray], np.ndarray],
    architectures: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Means [n] and variances [n], noise included, of `targets` [n], each predicted without its own architecture.

    With P the inverse of the targets' covariance, and b the measurements of one architecture, numbered in
    `architectures` [n],

        mean_b = y_b - (P_bb)^-1 (P y)_b,    variance_b = diag (P_bb)^-1

    which for a single measurement are equations 5.12 of Rasmussen & Williams 2006. `dual` [n] is P y, `diagonal` [n]
    that of P, and `block(rows)` is P[rows, rows].
    """
    residual, variance = dual / diagonal, 1 / diagonal
    for number in np.flatnonzero(np.bincount(architectures) > 1):
        rows = np.flatnonzero(architectures == number)
        covariance = np.linalg.inv(block(rows))
        residual[rows], variance[rows] = covariance @ dual[rows], covariance.diagonal()
    return targets - residual, variance
