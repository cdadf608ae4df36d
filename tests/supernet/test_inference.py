"""An image that a subnet is used on is prepared as those that it was trained, calibrated and judged by."""

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from supernet.artifacts.runs import Job
from supernet.artifacts.subnet import SubnetConfig
from supernet.training.data import DataConfig, load_data


def kinds():
    """Images of each kind that a camera, a scanner or a program writes: file name, image, options of saving."""
    pixels = np.random.default_rng(0).integers(256, size=(30, 40, 4), dtype=np.uint8)
    colour, turned = Image.fromarray(pixels[..., :3]), Image.Exif()
    turned[ExifTags.Base.Orientation] = 8
    return [
        ("colour.png", colour, {}),
        ("grey.png", colour.convert("L"), {}),
        ("black.png", colour.convert("1"), {}),
        ("deep.png", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        ("deep.tiff", Image.fromarray(pixels[..., 0].astype(np.uint16) * 257), {}),
        ("palette.png", colour.quantize(16), {}),
        ("clear.png", colour.quantize(16), {"transparency": 3}),
        ("palette.gif", colour.quantize(16), {}),
        ("alpha.png", Image.fromarray(pixels), {}),
        ("alpha.webp", Image.fromarray(pixels), {"lossless": True}),
        ("greyalpha.png", Image.fromarray(pixels).convert("LA"), {}),
        ("cmyk.jpg", colour.convert("CMYK"), {}),
        ("cmyk.tif", colour.convert("CMYK"), {}),
        ("turned.jpg", colour, {"exif": turned}),
        ("turned.PNG", colour.convert("L"), {"exif": turned}),
    ]


@pytest.mark.parametrize(
    ("name", "image", "options"), kinds(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_kind_of_image_is_prepared_as_in_evaluation(tmp_path, name, image, options):
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / split / label).mkdir(parents=True)
            image.save(tmp_path / split / label / name, **options)
            image.save(tmp_path / split / label / f"2{name}", **options)
    data = load_data(DataConfig("folder", str(tmp_path), holdout=0.5))
    config = SubnetConfig.of("mobilenet_v3_micro", "{}", Job().family({"num_classes": 2}).space.smallest, data)
    size = config.input_size[-1]
    with Image.open(tmp_path / "val" / "cat" / name) as found:
        network_input = config.transform()(found)
    assert network_input.shape == (3, size, size)
    for images in (
        data.images(data.test, size)[0],
        data.images(data.holdout, size)[0],
        data.calibration_images(size, 2, seed=0),
    ):
        assert all(torch.equal(prepared, network_input) for prepared in images)
