"""Small pictures of images, for pages that people look at."""

from __future__ import annotations

import io

from PIL import Image


def thumbnail(image: Image.Image, pixels: int, quality: int = 85) -> bytes:
    """`image` as a JPEG whose longer side is `pixels`; smaller images are magnified pixel by pixel."""
    scale = pixels / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    stream = io.BytesIO()
    image.convert("RGB").resize(size, resample).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
