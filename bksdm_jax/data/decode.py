"""Image files to pixels: sizes are checked before anything is decoded, and nothing in a file is executed."""

import io
import re
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageFile, UnidentifiedImageError

from bksdm_jax.base.errors import InputError, in_short, shown

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
"""Formats that only hold pixels; some that Pillow opens, such as EPS, are programs."""
ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".tif", ".tiff", ".gif", ".ppm")
"""Of the names of their files, in lower case."""
FOREIGN_ENDINGS = (".heic", ".heif", ".jp2", ".j2k", ".jpx", ".svg", ".jxl", ".psd", ".eps")
"""Of images in formats that aren't read, in lower case."""
MOST_BYTES = 2**28
"""Bytes of an image file."""
MOST_PIXELS = 89_478_485
"""Width times height above which an image is refused; Pillow's own limit."""
_HEAD = 1024  # bytes by which formats are recognised
_MOST_RATIO = 64  # long side to short side
_MOST_EXIF = 100  # segments, which Pillow joins in quadratic time
_ORIENTATION = 0x0112  # EXIF's tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEADS = (
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    (b"\xff\x0a", "JPEG XL"),
    (b"8BPS", "PSD"),
    (b"%!PS", "EPS"),
    (b"\xc5\xd0\xd3\xc6", "EPS"),
    (b"%PDF", "PDF"),
)
_AVIF = {b"avif", b"avis"}
_HEIF = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"mif2", b"heif"}

# Pillow warns of damaged metadata, and of sizes that are refused here. The filter is the process's, set once on import:
# images are decoded in many threads, and `warnings.catch_warnings` changes the filters of all of them.
warnings.filterwarnings("ignore", module=r"PIL\.")


def open_image(data: bytes | BinaryIO, most_pixels: int = MOST_PIXELS) -> ImageFile.ImageFile:
    """Opens an image, given as bytes or as an open file, without decoding its pixels.

    Raises:
        ValueError: not an image in one of `FORMATS`, more than `most_pixels`, or several pictures in one file; of an
            MPO file (a JPEG photograph followed by its preview or by a second view) the first picture is taken.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    head = file.read(_HEAD)
    file.seek(0)
    if not head:
        raise ValueError("the file is empty")
    foreign = _foreign(head)
    if foreign:
        raise ValueError(f"{foreign} isn't read; convert it to JPEG or PNG")
    if head.startswith(b"\xff\xd8") and _exif_segments(file) > _MOST_EXIF:
        raise ValueError(f"damaged: more than {_MOST_EXIF} segments of EXIF data")
    try:
        image = Image.open(file, formats=FORMATS)
        several = image.format != "MPO" and _has_second(image)
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        raise ValueError(_bomb(f"{count[0] if count else 'too many'} pixels", most_pixels)) from error
    except Exception as error:  # Pillow's readers raise many types
        raise ValueError(_unreadable(head, error)) from error
    width, height = image.size
    if width * height > most_pixels:
        raise ValueError(_bomb(f"{width} x {height} pixels", most_pixels))
    if several:
        raise ValueError(f"several pictures in one file ({image.format}); expected one")
    return image


def to_rgb(image: Image.Image, upright: bool = True, background: tuple[int, int, int] | None = None) -> Image.Image:
    """Decodes an image to 8-bit RGB.

    Of 16-bit pixels the upper 8 bits are taken. Colours under transparent pixels are shown as they are stored, unless
    there is a `background`. EXIF data that can't be read turns nothing.

    Args:
        image: of any mode.
        upright: turn it as its EXIF orientation says.
        background: RGB that transparent pixels are laid on.

    Raises:
        ValueError: it is damaged, or has 32-bit pixels, whose range is unknown.
    """
    deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")  # 16 bits of a PGM
    if image.mode in ("I", "F") and not deep:
        raise ValueError(f"32-bit pixels ({image.mode}), whose range is unknown; convert it to 8 or 16 bits")
    try:
        image.load()  # it turns a TIFF, so it comes before the look at the orientation
        turn = _TURNS.get(_orientation(image)) if upright else None
        if turn is not None:
            image = image.transpose(turn)
            for key in ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"):  # they would turn it again
                image.info.pop(key, None)
        if deep:
            image = _eight_bits(image)
        elif image.mode == "La":
            image = image.convert("LA")  # the only mode that Pillow turns it into
        if background is not None and image.has_transparency_data:
            return _laid_on(background, image)
        if "transparency" in image.info:  # Pillow would convert it too
            image = image.copy()
            del image.info["transparency"]
        return image if image.mode == "RGB" else image.convert("RGB")
    except Exception as error:  # Pillow's decoders raise many types
        raise ValueError(f"damaged: {_short(error)}") from error


def require_shape(image: Image.Image, least_side: int = 1) -> None:
    """Raises `ValueError` if the short side has fewer than `least_side` pixels, or the long one is 64 times as long."""
    (width, height), short = image.size, min(image.size)
    if short < least_side:
        raise ValueError(f"{width} x {height} pixels: the short side is {short}, least_side is {least_side}")
    if max(image.size) > _MOST_RATIO * short:
        raise ValueError(f"{width} x {height} pixels: too narrow for a square crop")


def background_colour(source: str, value: object) -> tuple[int, int, int] | None:
    """The RGB of a colour as `PIL.ImageColor.getrgb` takes it, such as `white` or `#ffffff`; None if it is empty.

    Raises:
        InputError: no opaque colour; it names `source`.
    """
    if value == "":
        return None
    try:
        red, green, blue, *alpha = ImageColor.getrgb(value) if isinstance(value, str) else ()
    except ValueError:
        alpha = [0]
    if alpha not in ([], [255]) or max(red, green, blue) > 255:
        raise InputError(
            f"{source}: background is {shown(value)}; expected an opaque colour such as 'white' or '#ffffff', or ''"
        )
    return red, green, blue


def fit_square(
    image: Image.Image, resolution: int, where: tuple[float, float] = (0.5, 0.5), mirror: bool = False
) -> np.ndarray:
    """Resizes the short side to `resolution` (bilinear, antialiased), then crops a square.

    Args:
        image: RGB.
        resolution: pixels.
        where: horizontal and vertical position of the crop, from 0 (left, top) to 1 (right, bottom).
        mirror: flip the crop left to right.

    Returns:
        uint8 [resolution, resolution, 3].

    Raises:
        ValueError: the resized image would have more than `MOST_PIXELS`.
    """
    width, height = image.size
    short = min(width, height)
    size = (max(resolution, resolution * width // short), max(resolution, resolution * height // short))
    if size[0] * size[1] > MOST_PIXELS:
        raise ValueError(f"enlarged to {size[0]} x {size[1]} pixels, the limit is {MOST_PIXELS} in total")
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((length - resolution) * share) for length, share in zip(size, where, strict=True))
    if image.size != (resolution, resolution):
        image = image.crop((left, top, left + resolution, top + resolution))
    return np.asarray(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirror else image)


def _orientation(image: Image.Image) -> object:
    try:
        return image.getexif().get(_ORIENTATION)
    except Exception:  # Pillow's reader of metadata raises many types
        return None


def _eight_bits(image: Image.Image) -> Image.Image:
    """Of 16-bit grey, L or LA: Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.uint16)
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _laid_on(background: tuple[int, int, int], image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    below = Image.new("RGB", image.size, background)
    below.paste(image, mask=image.getchannel("A"))
    return below


def _has_second(image: ImageFile.ImageFile) -> bool:
    """Whether another picture follows; `n_frames` would read the whole file, in quadratic time for a TIFF."""
    if image.format == "TIFF":
        return bool(image.is_animated and image.tag_v2.next)  # None where the file ends before the pointer
    return getattr(image, "is_animated", False)


def _foreign(head: bytes) -> str:
    """The name of a known format that isn't read; empty: none is recognised."""
    if head[4:8] == b"ftyp":
        box = head[8 : max(12, int.from_bytes(head[:4]))]
        brands = {box[i : i + 4] for i in range(0, len(box), 4)}
        return "HEIC" if brands & _HEIF and not brands & _AVIF else ""
    for start, name in _HEADS:
        if head.startswith(start):
            return name
    text = head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xfe\xff \t\r\n").lower()  # UTF-8 and UTF-16
    return "SVG" if text.startswith(b"<") and b"<svg" in text and b"<html" not in text else ""


def _exif_segments(file: BinaryIO) -> int:
    """The number of EXIF segments before the pixels of a JPEG file."""
    count, position = 0, 2
    while count <= _MOST_EXIF:
        file.seek(position)
        head = file.read(10)  # marker, length, beginning
        if len(head) < 4 or head[:2] in (b"\xff\xda", b"\xff\xd9"):  # the pixels, the end
            break
        if head[0] != 0xFF:  # Pillow would search for the next marker
            file.seek(position)
            count += file.read().count(b"Exif\0\0")
            break
        count += head[4:] == b"Exif\0\0"
        position += 2 + max(2, int.from_bytes(head[2:4])) if head[1] != 0xFF else 1
    file.seek(0)
    return count


def _unreadable(head: bytes, error: Exception) -> str:
    """Why Pillow refused a file."""
    for name in FORMATS:
        accepts = Image.OPEN[name][1](head[:16])
        if accepts:  # a text if this Pillow lacks the decoder
            reason = "" if isinstance(error, UnidentifiedImageError) else f": {_short(error)}"
            return accepts if isinstance(accepts, str) else f"damaged {name} file{reason}"
    return f"unknown image format; expected {', '.join(FORMATS)}"


def _bomb(found: str, most_pixels: int) -> str:
    return f"{found}, the limit is {most_pixels} in total: a decompression bomb?"


def _short(error: Exception) -> str:
    """Without addresses of memory."""
    return re.sub(r"(<[\w. ]+)? at 0x[0-9a-f]+>?", "", in_short(error))
