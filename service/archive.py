"""Images from an archive that nobody vouches for: what is unpacked, and what is refused.

Nothing of the archive is believed. Names may not lead out of the folder, sizes are counted while bytes are written, and
of an image only the header is read, by the decoders of a few formats, to know how many pixels it would take.
"""

from __future__ import annotations

import re
import stat
import struct
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from statistics import median
from typing import BinaryIO

import numpy as np
from PIL import Image

from service.request import ENOUGH, TESTED

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".ppm", ".pgm"}
PARTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "val"}
PASSED_OVER = {"__MACOSX", "Thumbs.db", "desktop.ini"}
HELD_OUT = 5  # every fifth image of a class is for testing where the archive has no such part
CHUNK = 2**16
DIRECTORY_ENTRY = 2**9  # bytes that an entry of a zip's directory takes on average, at most
END = b"PK\x05\x06"  # end of a zip's directory (APPNOTE 6.3.10, section 4.3.16)
END_64, LOCATOR_64 = b"PK\x06\x06", b"PK\x06\x07"  # of one with more entries (4.3.14 and 4.3.15)
COMPONENT = re.compile(r"[^\x00-\x1f\x7f\\:]{1,150}")


@dataclass(frozen=True)
class UploadLimits:
    """How much an upload may be."""

    upload_bytes: int = 2 * 2**30
    """Bytes of an uploaded file."""
    unpacked_bytes: int = 8 * 2**30
    """Bytes of all images of an archive."""
    files: int = 500_000
    """Entries of an archive."""
    pixels: int = 50_000_000
    """Pixels of an image."""
    measurements_bytes: int = 2**20
    """Bytes of a CSV file of measurements."""


@dataclass(frozen=True)
class ImageFacts:
    """What is known of a job's images: names of the classes, counts, and the median shorter side in pixels."""

    classes: tuple[str, ...]
    train: int
    val: int
    least_of_a_class: int  # training images
    side: int


def unpack(archive: Path, folder: Path, limits: UploadLimits, seed: int = 0) -> ImageFacts:
    """Unpack the images of the zip `archive` to `folder`/train/CLASS/ and `folder`/val/CLASS/.

    The archive has train/ and val/, or folders of classes alone, of which every fifth image, chosen by `seed`, then
    becomes a part of val/; folders around all of these do not matter. ValueError, naming the entry, for a name that
    leads elsewhere, links, what is encrypted or no image, and for too many files, bytes or pixels.
    """
    _check_directory(archive, limits)
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = _entries(packed, limits)
            places = _places(list(entries), seed)
            sides, written = [], 0
            for name, place in places.items():
                target = folder / place
                target.parent.mkdir(parents=True, exist_ok=True)
                with packed.open(entries[name]) as source:
                    written += _copy(source, target, limits.unpacked_bytes - written, name)
                sides.append(_shorter_side(target, name, limits.pixels))
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, struct.error) as error:
        raise ValueError(f"the archive cannot be read as a zip: {error}") from error
    except RuntimeError as error:  # what zipfile raises for a wrong password
        raise ValueError(f"the archive cannot be read: {error}; upload it without a password") from error
    except UnicodeDecodeError as error:
        raise ValueError("the archive has names that are no text: pack it anew with UTF-8 names") from error
    return _facts(list(places.values()), sides)


def facts_of_folder(folder: Path, limits: UploadLimits, looked_at: int = 200) -> ImageFacts:
    """The same of a folder on the server with train/ and val/, of which `looked_at` images are opened.

    ValueError if a part is missing or has no images in folders of classes.
    """
    places, sides = [], []
    for part in ("train", "val"):
        if not (folder / part).is_dir():
            raise ValueError(f"there is no {part}/ in {folder}: put the images of each class into train/ and val/")
        found = sorted(path for path in (folder / part).glob("*/**/*") if path.suffix.lower() in SUFFIXES)
        if len(found) > limits.files:
            raise ValueError(f"{folder / part} has more than {limits.files} files, which the server allows")
        places += [PurePosixPath(part, *path.relative_to(folder / part).parts) for path in found]
        for path in found[:: max(1, 2 * len(found) // looked_at)]:
            sides.append(_shorter_side(path, str(path), limits.pixels))
    return _facts(places, sides)


def _check_directory(archive: Path, limits: UploadLimits) -> None:
    """ValueError if the list of entries alone, which zipfile reads as a whole, is larger than it may be."""
    with archive.open("rb") as file:
        size = file.seek(0, 2)
        start = max(0, size - 2**16 - 22)
        file.seek(start)
        tail = file.read()
        at = tail.rfind(END)
        if at < 0 or len(tail) < at + 22:
            raise ValueError("the upload is no zip: pack the folders of images into one")
        entries, directory = struct.unpack_from("<HI", tail, at + 10)
        if at >= 20 and tail[at - 20 : at - 16] == LOCATOR_64:
            (place,) = struct.unpack_from("<Q", tail, at - 12)
            file.seek(min(place, size))
            record = file.read(56)
            if len(record) < 56 or record[:4] != END_64:
                raise ValueError("the archive cannot be read as a zip: its directory is damaged")
            entries, directory = struct.unpack_from("<QQ", record, 32)
    if entries > limits.files or directory > DIRECTORY_ENTRY * limits.files:
        raise ValueError(f"the archive has {entries} entries, and the server allows {limits.files}")


def _entries(packed: zipfile.ZipFile, limits: UploadLimits) -> dict[str, zipfile.ZipInfo]:
    """The images of the archive by their names."""
    found: dict[str, zipfile.ZipInfo] = {}
    infos = packed.infolist()
    if len(infos) > limits.files:
        raise ValueError(f"the archive has {len(infos)} entries, and the server allows {limits.files}")
    for info in infos:
        name = info.filename
        parts = PurePosixPath(name).parts
        shown = name[:100]
        if name.startswith("/") or ".." in parts or not all(COMPONENT.fullmatch(part) for part in parts):
            raise ValueError(f"the archive has the name {shown!r}, which may lead out of its folder: pack it anew")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ValueError(f"{shown!r} is a link: pack the images themselves")
        if info.is_dir() or any(part.startswith(".") or part in PASSED_OVER for part in parts):
            continue
        if info.flag_bits & 1:
            raise ValueError(f"{shown!r} is encrypted: upload the archive without a password")
        if PurePosixPath(name).suffix.lower() not in SUFFIXES:
            raise ValueError(f"{shown!r} is no image: leave all out but {', '.join(sorted(SUFFIXES))}")
        if name in found:
            raise ValueError(f"{shown!r} is in the archive twice")
        found[name] = info
    if not found:
        raise ValueError("there are no images in the archive: put those of each class into a folder of its own")
    if sum(info.file_size for info in found.values()) > limits.unpacked_bytes:
        raise ValueError(_too_large(limits.unpacked_bytes))
    return found


def _places(names: list[str], seed: int) -> dict[str, PurePosixPath]:
    """Where each image goes: part/CLASS/file, without the folders around."""
    parts = {name: PurePosixPath(name).parts for name in names}
    while len(tops := {own[0] for own in parts.values()}) == 1 and all(len(own) > 2 for own in parts.values()):
        parts = {name: own[1:] for name, own in parts.items()}
    if lost := next((name for name, own in parts.items() if len(own) < 2), None):
        raise _unlabelled(lost)
    if not {PARTS.get(top.lower(), "") for top in tops} >= {"train", "val"}:
        return {name: PurePosixPath(part, *parts[name]) for part, name in _divided(parts, seed)}
    if other := next((top for top in sorted(tops) if top.lower() not in PARTS), None):
        raise ValueError(f"beside train/ and val/ the archive has {other!r}: leave it out")
    if lost := next((name for name, own in parts.items() if len(own) < 3), None):
        raise _unlabelled(lost)
    places = {name: PurePosixPath(PARTS[own[0].lower()], *own[1:]) for name, own in parts.items()}
    if len(set(places.values())) < len(places):
        raise ValueError("the archive has two parts for testing with the same files: leave one of them out")
    return places


def _unlabelled(name: str) -> ValueError:
    return ValueError(
        f"{name[:100]!r} lies in no folder of a class: put the images of each class into one. Without classes nothing "
        f"shows how good a network is: {TESTED} images with theirs would do to test on, and to train on "
        f"{ENOUGH['uploaded']} of each class with weights of your own for these classes, {ENOUGH['none']} without any"
    )


def _divided(parts: dict[str, tuple[str, ...]], seed: int) -> Iterator[tuple[str, str]]:
    """The part of each image where the archive has none."""
    classes: dict[str, list[str]] = {}
    for name in sorted(parts):
        classes.setdefault(parts[name][0], []).append(name)
    generator = np.random.default_rng(seed)
    for names in classes.values():
        for place, index in enumerate(generator.permutation(len(names))):
            yield ("val" if place % HELD_OUT == 0 else "train"), names[index]


def _copy(source: BinaryIO, target: Path, room: int, name: str) -> int:
    """Bytes that were written; ValueError if they are more than there is `room` for, whatever the archive says."""
    written = 0
    with target.open("xb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > room:
                raise ValueError(f"{name[:100]!r}: {_too_large(room)}")
            file.write(chunk)
    return written


def _too_large(limit: int) -> str:
    return f"the archive unpacks to more than the {limit} bytes that the server allows: make the images smaller"


def _shorter_side(path: Path, name: str, pixels: int) -> int:
    """Of the image, whose header alone is read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
    except Image.DecompressionBombError:
        width = height = pixels
    except Exception as error:  # what decoders raise for broken bytes is of any type
        raise ValueError(f"{name[:100]!r} is no image that can be read: repair or leave it out") from error
    if width * height > pixels:
        raise ValueError(f"{name[:100]!r} has more than the {pixels} pixels that the server allows: make it smaller")
    return min(width, height)


def _facts(places: list[PurePosixPath], sides: list[int]) -> ImageFacts:
    """ValueError if there is nothing to tell apart, or a class is missing in a part."""
    counts = Counter(place.parts[:2] for place in places)
    classes = sorted({name for _, name in counts})
    for part in ("train", "val"):
        if lacking := next((name for name in classes if not counts[part, name]), None):
            raise ValueError(f"the class {lacking!r} has no image in {part}/: add some, or leave the class out")
    if len(classes) < 2:
        raise ValueError(f"there is only the class {classes[0] if classes else ''!r}: two or more can be told apart")
    totals = Counter(part for part, *_ in (place.parts for place in places))
    least = min(counts["train", name] for name in classes)
    return ImageFacts(tuple(classes), totals["train"], totals["val"], least, int(median(sides)))
