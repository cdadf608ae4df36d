"""MACs and parameters of FBNet's architectures, counted from its published layout: sources that need no device.

Wu et al., FBNet, CVPR 2019, arXiv 1812.03443, table 1; a block is an inverted residual, `g2` has grouped 1x1
convolutions, and `skip` becomes a 1x1 convolution where stride or channels change.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# n architectures, 22 blocks, o operations

STAGES = (
    (16, 1, 1),
    (24, 4, 2),
    (32, 4, 2),
    (64, 4, 2),
    (112, 4, 1),
    (184, 4, 2),
    (352, 1, 1),
)  # channels, blocks, stride
STEM, HEAD, CLASSES, SIZE = 16, 1984, 1000, 112  # channels; pixels a side after the stem


def tables(operations: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """MACs and parameters [22, o] of each block by its operation."""
    rows, channels, size = [], STEM, SIZE
    for width, blocks, first_stride in STAGES:
        for stride in (first_stride, *[1] * (blocks - 1)):
            rows.append([_block(name, channels, width, size, stride) for name in operations])
            channels, size = width, size // stride
    macs, parameters = np.moveaxis(np.array(rows, float), -1, 0)
    return macs, parameters


def _block(operation: str, channels: int, width: int, size: int, stride: int) -> tuple[float, float]:
    out = size // stride
    if operation == "skip":
        weights = 0 if (channels, stride) == (width, 1) else channels * width
        return weights * out**2, weights
    kernel, expansion, *grouped = operation.split("_")
    middle, groups = channels * int(expansion[1:]), 2 if grouped else 1
    expand, depthwise, project = channels * middle // groups, int(kernel[1:]) ** 2 * middle, middle * width // groups
    return expand * size**2 + (depthwise + project) * out**2, expand + depthwise + project


def totals(operations: Sequence[str], codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """MACs [n] and parameters [n] of architectures with the `codes` [n, 22] of their operations."""
    macs, parameters = (table[np.arange(len(table)), codes].sum(axis=1) for table in tables(operations))
    head = STAGES[-1][0] * HEAD
    fixed = 27 * STEM
    return macs + fixed * SIZE**2 + head * (SIZE // 16) ** 2, parameters + fixed + head + HEAD * CLASSES
