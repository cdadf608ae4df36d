"""Images in folders and tar files, one folder a class.

The class of an image is the folder directly under the split, however deep the image lies in it. A tar file counts as a
folder of its name without .tar. Nothing is passed over in silence.
"""

from __future__ import annotations

import io
import logging
import os
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image
from timm.data import create_dataset
from torch.utils.data import Dataset

from supernet.training.data.images import image_suffixes, read_image, unreadable

logger = logging.getLogger(__name__)

SYNONYMS = (("train", "training"), ("val", "valid", "validation", "eval", "evaluation"))
BLOCKS = tarfile.RECORDSIZE  # bytes that a tar file is filled up with zeros to a multiple of
SYSTEM_NAMES = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


Entry = tuple[str, "File | None"]  # a place in the split, with slashes, and the file there; None for what is no file


class File(NamedTuple):
    """A file, which may be a part of a tar file."""

    name: str  # where it is, for people: within a tar file, the path of this and of the member
    path: str
    start: int = 0  # in bytes
    size: int = -1  # in bytes; -1 is up to the end

    def read(self) -> bytes:
        with open(self.path, "rb") as stream:
            stream.seek(self.start)
            return stream.read(self.size)


class ImageFolder(Dataset):
    """Upright RGB images and labels; ValueError, naming the file, for an image that cannot be read."""

    def __init__(self, files: list[File], targets: list[int], classes: tuple[str, ...]) -> None:
        self.files, self.targets, self.classes = files, targets, classes

    @property
    def names(self) -> list[str]:
        return [file.name for file in self.files]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        file = self.files[index]
        name = repr(file.name)
        try:
            content = io.BytesIO(file.read())
        except OSError as error:
            raise unreadable(name, error) from error
        return read_image(content, name), self.targets[index]


def open_folder(root: str, split: str) -> ImageFolder:
    """The images of `split` in a folder or tar file, in the order of their names, numbers by their value.

    The split is what bears its name, or a synonym of it, in the folder, as a folder or tar file; otherwise all of
    `root`. Classes are sorted by name. Logs what is passed over: hidden files, empty folders and what Pillow does not
    read. ValueError if there is no image, no folder of a class, or a class with files but no image.
    """
    place = _place(root, split)
    images = _images(_listing(place, root, split), place)
    images.sort(key=lambda image: natural_order(image[0]))
    classes = sorted({_class(where) for where, _ in images}, key=natural_order)
    labels = {name: label for label, name in enumerate(classes)}
    return ImageFolder([file for _, file in images], [labels[_class(where)] for where, _ in images], tuple(classes))


def open_unlabelled(root: str) -> ImageFolder:
    """All images in a folder or tar file, however deep they lie, in the order of their names; their label is 0. Hidden
    files and what Pillow does not read are passed over. ValueError if there is none, or no such place."""
    if not os.path.exists(root):
        raise ValueError(f"no images at {root!r}: give an existing folder or tar file of unlabelled images")
    place = os.path.realpath(root)
    entries = _in_folder(place, "", frozenset([place])) if os.path.isdir(place) else _in_tar(File(place, place), "")
    suffixes = image_suffixes()
    images = [
        (where, file)
        for where, file in entries
        if file is not None and os.path.splitext(where)[1].lower() in suffixes and not _is_hidden(where)
    ]
    if not images:
        raise ValueError(f"there are no images in {root!r}")
    images.sort(key=lambda image: natural_order(image[0]))
    return ImageFolder([file for _, file in images], [0] * len(images), ("unlabelled",))


def open_former_folder(root: str, split: str) -> ImageFolder:
    """The images of `split` as timm lists them: files .png, .jpg and .jpeg alone, by their innermost folder."""
    reader = create_dataset("", root=root, split=split).reader
    names = getattr(reader, "class_to_idx", None) or reader.class_name_to_idx
    if hasattr(reader, "targets"):
        files = [
            File(
                os.path.join(os.path.abspath(reader.root), member.name),
                os.path.join(reader.root, parent) if parent else reader.root,
                member.offset_data + (child.offset_data if child is not None else 0),
                member.size,
            )
            for member, parent, child in reader.samples
        ]
        targets = reader.targets.tolist()
    else:
        files = [File(os.path.abspath(path), path) for path, _ in reader.samples]
        targets = [label for _, label in reader.samples]
    return ImageFolder(files, targets, tuple(sorted(names, key=names.get)))


def _place(root: str, split: str) -> str:
    """The folder or tar file of a split."""
    names = [name + suffix for name in split_names(split) for suffix in ("", ".tar")] if os.path.isdir(root) else []
    place = next((path for path in (os.path.join(root, name) for name in names) if os.path.exists(path)), root)
    return os.path.realpath(place)


def split_names(split: str) -> list[str]:
    return [split, *(name for names in SYNONYMS if split in names for name in names)]


def _listing(place: str, root: str, split: str) -> list[Entry]:
    """All that is in a split's folder or tar file, without folders around the classes."""
    if os.path.isdir(place):
        entries = list(_in_folder(place, "", frozenset([place])))
    else:
        entries = list(_in_tar(File(place, place), ""))
    around = {os.path.basename(place).removesuffix(".tar"), *split_names(split)}
    while True:  # what packs a folder often puts the folder itself into the tar file
        tops = {_class(where) for where, _ in entries if not _is_hidden(where)}
        if len(tops) != 1 or not tops <= around or not any("/" in where for where, _ in entries):
            break
        entries = _beneath(entries, tops.pop())
    if os.path.isfile(root):
        for name in split_names(split):
            if any(where.startswith(f"{name}/") and where.count("/") > 1 for where, _ in entries):
                return _beneath(entries, name)
    return entries


def _beneath(entries: list[Entry], folder: str) -> list[Entry]:
    start = len(folder) + 1
    return [(where[start:], file) for where, file in entries if where.startswith(f"{folder}/") and where[start:]]


def _in_folder(folder: str, inside: str, above: frozenset[str]) -> Iterator[Entry]:
    """All that is in a folder, by its place in the split; the places of folders end in a slash."""
    with os.scandir(folder) as found:
        for entry in found:
            where, path = inside + entry.name, os.path.realpath(entry.path) if entry.is_symlink() else entry.path
            if entry.is_dir():
                yield f"{where}/", None
                if path not in above and not _is_hidden(where):
                    yield from _in_folder(path, f"{where}/", above | {path})
            elif entry.name.lower().endswith(".tar") and not _is_hidden(where):
                yield from _in_tar(File(path, path), f"{where[:-4]}/")
            elif entry.is_file():
                yield where, File(path, path)
            else:  # a link to nothing is found when it is read; what cannot be read, a socket say, is no image
                yield where, File(entry.path, entry.path) if entry.is_symlink() else None


def _in_tar(tar: File, inside: str) -> Iterator[Entry]:
    """All that is in a tar file, by its place in the split; of several members of one name, the last."""
    found, links = {}, {}
    try:
        with open(tar.path, "rb") as stream:
            stream.seek(tar.start)
            with tarfile.open(fileobj=stream, mode="r:") as members:  # whose places are those in `stream`
                for member in members:
                    name = posixpath.normpath(member.name).lstrip("/")
                    if member.isfile():
                        found[name] = File(f"{tar.name}/{name}", tar.path, member.offset_data, member.size)
                    elif member.islnk():
                        links[name] = posixpath.normpath(member.linkname)
                    elif member.issym():
                        links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
                    elif member.isdir() and name != ".":
                        found[f"{name}/"] = None
                stream.seek(members.offset)  # tarfile ends here without a word, whatever comes
                end = stream.read(BLOCKS if tar.size < 0 else min(BLOCKS, tar.start + tar.size - members.offset))
                if len(end) < tarfile.BLOCKSIZE or any(end):
                    cut_off = len(end) < tarfile.BLOCKSIZE
                    raise tarfile.ReadError("it is cut off" if cut_off else "something follows its end")
    except tarfile.TarError as error:
        raise ValueError(
            f"{tar.name} is no tar file that can be read: {error}; give a folder or an uncompressed tar file"
        ) from error
    for name, file in (found | {name: found.get(target) for name, target in links.items()}).items():
        if name.lower().endswith(".tar") and file and not _is_hidden(name):
            yield from _in_tar(file, f"{inside}{name[:-4]}/")
        else:
            yield inside + name, file


def _images(entries: list[Entry], place: str) -> list[tuple[str, File]]:
    """The images of all classes; what is passed over is logged, what would be lost is refused."""
    suffixes = image_suffixes()
    images, hidden, folders, others = [], 0, set(), {}
    for where, file in entries:
        suffix = os.path.splitext(where)[1].lower()
        if _is_hidden(where):
            hidden += where.endswith("/") or suffix in suffixes
        elif where.endswith("/"):
            folders.add(_class(where))
        elif suffix in suffixes and file is not None:
            images.append((where, file))
        else:
            others.setdefault(_class(where) if "/" in where else "", Counter())[suffix or "without a suffix"] += 1
    other_files = ", ".join(f"{count} {kind}" for kind, count in sum(others.values(), Counter()).most_common())
    if not images:
        raise ValueError(f"Found 0 images in {place}" + (f", but {other_files}" if other_files else ""))
    classes = {_class(where) for where, _ in images}
    if direct := [where for where, _ in images if "/" not in where]:
        raise ValueError(
            f"{len(direct)} images lie directly in {place}, such as {min(direct)}: put the images of each class into a "
            "folder of its own, beneath train/ and val/"
        )
    if lost := sorted(others.keys() - classes - {""}):
        kinds = ", ".join(f"{count} {kind}" for kind, count in others[lost[0]].most_common())
        raise ValueError(
            f"no file in the folder {lost[0]!r} of {place} is an image that can be read, only {kinds}: convert "
            "them to JPEG or PNG, or move elsewhere what is no class"
        )
    passed_over = [other_files] if other_files else []
    if hidden:
        passed_over.append(f"{hidden} hidden")
    if empty := sorted(folders - classes):
        passed_over.append(f"empty folders ({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''})")
    if passed_over:
        logger.warning("%s: passed over what is no image: %s", place, ", ".join(passed_over))
    return images


def _class(where: str) -> str:
    return where.partition("/")[0]


def _is_hidden(where: str) -> bool:
    return any(part.startswith(".") or part in SYSTEM_NAMES for part in where.split("/"))


def natural_order(name: str) -> tuple[list[str | int], str]:
    parts = re.split(r"(\d+)", name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], name
