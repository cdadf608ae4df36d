"""MobileNetV3 spaces: Once-for-All's (arXiv 1908.09791), and a small one for small images."""

from __future__ import annotations

from timm.layers import make_divisible

from supernet.families.family import Family
from supernet.families.inverted_residual import Network, Stage, inverted_residual


def ofa_mobilenet_v3(
    num_classes: int = 1000, in_chans: int = 3, width_mult: float = 1.0, kernel_transform: bool = False
) -> Family:
    """Once-for-All's MobileNetV3 (Cai et al., ICLR 2020, arXiv 1908.09791, section 4.1).

    Five stages of 2 to 4 blocks, kernel size 3, 5 or 7 and expansion 3, 4 or 6 for every block, resolution 128 to 224
    in steps of 4. `width_mult` scales all widths; the authors released 1.0 and 1.2. With `kernel_transform`, a smaller
    kernel is a learned transform of a larger one's centre (section 3.3), as in the authors' checkpoints, which
    `load_ofa_checkpoint` reads.
    """

    def scaled(width: int) -> int:
        return make_divisible(width * width_mult)

    def stage(width: int, stride: int, se_ratio: float, act: str) -> Stage:
        return Stage((scaled(width),), (2, 3, 4), (3, 5, 7), (3, 4, 6), stride, se_ratio, act)

    return inverted_residual(
        Network(
            stages=(
                Stage((scaled(16),), (1,), (3,), (1,), act="relu", residual_first=True),
                stage(24, 2, 0.0, "relu"),
                stage(40, 2, 0.25, "relu"),
                stage(80, 2, 0.0, "hard_swish"),
                stage(112, 1, 0.25, "hard_swish"),
                stage(160, 2, 0.25, "hard_swish"),
            ),
            stem=(scaled(16),),
            features=(scaled(960),),
            head=(scaled(1280),),
            resolution=range(128, 225, 4),
            kernel_transform=kernel_transform,
        ),
        num_classes,
        in_chans,
        paper="Cai et al. 2020, arXiv 1908.09791",
    )


def mobilenet_v3_micro(num_classes: int = 10, in_chans: int = 3) -> Family:
    """A space for images of 24 to 32 pixels and devices of any size: every kind of elasticity, seconds to train.

    Widths vary as in BigNAS (arXiv 2003.11142), blocks as in MobileNetV3 (arXiv 1905.02244).
    """
    return inverted_residual(
        Network(
            stages=(
                Stage((16,), (1,), (3, 5), (1,), act="relu"),
                Stage((16, 24), (1, 2), (3, 5), (3, 4, 6), stride=2, act="relu"),
                Stage((24, 32, 40), (1, 2, 3), (3, 5), (3, 4, 6), stride=2, se_ratio=0.25),
                Stage((48, 64, 80), (1, 2, 3), (3, 5), (3, 4, 6), se_ratio=0.25),
            ),
            stem=(16,),
            features=(192, 288),
            head=(256,),
            resolution=(24, 28, 32),
        ),
        num_classes,
        in_chans,
    )
