"""What is unpacked of an archive, and what is refused with nothing left behind."""

import io
import stat
import struct
import zipfile
import zlib
from pathlib import PurePosixPath

import pytest

from service.archive import ImageFacts, UploadLimits, facts_of_folder, unpack
from tests.service.conftest import packed, png


@pytest.fixture
def unpacked(tmp_path, limits):
    """Unpack a zip's bytes; the facts, and the files by their places."""

    def unpacked(content, limits=limits, seed=0):
        archive, folder = tmp_path / "archive.zip", tmp_path / "images"
        archive.write_bytes(content)
        folder.mkdir(exist_ok=True)
        facts = unpack(archive, folder, limits, seed)
        return facts, {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}

    yield unpacked
    assert sorted(path.name for path in tmp_path.iterdir()) in ([], ["archive.zip", "images"])


def test_parts_are_taken_as_they_are_without_the_folders_around(unpacked):
    files = {f"around/it/{part}/{name}/0.png": png(10, 30) for part in ("train", "valid") for name in "ab"}
    files |= {"around/it/train/a/deep/1.JPG": png(20, 9), "__MACOSX/around/x.png": b"", "around/.DS_Store": b""}
    facts, places = unpacked(packed(files))
    assert facts == ImageFacts(("a", "b"), train=3, val=2, least_of_a_class=1, side=10)
    assert places == {"train/a/0.png", "train/b/0.png", "train/a/deep/1.JPG", "val/a/0.png", "val/b/0.png"}


def test_every_fifth_image_is_for_testing_where_there_is_no_such_part(unpacked):
    content = packed({f"mine/{name}/{i}.png": png() for name in "ab" for i in range(10)})
    facts, places = unpacked(content)
    assert (facts.train, facts.val, facts.least_of_a_class) == (16, 4, 8)
    parts = {PurePosixPath(place).parts[:2] for place in places}
    assert parts == {("train", "a"), ("train", "b"), ("val", "a"), ("val", "b")}
    assert len({PurePosixPath(*PurePosixPath(place).parts[1:]) for place in places}) == 20


@pytest.mark.parametrize(
    "name",
    ["../a/0.png", "a/../../0.png", "/a/0.png", "C:/a/0.png", "a\\..\\..\\0.png", "a/0\x01.png", f"a/{'x' * 200}.png"],
)
def test_an_archive_does_not_climb_out(unpacked, tmp_path, name):
    with pytest.raises(ValueError, match="may lead out of its folder"):
        unpacked(packed({"a/1.png": png(), name: png(), "b/1.png": png()}))
    assert [path for path in tmp_path.rglob("*.png")] == []


def test_links_pickles_and_what_is_encrypted_are_refused(unpacked):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        link = zipfile.ZipInfo("a/0.png")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        unpacked(file.getvalue())
    for name in ("a/model.pth", "a/weights.pkl", "a/run.py", "a/inner.zip"):
        with pytest.raises(ValueError, match="is no image"):
            unpacked(packed({"a/0.png": png(), name: b"\x80\x04"}))
    content = bytearray(packed({"a/0.png": png()}))
    content[content.rindex(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    with pytest.raises(ValueError, match="without a password"):
        unpacked(bytes(content))


def test_a_bomb_ends_at_the_limit(unpacked, tmp_path):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/0.png", bytes(10**8))
    assert len(file.getvalue()) < 10**6
    with pytest.raises(ValueError, match="more than the 1000000 bytes"):
        unpacked(file.getvalue())
    content = bytearray(file.getvalue())  # one that says it were small
    for at, offset in ((content.index(b"PK\x03\x04"), 22), (content.rindex(b"PK\x01\x02"), 24)):
        struct.pack_into("<I", content, at + offset, 1000)
    with pytest.raises(ValueError, match="cannot be read as a zip"):
        unpacked(bytes(content))
    assert sum(path.stat().st_size for path in (tmp_path / "images").rglob("*") if path.is_file()) <= 10**6


def test_an_archive_of_too_many_files_is_not_even_listed(unpacked, limits, monkeypatch):
    content = packed({f"a/{i}.png": b"" for i in range(1001)})
    with pytest.raises(ValueError, match="1001 entries, and the server allows 1000"):
        unpacked(content)
    monkeypatch.setattr(zipfile, "ZipFile", None)
    end = bytearray(content[content.rindex(b"PK\x05\x06") :])
    struct.pack_into("<I", end, 12, 2**31)
    with pytest.raises(ValueError, match="the server allows 1000"):
        unpacked(bytes(end))
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 2**40, 2**40, 2**46, 0)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
    with pytest.raises(ValueError, match=f"{2**40} entries"):
        unpacked(record + locator + bytes(end))


def header(width, height):
    """The beginning of a PNG that says it were so large."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(("width", "height"), [(27_000, 27_000), (2**31 - 1, 2**31 - 1), (1001, 1000)])
def test_an_image_whose_header_asks_for_gigabytes_is_refused(unpacked, width, height):
    files = {"a/0.png": png(), "b/0.png": header(width, height)}
    with pytest.raises(ValueError, match=r"'b/0.png' (has more than the 1000000 pixels|is no image)"):
        unpacked(packed(files))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a/0.png": b"no image"}, "is no image that can be read"),
        ({"a/0.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"}, "is no image that can be read"),
        ({"0.png": png()}, "lies in no folder of a class.*100 images with theirs.*2 of each class.*50 without any"),
        ({"a/0.png": png(), "a/1.png": png()}, "has no image in train/|only the class"),
        ({f"a/{i}.png": png() for i in range(9)}, "there is only the class 'a'"),
        ({}, "there are no images"),
        ({"train/a/0.png": png(), "val/a/0.png": png(), "other/a/0.png": png()}, "beside train/ and val/"),
        ({"train/a/0.png": png(), "val/b/0.png": png(), "val/a/0.png": png()}, "the class 'b' has no image in train/"),
    ],
)
def test_what_is_no_archive_of_classes_says_so(unpacked, files, said):
    with pytest.raises(ValueError, match=said):
        unpacked(packed(files))


@pytest.mark.parametrize("cut", [10, 100, -30])
def test_an_archive_that_is_cut_off_is_no_zip(unpacked, cut):
    with pytest.raises(ValueError, match="zip"):
        unpacked(packed({"a/0.png": png(), "b/0.png": png()})[:cut])


def test_a_folder_on_the_server_has_both_parts(tmp_path):
    for place in ("train/a/0.png", "train/b/0.png", "val/a/0.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_bytes(png())
    with pytest.raises(ValueError, match="the class 'b' has no image in val/"):
        facts_of_folder(tmp_path, UploadLimits())
    (tmp_path / "val").rename(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="there is no val/"):
        facts_of_folder(tmp_path, UploadLimits())
