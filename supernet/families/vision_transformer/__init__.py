"""timm's vision transformers, elastic in their sizes, from scratch or from pretrained weights."""

from supernet.families.vision_transformer.rewiring import rewire, transformer_channels
from supernet.families.vision_transformer.vit import vit

__all__ = ["rewire", "transformer_channels", "vit"]
