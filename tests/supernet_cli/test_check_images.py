import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (40, 40)).save(tmp_path / split / label / f"{index}.png")
    return tmp_path


def test_broken_images_of_all_parts_are_listed(command, root):
    whole = command("check-images", "--root", root, "--workers", 0)
    assert (whole.returncode, whole.stdout.splitlines()[-1]) == (0, "All 12 images can be read.")
    (root / "train" / "cat" / "1.png").write_bytes(b"")
    path = root / "val" / "dog" / "2.png"
    path.write_bytes(path.read_bytes()[:50])
    found = command("check-images", "--root", root, "--workers", 0)
    assert found.returncode == 2
    assert found.stderr.startswith("error: 2 of 12 images cannot be read")
    assert f"'{root}/train/cat/1.png' cannot be read as an image: it is in no format that Pillow knows" in found.stdout
    assert f"'{path}' cannot be read as an image" in found.stdout


@pytest.mark.parametrize("workers", [0, 1])
def test_training_on_a_broken_image_ends_in_one_line(command, root, workers, tmp_path):
    noise = np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)
    path = root / "train" / "cat" / "1.jpg"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-900])
    flags = f"--recipe cifar10 --epochs 1 --warmup-epochs 0 --batch-size 2 --workers {workers} --holdout 0.3"
    found = command("train", *flags.split(), "--root", root, "--output", tmp_path / "run")
    assert found.returncode == 2
    assert found.stderr.startswith(f"error: '{path}' cannot be read as an image: image file is truncated")
    assert len(found.stderr.splitlines()) == 1
