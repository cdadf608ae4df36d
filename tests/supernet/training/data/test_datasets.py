import gc
import io
import json
import struct
import tarfile

import numpy as np
import pytest
from PIL import ExifTags, Image

from supernet.training.data.datasets import Digits, Indexed, broken_images, open_dataset
from supernet.training.data.images import to_rgb


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def photograph():
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(60, 60, 3), dtype=np.uint8))


def grey(shade):
    return Image.new("L", (4, 4), shade)


@pytest.fixture
def folder(tmp_path):
    for shade, name in enumerate(("b/1.png", "a/2.png", "a/10.png")):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        grey(shade).save(path)
    return tmp_path


def seen(images):
    return [(image.mode, image.getpixel((0, 0))[0], label) for image, label in images]


def test_the_digits_tell_their_labels():
    digits = Digits("train")
    assert digits.targets == [label for _, label in digits]
    assert len(digits.names) == len(digits.targets) == 1437


@pytest.mark.parametrize("name", ["torch/image_folder", "torch/folder"])
def test_folders_of_torchvision_are_those_of_the_framework(folder, name):
    images = open_dataset(name, str(folder), "train")
    assert seen(images) == [("RGB", 1, 0), ("RGB", 2, 0), ("RGB", 0, 1)]
    former = open_dataset(name, str(folder), "train", rules=1)  # in the order of text
    assert seen(former) == [("RGB", 2, 0), ("RGB", 1, 0), ("RGB", 0, 1)]
    assert (former.classes, former.targets.tolist()) == (("a", "b"), [0, 0, 1])
    assert former.names[0] == str(folder / "train" / "a" / "10.png")


def test_images_of_torchvision_are_prepared_as_all_others(folder):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    deep = np.full((2, 4), 7 << 8, dtype=np.uint16)
    Image.fromarray(deep).save(folder / "train" / "a" / "2.png", exif=exif)
    (folder / "train" / "b" / "1.png").write_bytes(b"")
    images = open_dataset("torch/image_folder", str(folder), "train", rules=1)
    image, _ = images[1]
    assert (image.size, image.getpixel((0, 0))) == ((2, 4), (7, 7, 7))
    with pytest.raises(ValueError, match=r"^'.*b/1.png' cannot be read as an image: it is in no format that Pillow"):
        images[2]


def test_an_image_without_a_name_is_told_by_its_index():
    class Broken:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            if index:
                raise OSError("disk on fire\nor so")
            return Image.new("L", (2, 2)), None

    images = Indexed(Broken(), "split 'test'", None, None)
    with pytest.raises(ValueError, match=r"^image 1 of split 'test' cannot be read as an image: disk on fire; repair"):
        images[1]
    with pytest.raises(ValueError, match=r"^image 0 of split 'test' has no label"):
        images[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_all_broken_images_are_found(folder, workers):
    (folder / "train" / "b" / "1.png").write_bytes(b"")
    (folder / "train" / "a" / "10.png").write_bytes((folder / "train" / "a" / "2.png").read_bytes()[:45])
    first, second, third = broken_images(open_dataset("folder", str(folder), "train"), workers)
    assert first is None
    assert "a/10.png' cannot be read" in second
    assert "b/1.png' cannot be read" in third


@pytest.mark.filterwarnings("ignore")  # those of other packages about themselves
def test_a_table_tells_its_labels_and_names_what_is_broken(tmp_path):
    datasets = pytest.importorskip("datasets")
    import pyarrow.parquet

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = io.BytesIO()
    Image.new("LA", (2, 4), (0, 0)).save(turned, "PNG", exif=exif)
    pictures = [png(grey(1)), png(Image.fromarray(np.full((2, 2), 2 << 8, np.uint16))), turned.getvalue(), b"broken"]
    rows = {"image": [{"bytes": content, "path": None} for content in pictures], "label": [0, 1, 0, 1]}
    (tmp_path / "data").mkdir()
    table = pyarrow.Table.from_pydict(rows, schema=features.arrow_schema)
    pyarrow.parquet.write_table(table, tmp_path / "data" / "train-0.parquet")
    images = open_dataset(f"hfds/{tmp_path}/data", str(tmp_path / "cache"), "train")
    assert (images.classes, images.targets.tolist()) == (("cat", "dog"), [0, 1, 0, 1])
    assert seen(images[index] for index in range(3)) == [("RGB", 1, 0), ("RGB", 2, 1), ("RGB", 255, 0)]
    assert images[2][0].size == (4, 2)
    with pytest.raises(
        ValueError, match=r"image 3 of split 'train' of dataset 'hfds/.* cannot be read as an image: it is"
    ):
        images[3]


def write_stream(folder, contents):
    with tarfile.open(folder / "train-0.tar", "w") as tar:
        for index, (suffix, content) in enumerate(contents):
            for kind, part in ((suffix, content), ("cls", b"0")):
                member = tarfile.TarInfo(f"{index}.{kind}")
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    count = len(contents)
    splits = {"train": {"name": "train", "num_samples": count, "filenames": ["train-0.tar"], "shard_lengths": [count]}}
    (folder / "_info.json").write_text(json.dumps({"splits": splits}))
    return open_dataset("wds/name", str(folder), "train")


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_names_what_is_broken(tmp_path):
    pytest.importorskip("webdataset")
    deep = Image.fromarray(np.full((2, 2), 2 << 8, np.uint16))
    contents = [("png", png(grey(1))), ("tif", png(deep)), ("jpeg", b"broken"), ("png", png(grey(3)))]
    found = []
    with pytest.raises(ValueError, match=r"train-0.tar/2' cannot be read as an image: it is in no format that Pillow"):
        found.extend(write_stream(tmp_path, contents))
    assert seen((to_rgb(image), label) for image, label in found) == [("RGB", 1, 0), ("RGB", 2, 0)]
    first, second, third = broken_images(open_dataset("wds/name", str(tmp_path), "train"))
    assert (first, second) == (None, None)
    assert "train-0.tar/2' cannot be read" in third
    gc.collect()  # webdataset leaves the file open until then


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_that_is_cut_off_is_refused(tmp_path):
    pytest.importorskip("webdataset")
    images = write_stream(tmp_path, [("png", png(grey(1))), ("png", png(photograph()))])
    path = tmp_path / "train-0.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"^image \d of split 'train' .* cannot be read as an image: unexpected end"):
        list(images)
    gc.collect()


def test_numbers_of_torchvision_tell_their_labels(tmp_path):
    """MNIST's files: a header of big-endian integers, then bytes."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, 3) + bytes([7, 0, 7]))
        pixels = np.arange(3, dtype=np.uint8).repeat(28 * 28).tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, 3, 28, 28) + pixels)
    images = open_dataset("torch/mnist", str(tmp_path), "train")
    assert images.targets.tolist() == [7, 0, 7]
    assert len(images.classes) == 10
    assert seen(images) == [("RGB", 0, 7), ("RGB", 1, 0), ("RGB", 2, 7)]
