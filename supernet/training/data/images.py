"""An image from its file to a network's input: one way for training, evaluation, calibration and use.

`to_rgb` makes every PIL image an upright one of 8 bits a channel in red, green and blue. All that crops, resizes and
normalises images comes after it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image
from timm.data import create_transform
from torchvision.transforms import Compose

# What an image's EXIF orientation asks for, by its value; 1 is upright (EXIF 2.32, section 4.6.4).
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BACKGROUND = (255, 255, 255)
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}  # which Pillow knows, but has no pixels of


def to_rgb(image: Image.Image) -> Image.Image:
    """`image` as it is meant to be seen, upright and in mode RGB; itself if it is that already.

    It is turned as its EXIF orientation says. What is transparent lies on white. Of 16 or 12 bits of grey the upper 8
    are taken, as Pillow does of 16 bits of colour. Grey, palette and CMYK are converted by Pillow, without colour
    profiles. Of an animation or a file of many pages it is the first. ValueError for floating-point and other numbers
    without a known range, for colours that Pillow does not convert, for pixels that cannot be decoded, and for what is
    no PIL image.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"an image is {type(image).__name__} and not a PIL image: leave transforms of its own out of the dataset, "
            "or turn tensors and arrays of 8-bit pixels into images by PIL.Image.fromarray"
        )
    try:
        return _upright(image)
    except Exception as error:  # what a decoder raises for broken bytes is of any type
        filename = getattr(image, "filename", "")
        raise unreadable(repr(filename) if filename else "an image", error) from error


def read_image(file: str | os.PathLike | BinaryIO, name: str | None = None) -> Image.Image:
    """The image in `file` by `to_rgb`; ValueError, by its `name` or else the file's, if it cannot be read."""
    try:
        with Image.open(file) as image:
            return _upright(image)
    except Exception as error:
        raise unreadable(name or repr(str(file)), error) from error


def unreadable(name: str, error: Exception) -> ValueError:
    """The error for the image `name`, in one line, when a reader or decoder has raised `error`."""
    if isinstance(error, FileNotFoundError):
        reason = "the file is not there"
    elif isinstance(error, Image.UnidentifiedImageError):
        reason = "it is in no format that Pillow knows"
    else:
        said = next((said for said in error.args if isinstance(said, str)), str(error))
        reason = (said.splitlines() or [type(error).__name__])[0]
    return ValueError(f"{name} cannot be read as an image: {reason}; repair, convert or remove it")


def evaluation_transform(
    resolution: int,
    interpolation: str,
    crop_pct: float,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    normalise: bool = True,
) -> Compose:
    """What turns any PIL image into a network's input [C, R, R]: `to_rgb`, then resized, cropped, normalised. Without
    `normalise`, into the pixels [C, R, R] of 8 bits that are still to be normalised."""
    transform = create_transform(
        resolution, interpolation=interpolation, crop_pct=crop_pct, mean=mean, std=std, normalize=normalise
    )
    return Compose([to_rgb, *transform.transforms])


def image_suffixes() -> set[str]:
    """Suffixes, in lower case, of the files that Pillow reads here."""
    Image.init()
    known = Image.registered_extensions().items()
    return {suffix for suffix, kind in known if kind in Image.OPEN and kind not in NOT_READ}


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    turn = UPRIGHT.get(_orientation(image))
    image = _in_colour(image)
    if turn is not None:
        image = image.transpose(turn)
        image.info = {}  # the orientation is in there
    return image


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except (SyntaxError, OSError, ValueError, TypeError, LookupError, EOFError, struct.error):
        return None  # broken metadata is no broken image


def _in_colour(image: Image.Image) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and not image.has_transparency_data:
        return image
    if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):  # where I stands for 16 bits
        bits = getattr(image, "tag_v2", {}).get(ExifTags.Base.BitsPerSample, (16,))[0]  # TIFF also has 12
        return Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8)).convert("RGB")
    if mode in ("I", "F"):
        raise ValueError(
            f"its pixels are {'integers of 32 bits' if mode == 'I' else 'floating-point numbers'}, whose range is not "
            "known: save it with 8 or 16 bits a channel"
        )
    if image.has_transparency_data:
        image = (image.convert("LA") if mode == "La" else image).convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), image).convert("RGB")
    return image.convert("RGB")
