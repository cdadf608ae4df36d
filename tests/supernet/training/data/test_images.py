import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from supernet.training.data.images import UPRIGHT, evaluation_transform, image_suffixes, read_image, to_rgb

RED = (255, 0, 0)


def file_of(image, suffix="PNG", **options):
    """The image as it is read from a file."""
    file = io.BytesIO()
    image.save(file, suffix, **options)
    file.seek(0)
    return Image.open(file)


def photograph(seed=0):
    """Something smooth, and nowhere symmetric."""
    draw = np.random.default_rng(seed)
    return Image.fromarray(draw.integers(256, size=(3, 2, 3), dtype=np.uint8)).resize(
        (40, 60), Image.Resampling.BICUBIC
    )


def with_orientation(image, value):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = value
    return file_of(image, exif=exif)


def stored(image, orientation):
    """The pixels of `image` as a camera stores them that says by `orientation` how to turn them."""
    opposite = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    turn = UPRIGHT.get(orientation)
    return image if turn is None else image.transpose(opposite.get(turn, turn))


def colours(image):
    return sorted({colour for _, colour in to_rgb(image).getcolors()})


def test_plain_colour_is_left_as_it_is():
    image = photograph()
    assert to_rgb(image) is image


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_images_are_turned_upright_and_only_once(orientation):
    image = photograph()
    turned = with_orientation(stored(image, orientation), orientation)
    found = to_rgb(turned)
    assert np.array_equal(found, image)
    assert np.array_equal(found, ImageOps.exif_transpose(turned))  # Pillow's own
    assert to_rgb(found) is found


def test_the_first_row_of_a_portrait_is_on_its_right():
    pixels = np.zeros((2, 3, 3), dtype=np.uint8)
    pixels[0, :] = RED
    found = np.asarray(to_rgb(with_orientation(Image.fromarray(pixels), 6)))
    assert found.shape == (3, 2, 3)
    assert (found[:, 1] == RED).all()
    assert (found[:, 0] == 0).all()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "TIFF", "PNG"])
def test_every_format_is_turned_once(kind):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:4] = 255
    found = np.asarray(read_image(file_of(Image.fromarray(pixels), kind, exif=exif).fp))
    assert found.shape == (16, 8, 3)
    assert found[:, 4:].mean() > 240
    assert found[:, :4].mean() < 15


@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0", b"Exif\0\0II"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF", "ignore:Possibly corrupt", "ignore:Truncated")
def test_broken_metadata_is_no_broken_image(exif):
    image = photograph()
    image.info["exif"] = exif
    assert np.array_equal(to_rgb(image), photograph())


def test_an_orientation_that_means_nothing_is_ignored():
    for value in (0, 9):
        assert np.array_equal(to_rgb(with_orientation(photograph(), value)), photograph())


def test_16_bits_of_grey_keep_their_upper_8():
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    expected = np.stack([grey] * 3, axis=-1)
    for deep in (grey * 256, grey * 257):
        for kind in ("PNG", "TIFF", "PPM"):
            image = file_of(Image.fromarray(deep), kind)
            assert image.mode in ("I;16", "I;16B", "I")
            assert np.array_equal(to_rgb(image), expected), kind
        assert np.array_equal(to_rgb(Image.fromarray(deep)), expected)
        big_endian = Image.frombytes("I;16B", (16, 16), deep.astype(">u2").tobytes())
        assert np.array_equal(to_rgb(big_endian), expected)


def test_12_bits_of_grey_keep_their_upper_8():
    entries = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 3}  # width, height, bits, ...
    fields = b"".join(struct.pack("<HHIHxx", tag, 3, 1, value) for tag, value in entries.items())
    pixels = (0xABC << 12 | 0x123).to_bytes(3, "big") + b"\0"
    file = io.BytesIO(
        struct.pack("<2sHI", b"II", 42, 12) + pixels + struct.pack("<H", len(entries)) + fields + b"\0" * 4
    )
    assert [to_rgb(Image.open(file)).getpixel((x, 0)) for x in (0, 1)] == [(0xAB,) * 3, (0x12,) * 3]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_have_the_colours_that_pillow_sees(mode):
    image = photograph().convert(mode)
    found = to_rgb(image)
    assert found.mode == "RGB"
    assert np.array_equal(found, image.convert("RGB"))


def test_what_is_transparent_lies_on_white():
    clear, half, full = ((*RED, alpha) for alpha in (0, 128, 255))
    image = Image.new("RGBA", (3, 1))
    for place, colour in enumerate((clear, half, full)):
        image.putpixel((place, 0), colour)
    assert colours(image) == sorted([(255, 255, 255), (255, 127, 127), RED])
    assert colours(file_of(image)) == colours(image)
    assert colours(Image.new("LA", (1, 1), (0, 0))) == [(255, 255, 255)]
    assert colours(Image.new("LA", (1, 1), (9, 255))) == [(9, 9, 9)]
    assert colours(Image.new("LA", (1, 1), (0, 128)).convert("La")) == [(127, 127, 127)]
    assert colours(Image.new("RGBA", (1, 1), (0, 0, 0, 128)).convert("RGBa")) == [(127, 127, 127)]


def test_a_transparent_colour_of_a_palette_or_a_plain_image_lies_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    assert colours(file_of(palette)) == [(0, 0, 255), RED]
    assert colours(file_of(palette, transparency=0)) == [(0, 0, 255), (255, 255, 255)]
    assert colours(file_of(palette, "GIF", transparency=0)) == [(0, 0, 255), (255, 255, 255)]
    assert colours(file_of(palette, transparency=b"\0\x80")) == [(127, 127, 255), (255, 255, 255)]
    assert colours(file_of(Image.new("RGB", (1, 1), RED), transparency=RED)) == [(255, 255, 255)]
    assert colours(file_of(Image.new("L", (1, 1), 7), transparency=7)) == [(255, 255, 255)]
    assert colours(palette.convert("PA")) == [(0, 0, 255), RED]


def test_opaque_images_lose_nothing():
    image = photograph()
    assert np.array_equal(to_rgb(image.convert("RGBA")), image)


def test_an_animation_is_its_first_picture():
    file = io.BytesIO()
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), (0, 0, 255))
    first.save(file, "GIF", save_all=True, append_images=[second])
    assert colours(Image.open(file)) == [RED]


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "its pixels are floating-point numbers, whose range"),
        (Image.fromarray(np.zeros((2, 2), dtype=np.int32)), "its pixels are integers of 32 bits, whose range"),
    ],
)
def test_numbers_without_a_known_range_are_refused(image, reason):
    with pytest.raises(ValueError, match=f"an image cannot be read as an image: {reason}"):
        to_rgb(image)


def test_what_is_no_image_is_refused():
    with pytest.raises(ValueError, match="an image is ndarray and not a PIL image"):
        to_rgb(np.zeros((2, 2, 3)))


def truncated(kind):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(64, 64, 3), dtype=np.uint8)).save(file, kind)
    return file.getvalue()[: len(file.getvalue()) // 2]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is in no format that Pillow knows"),
        (b"no image at all", "it is in no format that Pillow knows"),
        (truncated("JPEG"), "image file is truncated"),
        (truncated("PNG"), ""),
        (truncated("WEBP"), ""),
        (truncated("GIF"), ""),
        (truncated("TIFF"), ""),
        (truncated("BMP"), ""),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, reason):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^'{path}' cannot be read as an image: {reason}[^\n]*; repair, convert or"):
        read_image(path)


def test_a_missing_file_and_a_bomb_are_named(tmp_path, monkeypatch):
    path = tmp_path / "large.png"
    with pytest.raises(ValueError, match=r"large.png' cannot be read as an image: the file is not there"):
        read_image(path)
    Image.new("1", (300, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match=r"large.png' cannot be read as an image: Image size \(30000 pixels\)"):
        read_image(path)


def test_an_image_that_was_opened_elsewhere_is_named(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(truncated("JPEG"))
    with Image.open(path) as image, pytest.raises(ValueError, match=f"^'{path}' cannot be read"):
        to_rgb(image)


def test_an_input_is_prepared_from_any_image():
    transform = evaluation_transform(16, "bicubic", 1.0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    expected = transform(photograph().convert("L").convert("RGB"))
    assert expected.shape == (3, 16, 16)
    assert transform(photograph().convert("L")).equal(expected)
    assert transform(with_orientation(stored(photograph().convert("L"), 6), 6)).equal(expected)
    assert transform(Image.new("RGBA", (20, 20), (0, 0, 0, 0))).equal(transform(Image.new("RGB", (20, 20), "white")))


def test_suffixes_are_those_of_images():
    suffixes = image_suffixes()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm"} <= suffixes
    assert not {".txt", ".mpg", ".h5", ".ps", ".pdf", ""} & suffixes
