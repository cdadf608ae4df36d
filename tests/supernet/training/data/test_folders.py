import io
import logging
import os
import re
import tarfile

import pytest
from PIL import Image
from timm.data import create_dataset

from supernet.training.data.folders import open_folder, open_former_folder


def write(path, shade=0, kind=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (shade, shade, shade)).save(path, kind)


def pack(folder, tar, inside=""):
    """Put what is in `folder` into a tar file."""
    with tarfile.open(tar, "w") as file:
        for path in folder.iterdir():
            file.add(path, inside + path.name)
    return tar


def shades(images):
    return [image.getpixel((0, 0))[0] for image, _ in images]


def found(images, root):
    return [
        (os.path.relpath(file.name, root), images.classes[label]) for file, label in zip(images.files, images.targets)
    ]


@pytest.fixture
def folder(tmp_path):
    """Images of one shade each, which their names tell."""
    for shade, name in enumerate(("cat/1.png", "cat/2.png", "cat/10.png", "dog/a.png", "dog/b.png")):
        write(tmp_path / "train" / name, shade)
    return tmp_path


def test_images_are_in_the_order_of_their_numbers(folder):
    images = open_folder(str(folder), "train")
    assert images.classes == ("cat", "dog")
    assert images.targets == [0, 0, 0, 1, 1]
    assert shades(images) == [0, 1, 2, 3, 4]
    assert images.names == [
        str(folder / "train" / name) for name in "cat/1.png cat/2.png cat/10.png dog/a.png dog/b.png".split()
    ]


def test_plain_folders_and_tar_files_are_listed_as_timm_does(tmp_path, numpy_generator):
    for index in range(60):
        name = "".join(numpy_generator.choice(list("aB1230_-. "), size=6)).strip(" .")
        label = f"{index % 4}x{numpy_generator.integers(3)}"
        write(tmp_path / "train" / label / f"{name}{index}.PNG", index)
    for root in (tmp_path, pack(tmp_path / "train", tmp_path / "all.tar")):
        reader = create_dataset("", root=str(root), split="train").reader
        names = [os.path.basename(name) for name in reader.filenames()]
        labels = list(reader.targets) if root.suffix else [label for _, label in reader.samples]
        for images in (open_folder(str(root), "train"), open_former_folder(str(root), "train")):
            assert [os.path.basename(name) for name in images.names] == names
            assert images.targets == labels
            assert all(name.endswith(f"{shade}.PNG") for name, shade in zip(names, shades(images)))


def test_the_folder_under_the_split_is_the_class(tmp_path):
    for name in ("cat/indoor/1.png", "cat/outdoor/deep/2.png", "dog/outdoor/3.png", "dog/4.png"):
        write(tmp_path / "train" / name)
    images = open_folder(str(tmp_path), "train")
    assert found(images, tmp_path / "train") == [
        ("cat/indoor/1.png", "cat"),
        ("cat/outdoor/deep/2.png", "cat"),
        ("dog/4.png", "dog"),
        ("dog/outdoor/3.png", "dog"),
    ]
    tar = open_folder(str(pack(tmp_path / "train", tmp_path / "train.tar")), "train")
    assert (tar.classes, tar.targets) == (images.classes, images.targets)
    assert set(open_former_folder(str(tmp_path), "train").classes) == {"indoor", "outdoor", "deep", "dog"}


def test_everything_that_pillow_opens_is_read(tmp_path):
    suffixes = "jpg JPG jpeg jpe jfif png PNG webp tif TIFF bmp gif ppm".split()
    kinds = {"jpg": "JPEG", "jpe": "JPEG", "jfif": "JPEG", "tif": "TIFF"}
    for suffix in suffixes:
        write(tmp_path / "train" / suffix / f"0.{suffix}", 9, kinds.get(suffix.lower()))
    images = open_folder(str(tmp_path), "train")
    assert sorted(images.classes) == sorted(suffixes)
    assert set(shades(images)) == {9}
    tar = open_folder(str(pack(tmp_path / "train", tmp_path / "train.tar")), "train")
    assert (tar.classes, shades(tar)) == (images.classes, shades(images))


def test_what_is_passed_over_is_said(folder, caplog):
    train = folder / "train"
    (train / "bird").mkdir()
    for name in ("cat/1.txt", "cat/notes", "cat/2.HEIC", "dog/3.heic", "labels.csv"):
        (train / name).write_text("")
    for name in ("cat/._1.png", "__MACOSX/cat/._1.png", ".ipynb_checkpoints/cat/1.png", "cat/.ipynb_checkpoints/1.png"):
        write(train / name)
    (train / "cat/.DS_Store").write_text("")
    with caplog.at_level(logging.WARNING):
        assert len(open_folder(str(folder), "train")) == 5
    before, kinds, after = re.fullmatch("(.*): (2 .heic.*), (4 hidden.*)", caplog.messages[0]).groups()
    assert before == f"{train}: passed over what is no image"
    assert sorted(kinds.split(", ")) == ["1 .csv", "1 .txt", "1 without a suffix", "2 .heic"]
    assert after == "4 hidden, empty folders (bird)"


def test_nothing_is_said_where_nothing_is_passed_over(folder, caplog):
    with caplog.at_level(logging.WARNING):
        open_folder(str(folder), "train")
    assert caplog.messages == []


def test_a_class_without_an_image_that_can_be_read_is_refused(folder):
    (folder / "train" / "bird").mkdir()
    (folder / "train" / "bird" / "1.heic").write_text("")
    message = r"no file in the folder 'bird' of .*train is an image that can be read, only 1 \.heic: convert them"
    with pytest.raises(ValueError, match=message):
        open_folder(str(folder), "train")
    with pytest.raises(ValueError, match=message.replace("train is", "train.tar is")):
        open_folder(str(pack(folder / "train", folder / "train.tar")), "train")


def test_images_outside_of_classes_are_refused(folder):
    for name in ("x.png", "y.png"):
        write(folder / "train" / name)
    with pytest.raises(
        ValueError, match=r"2 images lie directly in .*train, such as x\.png: put the images of each class"
    ):
        open_folder(str(folder), "train")


def test_a_folder_around_the_classes_that_is_named_like_the_split_or_file_is_none(folder):
    for name in ("./", "train/", "birds/", "./birds/train/"):
        tar = pack(folder / "train", folder / "birds.tar", name)
        assert shades(open_folder(str(tar), "train")) == [0, 1, 2, 3, 4]
    (folder / "train").rename(folder / "inner")
    (folder / "train").mkdir()
    (folder / "inner").rename(folder / "train" / "train")
    assert open_folder(str(folder), "train").classes == ("cat", "dog")


def test_one_tar_file_holds_several_splits(folder):
    write(folder / "val" / "cat" / "v.png", 7)
    with tarfile.open(folder / "all.tar", "w") as tar:
        tar.add(folder / "train", "train")
        tar.add(folder / "val", "val")
    assert shades(open_folder(str(folder / "all.tar"), "train")) == [0, 1, 2, 3, 4]
    assert shades(open_folder(str(folder / "all.tar"), "validation")) == [7]


def test_a_class_named_like_the_split_stays_a_class(tmp_path):
    for name in ("bus/1.png", "train/2.png"):
        write(tmp_path / "vehicles" / name)
    tar = pack(tmp_path / "vehicles", tmp_path / "vehicles.tar")
    assert open_folder(str(tar), "train").classes == ("bus", "train")


def test_tar_files_lie_beside_each_other_for_splits_and_for_classes(folder):
    (folder / "packed" / "train").mkdir(parents=True)
    pack(folder / "train", folder / "packed" / "validation.tar")
    for name in ("cat", "dog"):
        pack(folder / "train" / name, folder / "packed" / "train" / f"{name}.tar")
    with tarfile.open(folder / "nested.tar", "w") as tar:
        for name in ("cat", "dog"):
            tar.add(folder / "packed" / "train" / f"{name}.tar", f"{name}.tar")
    for root, split in (("packed", "val"), ("packed", "train"), ("nested.tar", "train")):
        images = open_folder(str(folder / root), split)
        assert (images.classes, images.targets) == (("cat", "dog"), [0, 0, 0, 1, 1])
        assert shades(images) == [0, 1, 2, 3, 4]
    former = open_former_folder(str(folder / "nested.tar"), "train")
    assert (former.classes, shades(former)) == (("cat", "dog"), [0, 1, 2, 3, 4])


def test_of_members_of_one_name_the_last_is_read_and_links_are_followed(tmp_path):
    def add(tar, name, shade):
        file = io.BytesIO()
        Image.new("RGB", (4, 4), (shade, shade, shade)).save(file, "PNG")
        member = tarfile.TarInfo(name)
        member.size = len(file.getvalue())
        tar.addfile(member, io.BytesIO(file.getvalue()))

    def link(tar, name, kind, target):
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, target
        tar.addfile(member)

    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "cat/1.png", 1)
        add(tar, "./cat/1.png", 2)
        link(tar, "cat/2.png", tarfile.LNKTYPE, "cat/1.png")
        link(tar, "dog/3.png", tarfile.SYMTYPE, "../cat/1.png")
        link(tar, "dog/4.png", tarfile.SYMTYPE, "nowhere.png")
    assert shades(open_folder(str(tmp_path / "a.tar"), "train")) == [2, 2, 2]


def test_links_are_followed_but_not_around(folder):
    elsewhere = folder / "elsewhere"
    write(elsewhere / "1.png", 9)
    (folder / "train" / "bird").symlink_to(elsewhere)
    (folder / "train" / "dog" / "c.png").symlink_to(elsewhere / "1.png")
    (folder / "train" / "cat" / "again").symlink_to(folder / "train")
    images = open_folder(str(folder), "train")
    assert images.classes == ("bird", "cat", "dog")
    assert images.names.count(str(elsewhere / "1.png")) == 2
    (folder / "train" / "dog" / "d.png").symlink_to(folder / "nowhere.png")
    with pytest.raises(ValueError, match=r"dog/d.png' cannot be read as an image: the file is not there"):
        list(open_folder(str(folder), "train"))


def test_classes_that_differ_by_case_have_one_order(folder):
    for name in ("CAT", "Cat", "cAt"):
        write(folder / "train" / name / "1.png")
    assert open_folder(str(folder), "train").classes == ("CAT", "Cat", "cAt", "cat", "dog")


def test_a_broken_image_is_named_and_not_replaced(folder):
    (folder / "train" / "cat" / "2.png").write_bytes(b"")
    tar = pack(folder / "train", folder / "train.tar")
    for root in (folder, tar):
        for opened in (open_folder, open_former_folder):
            images = opened(str(root), "train")
            with pytest.raises(ValueError, match=r"cat/2.png' cannot be read as an image: it is in no format"):
                images[1]
            assert shades([images[2]]) == [2]


@pytest.mark.parametrize("content", [b"", b"no tar"])
def test_what_is_no_tar_file_is_named(folder, content):
    (folder / "broken.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken.tar is no tar file that can be read: [^\n]*; give a folder or an"):
        open_folder(str(folder / "broken.tar"), "train")


def test_a_tar_file_that_does_not_end_where_it_should_is_refused(folder):
    path = pack(folder / "train", folder / "train.tar")
    content = path.read_bytes()
    with tarfile.open(path) as tar:
        ends = [*[member.offset for member in tar if member.isdir()][1:], tar.offset]
    for end in ends + [offset + 300 for offset in ends]:
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match="it is cut off"):
            open_folder(str(path), "train")
    path.write_bytes(content[: ends[0] - 300])
    with pytest.raises(ValueError, match="unexpected end of data"):
        open_folder(str(path), "train")
    path.write_bytes(content + content)
    with pytest.raises(ValueError, match="something follows its end"):
        open_folder(str(path), "train")
    path.write_bytes(content[: ends[-1] + 1024])  # the two blocks of zeros that end it
    assert shades(open_folder(str(path), "train")) == [0, 1, 2, 3, 4]


def test_a_compressed_tar_file_is_refused(folder):
    with tarfile.open(folder / "train.tar.gz", "w:gz") as tar:
        tar.add(folder / "train", ".")
    with pytest.raises(ValueError, match=r"train.tar.gz is no tar file that can be read"):
        open_folder(str(folder / "train.tar.gz"), "train")


def test_folders_without_images_are_named(tmp_path):
    (tmp_path / "train" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"Found 0 images in .*train$"):
        open_folder(str(tmp_path), "train")
    (tmp_path / "train" / "cat" / "1.gz").write_text("")
    with pytest.raises(ValueError, match=r"Found 0 images in .*train, but 1 \.gz$"):
        open_folder(str(tmp_path), "train")
