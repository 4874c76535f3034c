"""Every kind of image file that people have is decoded as Pillow's own arithmetic does it, or refused by its name."""

import io
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageColor, ImageOps, PngImagePlugin, TiffImagePlugin

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.decode import ENDINGS, FOREIGN_ENDINGS, background_colour, fit_square, open_image, to_rgb
from bksdm_jax.data.prepare.config import ShardOptions
from bksdm_jax.data.prepare.shards import storable

WIDE, HIGH = 26, 18
ORIENTATION = 0x0112
KEPT = ("JPEG", "MPO", "PNG", "WEBP")
RGB = np.random.default_rng(5).integers(0, 256, (HIGH, WIDE, 3), np.uint8)
RGB[:8, :8] = (250, 10, 20)  # a corner that shows how it is turned
DEEP = np.random.default_rng(6).integers(0, 2**16, (HIGH, WIDE), np.uint16)


def picture(mode: str = "RGB") -> Image.Image:
    if mode.startswith("I;16"):
        return Image.fromarray(DEEP)
    image = Image.fromarray(RGB)
    if mode in ("RGBA", "LA", "RGBa", "La", "PA"):
        image.putalpha(Image.fromarray(RGB[..., 1] // 2 + RGB[..., 2] // 2))
    if mode == "La":
        return image.convert("LA").convert("La")
    return image.convert("I").convert("F") if mode == "F" else image.convert(mode)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def turned(orientation: int, form: str, mode: str = "RGB", **options: object) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return saved(picture(mode), form, exif=exif, **options)


def several(form: str, count: int = 2, **options: object) -> bytes:
    frames = [Image.fromarray(np.roll(RGB, shift, 1)) for shift in range(count)]
    return saved(frames[0], form, save_all=True, append_images=frames[1:], **options)


def xmp_turned() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    return saved(picture(), "PNG", pnginfo=text)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(wide: int, high: int, depth: int, kind: int, rows: bytes, *more: bytes, interlaced: int = 0) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", wide, high, depth, kind, 0, 0, interlaced))
    return b"".join((b"\x89PNG\r\n\x1a\n", head, *more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")))


def interlaced() -> bytes:
    rows = b""
    for left, top, right, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)):
        rows += b"".join(b"\0" + line.tobytes() for line in RGB[top::down, left::right])
    rows += b"".join(b"\0" + line.tobytes() for line in RGB[1::2])
    return png(WIDE, HIGH, 8, 2, rows, interlaced=1)


def rows_of(values: np.ndarray) -> bytes:
    return b"".join(b"\0" + line.tobytes() for line in values)


def bmp32(alpha: bool) -> bytes:
    rows = np.dstack([RGB[::-1, :, ::-1], RGB[..., 0] if alpha else np.zeros((HIGH, WIDE), np.uint8)]).tobytes()
    length = 108 if alpha else 40
    head = struct.pack("<IiiHHIIiiII", length, WIDE, HIGH, 1, 32, 3 if alpha else 0, len(rows), 2835, 2835, 0, 0)
    if alpha:  # which bits are whose
        head += struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
    return b"BM" + struct.pack("<IHHI", 14 + length + len(rows), 0, 0, 14 + length) + head + rows


def grey_tiff(strip: bytes, bits: int, order: str = "<", extra: tuple = ()) -> bytes:
    """Grey samples, then their page, by hand: for byte orders and sample formats that Pillow doesn't write."""
    entries = [(256, 4, WIDE), (257, 4, HIGH), (258, 3, bits), (259, 3, 1), (262, 3, 1), (273, 4, 8)]
    entries += [(277, 3, 1), (278, 4, HIGH), (279, 4, len(strip)), *extra]
    page = struct.pack(f"{order}H", len(entries))
    for tag, kind, value in entries:
        page += struct.pack(f"{order}HHI", tag, kind, 1)
        page += struct.pack(f"{order}HH", value, 0) if kind == 3 else struct.pack(f"{order}I", value)
    start = b"II*\0" if order == "<" else b"MM\0*"
    return start + struct.pack(f"{order}I", 8 + len(strip)) + strip + page + bytes(4)


def pages_of_tiff(count: int) -> bytes:
    """Pages of one pixel, all of which share it."""
    size, first = 2 + 8 * 12 + 4, 10
    tags = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (278, 3, 1), (279, 4, 1)]
    body = struct.pack("<H", 8) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    follows = [first + (i + 1) * size for i in range(count - 1)] + [0]
    return b"II*\0" + struct.pack("<I", first) + b"\x80\0" + b"".join(body + struct.pack("<I", at) for at in follows)


def brand(data: bytes, major: bytes) -> bytes:
    return data[:8] + major + data[12:]


def of_size(wide: int, high: int, form: str = "PNG") -> bytes:
    return saved(Image.fromarray(np.resize(RGB, (high, wide, 3))), form)


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()


READ: dict[str, Callable[[], bytes]] = {
    "JPEG RGB": lambda: saved(picture(), "JPEG"),
    "JPEG grey": lambda: saved(picture("L"), "JPEG"),
    "JPEG CMYK": lambda: saved(picture("CMYK"), "JPEG"),
    "JPEG progressive": lambda: saved(picture(), "JPEG", progressive=True),
    "JPEG 4:4:4": lambda: saved(picture(), "JPEG", subsampling=0, quality=98),
    "JPEG profile": lambda: saved(picture(), "JPEG", icc_profile=profile()),
    "JPEG grey turned": lambda: turned(6, "JPEG", "L"),
    "MPO": lambda: several("MPO"),
    **{f"JPEG orientation {i}": lambda i=i: turned(i, "JPEG") for i in range(1, 9)},
    "JPEG orientation 99": lambda: turned(99, "JPEG"),
    "PNG 1": lambda: saved(picture("1"), "PNG"),
    "PNG L": lambda: saved(picture("L"), "PNG"),
    "PNG L transparency": lambda: saved(picture("L"), "PNG", transparency=picture("L").getpixel((3, 3))),
    "PNG LA": lambda: saved(picture("LA"), "PNG"),
    "PNG P": lambda: saved(picture("P"), "PNG"),
    "PNG P 4 bits": lambda: saved(picture().quantize(12), "PNG", bits=4),
    "PNG P transparency": lambda: saved(picture("P"), "PNG", transparency=picture("P").getpixel((9, 9))),
    "PNG P transparency bytes": lambda: saved(picture("P"), "PNG", transparency=bytes(range(100))),
    "PNG RGB": lambda: saved(picture(), "PNG"),
    "PNG RGB transparency": lambda: saved(picture(), "PNG", transparency=(250, 10, 20)),
    "PNG RGBA": lambda: saved(picture("RGBA"), "PNG"),
    "PNG RGBA turned": lambda: turned(7, "PNG", "RGBA"),
    "PNG P turned": lambda: turned(5, "PNG", "P", transparency=bytes(range(100))),
    "PNG 16-bit grey": lambda: saved(picture("I;16"), "PNG"),
    "PNG 16-bit grey turned": lambda: turned(8, "PNG", "I;16"),
    "PNG 16-bit RGB": lambda: png(WIDE, HIGH, 16, 2, rows_of(np.dstack([DEEP] * 3).astype(">u2"))),
    "PNG 16-bit RGBA": lambda: png(WIDE, HIGH, 16, 6, rows_of(np.dstack([DEEP] * 4).astype(">u2"))),
    "PNG interlaced": interlaced,
    "PNG XMP turned": xmp_turned,
    "APNG one frame": lambda: several("PNG", 1),
    "WebP lossy": lambda: saved(picture(), "WEBP"),
    "WebP lossless": lambda: saved(picture(), "WEBP", lossless=True),
    "WebP alpha": lambda: saved(picture("RGBA"), "WEBP"),
    "WebP turned": lambda: turned(3, "WEBP"),
    "WebP one frame": lambda: several("WEBP", 1),
    "GIF": lambda: saved(picture("P"), "GIF"),
    "GIF grey": lambda: saved(picture("L"), "GIF"),
    "GIF transparency": lambda: saved(picture("P"), "GIF", transparency=picture("P").getpixel((9, 9))),
    "BMP 1": lambda: saved(picture("1"), "BMP"),
    "BMP 8 grey": lambda: saved(picture("L"), "BMP"),
    "BMP 8": lambda: saved(picture("P"), "BMP"),
    "BMP 24": lambda: saved(picture(), "BMP"),
    "BMP 32": lambda: bmp32(alpha=False),
    "BMP 32 alpha": lambda: bmp32(alpha=True),
    **{f"TIFF {mode}": lambda mode=mode: saved(picture(mode), "TIFF") for mode in ("1", "L", "LA", "P", "PA", "RGB")},
    **{f"TIFF {mode}": lambda mode=mode: saved(picture(mode), "TIFF") for mode in ("RGBA", "CMYK", "YCbCr", "LAB")},
    **{
        f"TIFF {how}": lambda how=how: saved(picture(), "TIFF", compression=how)
        for how in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg")
    },
    "TIFF turned": lambda: turned(6, "TIFF"),
    "TIFF LZW turned": lambda: turned(5, "TIFF", compression="tiff_lzw"),
    "TIFF 16-bit": lambda: saved(picture("I;16"), "TIFF"),
    "TIFF 16-bit deflate": lambda: saved(picture("I;16"), "TIFF", compression="tiff_adobe_deflate"),
    "TIFF 16-bit big-endian": lambda: grey_tiff(DEEP.astype(">u2").tobytes(), 16, ">"),
    "TIFF end lost": lambda: grey_tiff(RGB[..., 0].tobytes(), 8)[:-4],
    "PPM": lambda: saved(picture(), "PPM"),
    "PGM": lambda: saved(picture("L"), "PPM"),
    "PGM 16-bit": lambda: b"P5 %d %d 65535\n" % (WIDE, HIGH) + DEEP.astype(">u2").tobytes(),
    "PGM 10-bit": lambda: b"P5 %d %d 1023\n" % (WIDE, HIGH) + (DEEP >> 6).astype(">u2").tobytes(),
    "PBM": lambda: saved(picture("1"), "PPM"),
    "AVIF RGB": lambda: saved(picture(), "AVIF"),
    "AVIF alpha": lambda: saved(picture("RGBA"), "AVIF"),
    "AVIF turned": lambda: turned(6, "AVIF"),
    "AVIF mif1": lambda: brand(saved(picture(), "AVIF"), b"mif1"),
    "1 x 1": lambda: of_size(1, 1),
    "1 x 40": lambda: of_size(1, 40),
    "40 x 1": lambda: of_size(40, 1, "JPEG"),
    "64 x 1": lambda: of_size(64, 1, "WEBP"),
    "JPEG and more": lambda: saved(picture(), "JPEG") + bytes(1000),
}

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "empty"),
    "text": (lambda: b"a cat in the sun\n", "unknown.*JPEG, PNG, WEBP"),
    "web page": (lambda: b"<!doctype html><html><body><svg/></body></html>", "unknown"),
    "zeros": (lambda: bytes(4096), "unknown"),
    "HEIC": (lambda: HEIC, "HEIC"),
    "HEIC mif1": (lambda: brand(HEIC, b"mif1"), "HEIC"),
    "HEIC msf1": (lambda: b"\0\0\0\x18ftypmsf1\0\0\0\0hevcmsf1" + bytes(99), "HEIC"),
    "HEIC at its end": (lambda: HEIC[:12], "HEIC"),
    "video": (lambda: b"\0\0\0\x18ftypisom\0\0\0\0mp41isom" + bytes(99), "unknown"),
    "JPEG 2000": (lambda: saved(picture(), "JPEG2000"), "JPEG 2000"),
    "JPEG 2000 codestream": (lambda: saved(picture(), "JPEG2000", no_jp2=True), "JPEG 2000"),
    "JPEG XL": (lambda: b"\xff\x0a" + bytes(99), "JPEG XL"),
    "JPEG XL container": (lambda: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
    "PSD": (lambda: b"8BPS\0\1" + bytes(99), "PSD"),
    "EPS": (lambda: saved(picture(), "EPS"), "EPS"),
    "EPS with preview": (lambda: b"\xc5\xd0\xd3\xc6" + bytes(99), "EPS"),
    "PDF": (lambda: saved(picture(), "PDF"), "PDF"),
    "SVG": (lambda: SVG, "SVG"),
    "SVG with prolog": (lambda: b'\xef\xbb\xbf\n<?xml version="1.0"?>\n<!-- by hand -->\n' + SVG, "SVG"),
    "SVG in UTF-16": (lambda: SVG.decode().encode("utf-16"), "SVG"),
    "ICO": (lambda: saved(picture(), "ICO"), "unknown"),
    "GIF of two": (lambda: several("GIF"), "several pictures.*GIF"),
    "APNG": (lambda: several("PNG"), "several pictures.*PNG"),
    "WebP of two": (lambda: several("WEBP"), "several pictures.*WEBP"),
    "AVIF of two": (lambda: several("AVIF"), "several pictures.*AVIF"),
    "TIFF of two": (lambda: several("TIFF"), "several pictures.*TIFF"),
    "TIFF of two, LZW": (lambda: several("TIFF", compression="tiff_lzw"), "several pictures.*TIFF"),
    "TIFF of 100,000": (lambda: pages_of_tiff(100_000), "several pictures.*TIFF"),
    "TIFF I": (lambda: saved(picture("I"), "TIFF"), r"32-bit.*\(I\)"),
    "TIFF F": (lambda: saved(picture("F"), "TIFF"), r"32-bit.*\(F\)"),
    "PFM": (lambda: saved(picture("F"), "PPM"), r"32-bit.*\(F\)"),
    "TIFF 16-bit signed": (lambda: grey_tiff(DEEP.tobytes(), 16, "<", ((339, 3, 2),)), r"\(I\)"),
    "a huge PNG": (lambda: png(60_000, 60_000, 8, 2, b""), "3600000000 pixels.*89478485"),
    "a large PNG": (lambda: png(12_000, 12_000, 1, 0, b""), "12000 x 12000 pixels.*89478485"),
    "a huge WebP": (
        lambda: b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\x00\xff\xff\x00" + bytes(8),
        "4294967296 pixels",
    ),
    "another PNG's end": (lambda: saved(picture(), "PNG")[40:], "unknown"),
    **{
        f"{form} cut to {share}": (lambda form=form, share=share: cut(form, share), "damaged")
        for form in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF")
        for share in (0.1, 0.5, 0.9)
    },
    "JPEG's first bytes": (lambda: saved(picture(), "JPEG")[:3], "damaged JPEG"),
    "PNG's first bytes": (lambda: saved(picture(), "PNG")[:20], "damaged PNG"),
}


def cut(form: str, share: float) -> bytes:
    large = Image.fromarray(np.random.default_rng(7).integers(0, 256, (96, 96, 3), np.uint8))
    whole = saved(large, form, **({"exif": b""} if form == "AVIF" else {}))
    return whole[: int(len(whole) * share)]


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


CLEAR = {
    name: READ[name]
    for name in READ
    if any(word in name for word in ("RGBA", "LA", "PA", "transparency", "alpha")) and "LAB" not in name
} | {
    "PNG P turned": READ["PNG P turned"],
    "PNG 16-bit grey transparency": lambda: png(
        WIDE, HIGH, 16, 0, rows_of(DEEP.astype(">u2")), chunk(b"tRNS", struct.pack(">H", DEEP[3, 4]))
    ),
    "PNG 1 transparency": lambda: saved(picture("1"), "PNG", transparency=0),
}


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


NOISY = {
    "palette.png": READ["PNG P transparency bytes"],
    "large.png": lambda: saved(Image.new("1", (9500, 9500)), "PNG"),
    "cut.tif": READ["TIFF end lost"],
    "exif.jpg": lambda: saved(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x0f\1\x02\0\xff\0\0\0\xf0\0\0\0"),
    "mpo.jpg": lambda: several("MPO").replace(b"MPF\0II*\0", b"MPF\0XX*\0").replace(b"MPF\0MM\0*", b"MPF\0XX\0*"),
    "moves.png": lambda: several("PNG").replace(*apng_of_none()),
}


def apng_of_none() -> tuple[bytes, bytes]:
    return chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"acTL", struct.pack(">II", 0, 0))


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
