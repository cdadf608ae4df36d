"""A small space of vision transformers, elastic in everything."""

from supernet import Family
from supernet.families import FAMILIES

SMALL = {
    "embed_dim": (24, 32),
    "depth": (2, 3),
    "num_heads": (2, 3, 4),
    "mlp_ratio": (1.0, 2.0),
    "patch_size": (16, 8),
    "resolution": (16, 32),
    "head_dim": 8,
}


def small_vit(num_classes: int = 10, in_chans: int = 3, **options) -> Family:
    return FAMILIES["vit"](**SMALL | options, num_classes=num_classes, in_chans=in_chans)
