"""Image files of every kind, made in memory: by Pillow, or by hand where it doesn't write them."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

WIDE, HIGH = 26, 18
ORIENTATION = 0x0112
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


def cut(form: str, share: float) -> bytes:
    large = Image.fromarray(np.random.default_rng(7).integers(0, 256, (96, 96, 3), np.uint8))
    whole = saved(large, form, **({"exif": b""} if form == "AVIF" else {}))
    return whole[: int(len(whole) * share)]


def apng_of_one() -> bytes:
    counts, frame = struct.pack(">II", 1, 0), struct.pack(">IIIIIHHBB", 0, WIDE, HIGH, 0, 0, 1, 10, 0, 0)
    return png(WIDE, HIGH, 8, 2, rows_of(RGB), chunk(b"acTL", counts), chunk(b"fcTL", frame))


def apng_of_none() -> tuple[bytes, bytes]:
    return chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"acTL", struct.pack(">II", 0, 0))


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
    "APNG one frame": apng_of_one,
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
"""By name, of files that are read."""

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
    "JPEG of much EXIF": (lambda: saved(picture(), "JPEG")[:2] + b"\xff\xe1\0\x08Exif\0\0" * 101, "damaged.*EXIF"),
    "another PNG's end": (lambda: saved(picture(), "PNG")[40:], "unknown"),
    **{
        f"{form} cut to {share}": (lambda form=form, share=share: cut(form, share), "damaged")
        for form in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM", "AVIF")
        for share in (0.1, 0.5, 0.9)
    },
    "JPEG's first bytes": (lambda: saved(picture(), "JPEG")[:3], "damaged JPEG"),
    "PNG's first bytes": (lambda: saved(picture(), "PNG")[:20], "damaged PNG"),
}
"""Of files that are refused, each with what the error says."""


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
"""Of those in `READ` and others, the ones with transparent pixels."""

NOISY = {
    "palette.png": READ["PNG P transparency bytes"],
    "large.png": lambda: saved(Image.new("1", (9500, 9500)), "PNG"),
    "cut.tif": READ["TIFF end lost"],
    "exif.jpg": lambda: saved(picture(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x0f\1\x02\0\xff\0\0\0\xf0\0\0\0"),
    "mpo.jpg": lambda: several("MPO").replace(b"MPF\0II*\0", b"MPF\0XX*\0").replace(b"MPF\0MM\0*", b"MPF\0XX\0*"),
    "moves.png": lambda: several("PNG").replace(*apng_of_none()),
}
"""Of files of which Pillow warns."""
