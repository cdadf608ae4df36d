import dataclasses
import io
import json
import logging
import random
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from supernet.training.data import load_data
from supernet.training.data.batch import on
from supernet.training.data.config import DataConfig
from supernet.training.data.image_data import Digits, resize
from supernet.training.data.loading import Order

DIGITS = DataConfig()
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def digits():
    return load_data(DIGITS)


@pytest.fixture
def folder(tmp_path):
    """Six training and four test images, of two classes."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 3), ("val", 2)):
        for name in ("cat", "dog"):
            directory = tmp_path / split / name
            directory.mkdir(parents=True)
            for index in range(count):
                pixels = draw.integers(256, size=(20, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(directory / f"{split}{name}{index}.png")
    return tmp_path


def batches(data, steps, **options):
    return [on(CPU, batch) for batch in data.training_batches(16, 32, seed=3, steps=steps, **options)]


def test_digits_are_split_three_ways_without_overlap(digits):
    assert (len(digits.train), len(digits.holdout), len(digits.test)) == (1293, 144, 360)
    assert digits.num_classes == 10
    assert not set(digits.train.indices) & set(digits.holdout.indices)
    parts = [digits.train, digits.holdout, digits.test]
    pixels = sorted(image.tobytes() for part in parts for image, _ in part)
    whole = sorted(image.tobytes() for split in ("train", "test") for image, _ in Digits(split))
    assert pixels == whole
    assert len(whole) == 1797


def test_compact_images_are_bit_for_bit_those_that_would_be_loaded(digits, folder):
    config = DataConfig("folder", str(folder), holdout=0.3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))
    for data in (digits, load_data(config)):
        compact = data.compact()
        for (images, labels), (pixels, same) in zip(
            [*data.evaluation_batches(data.test, 13), *data.calibration_batches(13, 3, seed=1)],
            [*compact.evaluation_batches(data.test, 13), *compact.calibration_batches(13, 3, seed=1)],
            strict=True,
        ):
            assert pixels.values.dtype == torch.uint8
            assert torch.equal(pixels.normalised(), images)
            assert torch.equal(same, labels)


def test_every_epoch_is_another_permutation_of_the_training_images(digits):
    epoch = digits.steps_per_epoch(32)
    orders = []
    for start in (0, epoch):
        steps = Order(len(digits.train), 32, epoch, 3, range(start, start + epoch), rank=0, world_size=1)
        order = [index for step in steps for _, index in step]
        orders.append(order)
        assert len(set(order)) == len(order) == 32 * epoch
    assert orders[0] != orders[1]


def test_a_step_gets_the_same_images_whatever_came_before(digits):
    expected = batches(digits, range(38, 43))
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    for (images, labels), (other_images, other_labels) in zip(
        expected[2:], batches(digits, range(40, 43)), strict=True
    ):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_augmentation_leaves_the_global_generators_alone(digits):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    batches(digits, range(2))
    drawn = torch.rand(1).item(), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    assert drawn == (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: NPY002


def test_loading_in_other_processes_changes_nothing(digits):
    elsewhere = load_data(DataConfig(), workers=2)
    for (images, labels), (other_images, other_labels) in zip(batches(digits, range(3)), batches(elsewhere, range(3))):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)


def test_ranks_share_the_joint_batch(digits):
    whole = batches(digits, range(2))
    halves = [batches(digits, range(2), rank=rank, world_size=2) for rank in (0, 1)]
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(images[0::2], halves[0][step][0])
        assert torch.equal(images[1::2], halves[1][step][0])
        assert torch.equal(labels[1::2], halves[1][step][1])


def test_calibration_images_are_training_images_prepared_as_for_evaluation(digits):
    images = digits.calibration_images(16, 50, seed=0)
    assert images.shape == (50, 3, 16, 16)
    assert torch.equal(images, digits.calibration_images(16, 50, seed=0))
    training = {image.numpy().tobytes() for image in digits.images(digits.train, 16)[0]}
    assert all(image.numpy().tobytes() in training for image in images)


def test_folders_are_read_and_split(folder):
    data = load_data(DataConfig("folder", str(folder), holdout=0.34))
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.holdout), len(data.test)) == (4, 2, 4)
    images, labels = data.images(data.test, 16)
    assert images.shape == (4, 3, 16, 16)
    assert labels.tolist() == [0, 0, 1, 1]
    images, labels = on(CPU, next(data.training_batches(16, 4, seed=0, steps=range(1))))
    assert images.shape == (4, 3, 16, 16)


def test_tar_files_are_read(folder):
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}.tar", "w") as tar:
            for name in ("cat", "dog"):
                tar.add(folder / split / name, name)
    config = DataConfig("folder", str(folder / "train.tar"), str(folder / "val.tar"), holdout=0.34)
    data = load_data(config)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.holdout)) == (4, 2)
    assert data.images(data.test, 16)[1].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_in_one_line_and_not_replaced(folder, workers):
    (folder / "train" / "cat" / "traincat1.png").write_bytes(b"no image")
    data = load_data(DataConfig("folder", str(folder)), workers=workers)
    data = dataclasses.replace(data, train=data.train.dataset)
    message = r"^'.*train/cat/traincat1\.png' cannot be read as an image: [^\n]*; repair, convert or remove it$"
    with pytest.raises(ValueError, match=message):
        list(data.training_batches(16, 3, seed=0, steps=range(2)))
    with pytest.raises(ValueError, match=message):
        data.images(data.train, 16)


def test_an_error_of_a_process_that_loads_images_is_one_line(digits):
    arrays = dataclasses.replace(digits, workers=1, test=[(np.zeros((8, 8)), 0)] * 3)
    with pytest.raises(ValueError, match=r"^an image is ndarray and not a PIL image: leave transforms[^\n]*$"):
        arrays.images(arrays.test, 16)


def test_a_rare_class_is_held_out_with_every_seed(folder, caplog):
    for index in range(30):
        Image.new("RGB", (4, 4)).save(folder / "train" / "cat" / f"{index}.webp")
    with caplog.at_level(logging.WARNING):
        for seed in range(10):
            data = load_data(DataConfig("folder", str(folder), holdout=0.1), seed)
            held_out = [data.train.dataset.targets[index] for index in data.holdout.indices]
            assert sorted(held_out) == [0, 0, 0, 1]
    assert caplog.messages == []
    for index in (1, 2):
        (folder / "train" / "dog" / f"traindog{index}.png").unlink()
    with caplog.at_level(logging.WARNING):
        data = load_data(DataConfig("folder", str(folder), holdout=0.1))
    assert [data.train.dataset.targets[index] for index in data.holdout.indices] == [0] * 3
    assert caplog.messages == ["1 of 2 classes have one training image, so that none is held out: dog"]


def test_images_are_prepared_alike_for_training_and_evaluation(folder):
    """An image that a camera has turned, and 16 bits of grey, are what their plain copies are."""
    grey = np.linspace(0, 255, 20 * 30).reshape(20, 30).astype(np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for split in ("train", "val"):
        Image.fromarray(np.rot90(grey)).save(folder / split / "cat" / "zturned.png", exif=exif)
        Image.fromarray(grey.astype(np.uint16) << 8).save(folder / split / "cat" / "zz16bits.png")
        Image.fromarray(grey).convert("RGB").save(folder / split / "cat" / "zzz.png")
    config = DataConfig("folder", str(folder), holdout=0.2, scale=(1, 1), hflip=0, color_jitter=0)
    data = load_data(dataclasses.replace(config, ratio=(1, 1)))
    images, _ = data.images(data.test, 16)
    assert torch.equal(images[2], images[4])
    assert torch.equal(images[3], images[4])
    train = dataclasses.replace(data, train=torch.utils.data.Subset(data.train.dataset, [3, 4, 5]))
    images, _ = on(CPU, next(train.training_batches(16, 3, seed=0, steps=range(1))))
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_one_class_and_images_without_a_class_are_refused(folder):
    with pytest.raises(
        ValueError, match=r"split 'train' of .* cannot be read: 3 images lie directly in .*train/cat, such"
    ):
        load_data(DataConfig("folder", str(folder / "train" / "cat"), str(folder / "val" / "cat")))
    for split in ("train", "val"):
        for path in (folder / split / "dog").iterdir():
            path.unlink()
        (folder / split / "dog").rmdir()
    with pytest.raises(ValueError, match="there is one class only, cat: put the images of each class into a folder"):
        load_data(DataConfig("folder", str(folder)))


def test_labels_that_no_class_has_are_refused(monkeypatch):
    class Unlabelled(Digits):
        def __init__(self, split):
            super().__init__(split)
            self.targets = self.targets if split == "train" else [-1] * len(self)

    monkeypatch.setattr("supernet.training.data.datasets.Digits", Unlabelled)
    with pytest.raises(ValueError, match="labels of split 'validation' are -1 to -1, but there are 10 classes"):
        load_data(DIGITS)


def test_resizing_keeps_the_size_it_has():
    images = torch.rand(2, 3, 8, 8)
    assert resize(images, 8) is images
    assert resize(images, 4).shape == (2, 3, 4, 4)
    torch.testing.assert_close(resize(torch.full((1, 3, 8, 8), 0.3), 5), torch.full((1, 3, 5, 5), 0.3))


def write_shards(folder, split, shards):
    """Tar files of so many images each, that are of one shade each, in two classes; the description of the split."""
    names, number = [], 0
    for shard, count in enumerate(shards):
        names.append(f"{split}-{shard:04d}.tar")
        with tarfile.open(folder / names[-1], "w") as tar:
            for _ in range(count):
                file = io.BytesIO()
                Image.fromarray(np.full((20, 20, 3), 6 * number, dtype=np.uint8)).save(file, "PNG")
                for extension, content in (("png", file.getvalue()), ("cls", b"%d" % (number % 2))):
                    member = tarfile.TarInfo(f"{number:04d}.{extension}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                number += 1
    return {"name": split, "num_samples": number, "filenames": names, "shard_lengths": list(shards)}


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")  # on a machine with fewer cores
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_stream_is_read_and_resumed(tmp_path, workers, monkeypatch):
    pytest.importorskip("webdataset")
    from timm.data.readers import reader_wds

    parts = {"train": (13, 9, 8, 10), "judges": (8,), "validation": (12,)}
    splits = {split: write_shards(tmp_path, split, shards) for split, shards in parts.items()}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    config = DataConfig("wds/name", str(tmp_path), holdout_split="judges", num_classes=2)
    decoded, decode = [], reader_wds._decode
    monkeypatch.setattr(
        reader_wds, "_decode", lambda *args, **options: decoded.append(args) or decode(*args, **options)
    )
    used = load_data(config, workers=workers)

    def steps(start, data=None):
        data = data or load_data(config, workers=workers)
        decoded.clear()
        return [on(CPU, batch) for batch in data.training_batches(16, 8, seed=0, steps=range(start, 17))]

    whole = steps(0, used)  # three epochs
    assert [len(labels) for _, labels in whole] == [8] * 17
    assert len({images[0, 0, 0, 0].item() for images, _ in whole}) > 8
    for start in (1, 6, 11, 15):
        for (images, labels), (other_images, other_labels) in zip(whole[start:], steps(start), strict=True):
            assert torch.equal(images, other_images)
            assert torch.equal(labels, other_labels)
        if not workers:
            assert len(decoded) == 8 * (17 - start)
    before = used.calibration_images(16, 30, seed=0)
    for (images, _), (other_images, _) in zip(whole, steps(0, used), strict=True):  # whatever was read before
        assert torch.equal(images, other_images)
    assert torch.equal(before, load_data(config, workers=workers).calibration_images(16, 30, seed=0))


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stream_has_splits_to_judge_and_to_test_by(tmp_path):
    pytest.importorskip("webdataset")
    parts = {"train": (40,), "judges": (8,), "validation": (12,)}
    splits = {split: write_shards(tmp_path, split, shards) for split, shards in parts.items()}
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    config = DataConfig("wds/name", str(tmp_path), holdout_split="judges", num_classes=2)
    data = load_data(config)
    epochs = [labels.tolist() for _, labels in data.training_batches(16, 40, seed=0, steps=range(2))]
    assert epochs[0] != epochs[1]  # epochs are other orders, even of a single file
    assert data.images(data.holdout, 16)[1].tolist() == [0, 1] * 4
    assert data.images(data.test, 16)[1].tolist() == [0, 1] * 6
    with pytest.raises(ValueError, match="name a split to judge subnets by with holdout_split"):
        load_data(dataclasses.replace(config, holdout_split=None))
    with pytest.raises(ValueError, match="give their number as num_classes"):
        load_data(dataclasses.replace(config, num_classes=None))
    splits["judges"]["filenames"] = ["train-0000.tar"]
    (tmp_path / "_info.json").write_text(json.dumps({"splits": splits}))
    with pytest.raises(ValueError, match=r"1 files are in both splits 'train' and 'judges', such as .*train-0000\.tar"):
        load_data(config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig("imagenet"), "there is no dataset 'imagenet'"),
        (DataConfig("folder"), "no images at root None"),
        (DataConfig("folder", "nowhere"), "no images at root 'nowhere'"),
        (DataConfig("torch/nothing", "."), "cannot be read: Unknown torchvision dataset nothing"),
    ],
)
def test_a_missing_dataset_is_named(config, message):
    with pytest.raises(ValueError, match=message):
        load_data(config)


def test_other_classes_in_the_test_images_are_named(folder):
    (folder / "val" / "dog").rename(folder / "val" / "wolf")
    with pytest.raises(ValueError, match="in one of them only: dog, wolf"):
        load_data(DataConfig("folder", str(folder)))


def test_testing_on_the_training_images_is_refused(folder):
    with pytest.raises(ValueError, match=r"6 images are in both splits 'train' and 'validation', such as .*train/cat"):
        load_data(DataConfig("folder", str(folder / "train")))


def test_a_folder_that_contains_the_other_split_is_refused(folder):
    (folder / "val").rename(folder / "test")  # not a name for "validation", so that timm takes the whole folder
    with pytest.raises(ValueError, match="6 images are in both splits"):
        load_data(DataConfig("folder", str(folder)))
    assert len(load_data(DataConfig("folder", str(folder), test_split="test")).test) == 4


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(test_split="train"),
        DataConfig(holdout_split="validation"),
        DataConfig(holdout_split="val"),
        DataConfig(holdout_split="train"),
    ],
)
def test_splits_that_share_digits_are_refused(config):
    with pytest.raises(ValueError, match=r"must differ|are in both splits"):
        load_data(config)


def test_splits_of_one_name_at_two_roots_stay_apart(folder):
    (folder / "val").rename(folder / "test")
    (folder / "other").mkdir()
    (folder / "test").rename(folder / "other" / "train")
    config = DataConfig("folder", str(folder), str(folder / "other"), test_split="train", holdout=0.34)
    data = load_data(config)
    assert (len(data.train), len(data.holdout), len(data.test)) == (4, 2, 4)


def test_judging_by_the_test_images_is_refused(folder):
    with pytest.raises(ValueError, match="4 images are in both splits 'validation' and 'val'"):
        load_data(DataConfig("folder", str(folder), holdout_split="val"))


def test_the_first_images_of_a_named_split_are_of_all_classes(folder):
    shutil.copytree(folder / "train", folder / "judges")
    for path in (folder / "judges").rglob("*"):  # which are others
        if path.is_file():
            Image.new("RGB", (9, 9), "red").save(path)
    config = DataConfig("folder", str(folder), holdout_split="judges")
    first = [load_data(config, seed).holdout[index][1] for seed in range(8) for index in range(2)]
    assert set(first) == {0, 1}
    assert first == [load_data(config, seed).holdout[index][1] for seed in range(8) for index in range(2)]
    former = load_data(dataclasses.replace(config, rules=2)).holdout
    assert [former[index][1] for index in range(6)] == [0, 0, 0, 1, 1, 1]


def test_grey_images_become_coloured(digits):
    grey = dataclasses.replace(digits, test=[(image.convert("L"), label) for image, label in digits.test])
    assert torch.equal(grey.images(grey.test, 16)[0], digits.images(digits.test, 16)[0])


def test_an_unknown_augmentation_is_named():
    with pytest.raises(ValueError, match="timm knows no augmentation policy 'nothing'"):
        load_data(DataConfig(auto_augment="nothing"))


def test_an_empty_folder_is_named(folder):
    for path in (folder / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"split 'validation' of dataset 'folder' .* cannot be read: Found 0 images"):
        load_data(DataConfig("folder", str(folder)))


def test_a_batch_larger_than_the_dataset_is_refused(digits):
    with pytest.raises(ValueError, match="a batch of 5000 is more than the 1293 training images"):
        digits.steps_per_epoch(5000)


@pytest.mark.parametrize(
    "change",
    [
        {"holdout": 0.0},
        {"holdout": 1.0},
        {"crop_pct": 0.0},
        {"hflip": 1.5},
        {"re_prob": -0.1},
        {"scale": (1.0, 0.5)},
        {"ratio": (0.0, 1.0)},
        {"color_jitter": -1.0},
    ],
)
def test_contradictory_settings_are_refused(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        DataConfig(**change)


def test_a_number_of_classes_that_says_nothing_is_called_that(caplog):
    assert load_data(DataConfig(num_classes=3)).num_classes == 10
    assert caplog.messages == ["num_classes 3 has no effect: dataset 'digits' tells its 10 classes itself"]
    load_data(DataConfig(num_classes=10))
    assert len(caplog.messages) == 1
