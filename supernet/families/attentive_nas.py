"""The space of AttentiveNAS (Wang et al., CVPR 2021, arXiv 2011.09011) and AlphaNet (arXiv 2102.07954)."""

from __future__ import annotations

from supernet.families.family import Family
from supernet.families.inverted_residual import Network, Stage, inverted_residual


def alphanet(num_classes: int = 1000, in_chans: int = 3) -> Family:
    """AttentiveNAS's and AlphaNet's space (arXiv 2011.09011, table 8): widths, depths, kernel sizes and expansion
    ratios of a whole stage, resolution 192, 224, 256 or 288.

    As in the authors' code: swish throughout; squeeze-and-excitation to a quarter of the expanded channels, after the
    activation, with ReLU and hard-sigmoid; a head that expands the last width six times, pools, and mixes the features
    without BatchNorm or bias; and stochastic depth, where it is asked for, in the last two stages alone.

    Differently: a residual surrounds every block but the first of a stage. The authors' code has one there too, which
    averages over the stride, and passes a 1x1 convolution where the widths of the two stages happen to differ.
    """

    def stage(
        width: tuple[int, ...],
        depth: tuple[int, ...],
        expand_ratio: tuple[int, ...],
        stride: int,
        se_ratio: float = 0.0,
    ) -> Stage:
        return Stage(width, depth, (3, 5), expand_ratio, stride, se_ratio, act="swish", elastic="stage")

    return inverted_residual(
        Network(
            stages=(
                stage((16, 24), (1, 2), (1,), 1),
                stage((24, 32), (3, 4, 5), (4, 5, 6), 2),
                stage((32, 40), (3, 4, 5, 6), (4, 5, 6), 2, 0.25),
                stage((64, 72), (3, 4, 5, 6), (4, 5, 6), 2),
                stage((112, 120, 128), (3, 4, 5, 6, 7, 8), (4, 5, 6), 1, 0.25),
                stage((192, 200, 208, 216), (3, 4, 5, 6, 7, 8), (6,), 2, 0.25),
                stage((216, 224), (1, 2), (6,), 1, 0.25),
            ),
            stem=(16, 24),
            features=6.0,
            head=(1792, 1984),
            resolution=(192, 224, 256, 288),
            act="swish",
            drop_path_stages=2,
        ),
        num_classes,
        in_chans,
        paper="Wang et al. 2021, arXiv 2011.09011 and 2102.07954",
    )
