"""Every kind of image file that people have is decoded as Pillow's own arithmetic does it, or refused by its name."""

import io
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageOps, TiffImagePlugin

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.decode import ENDINGS, FOREIGN_ENDINGS, background_colour, fit_square, open_image, to_rgb
from bksdm_jax.data.prepare.config import ShardOptions
from bksdm_jax.data.prepare.shards import storable
from tests.image_kinds import (
    CLEAR,
    DEEP,
    HIGH,
    NOISY,
    ORIENTATION,
    READ,
    REFUSED,
    WIDE,
    of_size,
    pages_of_tiff,
    picture,
    saved,
)

KEPT = ("JPEG", "MPO", "PNG", "WEBP")


def by_pillow(data: bytes) -> np.ndarray:
    """Pillow's own way to an upright image in RGB; of 16 bits the upper 8, since its way clips them at 255."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = Image.open(io.BytesIO(data))
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):
            return np.dstack([np.asarray(image).astype(np.int64) // 256] * 3).astype(np.uint8)
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", READ)
def test_what_is_read_equals_pillows_arithmetic(kind: str, recwarn: pytest.WarningsRecorder) -> None:
    data = READ[kind]()
    expected = by_pillow(data)
    np.testing.assert_array_equal(np.asarray(to_rgb(open_image(data))), expected)
    stored, size = storable(data, ShardOptions())
    assert size == expected.shape[1::-1]
    np.testing.assert_array_equal(by_pillow(stored), expected)
    with Image.open(io.BytesIO(data)) as file:
        assert (stored == data) == (file.mode == "RGB" and file.format in KEPT)
    assert not [str(warning.message) for warning in recwarn if "end lost" not in kind]


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings("ignore:::PIL")
def test_what_is_not_read_is_refused_by_its_name(kind: str) -> None:
    make, said = REFUSED[kind]
    data = make()
    for read in (lambda: to_rgb(open_image(data)), lambda: storable(data, ShardOptions())):
        with pytest.raises(ValueError, match=said) as error:
            read()
        assert "0x" not in str(error.value)
        assert "\n" not in str(error.value)
        assert ("damaged" in str(error.value)) == ("damaged" in said)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_any_mode_becomes_rgb_as_pillow_converts_it(mode: str) -> None:
    image = picture(mode)
    straight = image.convert("LA") if mode == "La" else image  # the only mode that Pillow turns it into
    np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(straight.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_of_sixteen_bits_the_upper_eight_are_taken(mode: str) -> None:
    order = {"I;16B": ">u2", "I;16N": "=u2"}.get(mode, "<u2")
    image = Image.frombytes(mode, (WIDE, HIGH), DEEP.astype(order).tobytes())
    np.testing.assert_array_equal(np.asarray(to_rgb(image))[..., 0], DEEP // 256)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_thirty_two_bits_are_refused(mode: str) -> None:
    with pytest.raises(ValueError, match=rf"^32-bit pixels \({mode}\)"):
        to_rgb(picture(mode))


def laid_on(data: bytes, colour: str) -> np.ndarray:
    """The blend in floating point of colours and alpha as Pillow's RGBA has them."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode.startswith("I;16"):
        clear = np.asarray(image) == image.info["transparency"]
        rgba = np.dstack([np.asarray(image) // 256] * 3 + [np.where(clear, 0, 255)])
    else:
        rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + np.array(ImageColor.getrgb(colour)[:3]) * (1 - alpha)


@pytest.mark.parametrize("kind", CLEAR)
@pytest.mark.parametrize("colour", ["white", "#123456"])
def test_transparent_images_are_laid_on_the_background(kind: str, colour: str) -> None:
    data, plain = CLEAR[kind](), ShardOptions()
    expected = laid_on(data, colour)
    assert np.abs(expected - by_pillow(data)).max() > 20  # the background is seen
    found = np.asarray(to_rgb(open_image(data), background=ImageColor.getrgb(colour)))
    np.testing.assert_allclose(found, expected, atol=1)
    stored, size = storable(data, ShardOptions(background=colour))
    assert size == expected.shape[1::-1]
    np.testing.assert_array_equal(by_pillow(stored), found)
    np.testing.assert_array_equal(by_pillow(storable(data, plain)[0]), by_pillow(data))


@pytest.mark.parametrize("mode", ["La", "RGBa", "LA", "PA"])
def test_premultiplied_colours_are_laid_on_the_background(mode: str) -> None:
    image = picture(mode)
    whole = image.convert("LA").convert("RGBA") if mode == "La" else image.convert("RGBA")
    values = np.asarray(whole).astype(float)
    alpha = values[..., 3:] / 255
    expected = values[..., :3] * alpha + np.array([0, 200, 100]) * (1 - alpha)
    np.testing.assert_allclose(np.asarray(to_rgb(image, background=(0, 200, 100))), expected, atol=1)


def test_an_opaque_image_has_no_background() -> None:
    for kind in ("JPEG orientation 6", "PNG RGB", "WebP lossy"):
        data = READ[kind]()
        assert storable(data, ShardOptions(background="red"))[0] == data


@pytest.mark.parametrize("value", ["nocolour", "#12345", "#ff000080", "rgb(300,0,0)", "#" * 1000, " ", 7, None])
def test_what_is_no_background_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"^config: background is") as error:
        background_colour("config", value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_backgrounds_are_parsed() -> None:
    assert background_colour("config", "") is None
    assert background_colour("config", "white") == (255, 255, 255)
    assert background_colour("config", "#12ab34ff") == (0x12, 0xAB, 0x34)


@pytest.mark.parametrize("kind", ["JPEG orientation 6", "JPEG orientation 3", "PNG RGBA turned", "TIFF turned"])
def test_downscaled_images_are_stored_upright(kind: str) -> None:
    data = READ[kind]()
    whole = Image.fromarray(by_pillow(data))
    size = tuple(round(length * 9 / min(whole.size)) for length in whole.size)
    stored, found = storable(data, ShardOptions(resolution=9))
    assert found == size
    assert Image.open(io.BytesIO(stored)).getexif().get(ORIENTATION, 1) == 1
    expected = np.asarray(whole.resize(size, Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(by_pillow(stored) - expected).mean() < 20  # JPEG of noise; turned otherwise it is above 60
    assert Image.open(io.BytesIO(stored)).size == size


def test_photographs_are_not_turned_where_they_must_not_be() -> None:
    data = READ["JPEG orientation 6"]()
    np.testing.assert_array_equal(
        np.asarray(to_rgb(open_image(data), upright=False)), np.asarray(Image.open(io.BytesIO(data)))
    )


def test_an_upright_image_is_not_turned_again() -> None:
    for kind in ("JPEG orientation 6", "PNG XMP turned", "WebP turned", "AVIF turned"):
        image = to_rgb(open_image(READ[kind]()))
        np.testing.assert_array_equal(np.asarray(to_rgb(image)), np.asarray(image))


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\0\0", b"Exif\0\0"])
@pytest.mark.filterwarnings("ignore:::PIL")
def test_broken_exif_turns_nothing(exif: bytes) -> None:
    data = saved(picture(), "JPEG", exif=exif)
    np.testing.assert_array_equal(np.asarray(to_rgb(open_image(data))), np.asarray(Image.open(io.BytesIO(data))))
    assert storable(data, ShardOptions()) == (data, (WIDE, HIGH))


def test_small_and_narrow_images_are_rejected_with_numbers() -> None:
    data = of_size(40, 30)
    assert storable(data, ShardOptions(least_side=30))[0] == data
    with pytest.raises(ValueError, match=r"40 x 30 .* 30, least_side is 31$"):
        storable(data, ShardOptions(least_side=31))
    with pytest.raises(ValueError, match="65 x 1 pixels"):
        storable(of_size(65, 1), ShardOptions())


def test_pages_of_a_tiff_are_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    load = TiffImagePlugin.ImageFileDirectory_v2.load

    def counted(self: TiffImagePlugin.ImageFileDirectory_v2, file: io.BytesIO) -> None:
        reads.append(self)
        assert len(reads) < 12
        load(self, file)

    monkeypatch.setattr(TiffImagePlugin.ImageFileDirectory_v2, "load", counted)
    with pytest.raises(ValueError, match="several pictures"):
        open_image(pages_of_tiff(1000))
    reads.clear()
    assert to_rgb(open_image(pages_of_tiff(1))).getpixel((0, 0)) == (128, 128, 128)


def test_a_tiff_whose_page_follows_itself_has_one() -> None:
    page = pages_of_tiff(1)
    assert to_rgb(open_image(page[:-4] + struct.pack("<I", 10))).size == (1, 1)


READS = """
import sys, pathlib, concurrent.futures
from bksdm_jax.data.decode import fit_square, open_image, to_rgb
def read(path):
    try:
        return fit_square(to_rgb(open_image(path.read_bytes())), 8).shape
    except ValueError as error:
        return str(error)
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(*pool.map(read, sorted(pathlib.Path(sys.argv[1]).iterdir())), sep="\\n")
"""


def test_no_warning_of_pillow_reaches_the_user(tmp_path: Path) -> None:
    """In another process, since pytest has filters of its own; there a warning that isn't filtered is an error."""
    for name, make in NOISY.items():
        data = make()
        (tmp_path / name).write_bytes(data)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            image = Image.open(io.BytesIO(data))
            if image.width < 1000:
                image.getexif()
                image.convert("RGB")
        assert heard, f"{name} makes Pillow warn"
    for options in ((), ("-W", "error")):
        done = subprocess.run(
            [sys.executable, *options, "-c", READS, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.splitlines().count("(8, 8, 3)") == len(NOISY) - 1
        assert "9500 x 9500" in done.stdout


def test_names_of_files() -> None:
    assert {".jfif", ".avif", ".jpg", ".png"} < set(ENDINGS)
    assert {".heic", ".heif", ".jp2", ".j2k", ".jpx", ".svg", ".jxl", ".psd", ".eps"} == set(FOREIGN_ENDINGS)


def test_enlarged_images_are_squares() -> None:
    assert fit_square(to_rgb(open_image(of_size(1, 1))), 16).shape == (16, 16, 3)
