"""Reads the scene that an image of the shapes world shows."""

import functools
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bksdm_jax.shapes.render import PIXELS, coverage
from bksdm_jax.shapes.scenes import BACKGROUNDS, COLOURS, NEW_SHAPES, PLACES, SHAPES, SIZES, Scene, Thing

_SEEN = 60.0  # RGB distance from the background above which a pixel belongs to an object
_COLOUR = 60.0  # largest RGB distance to a named colour
_CLEARLY = 0.8  # largest ratio of the distances to the nearest and second nearest colour
_SMALLEST = 25  # pixels; smaller regions are ignored
_PLACE = 6.0  # largest distance between an object's centre and its place, pixels
_OVERLAP = 0.8  # smallest intersection over union with the rendered shape
_LEAD = 0.03  # smallest difference between the best and second best overlap


def candidates(asked: Scene) -> tuple[str, ...]:
    """The shapes to tell apart in an image of a scene: `SHAPES`, and new ones only if the scene has them."""
    return (*SHAPES, *(new for new in NEW_SHAPES if any(thing.shape == new for thing in asked.things)))


def read_scene(picture: np.ndarray, shapes: Sequence[str] = SHAPES) -> Scene:
    """The scene in a picture, uint8 [64, 64, 3]; attributes that can't be recognised are None.

    Objects are connected regions that differ from the background. An object's colour is that of the region's inner
    pixels, place and size follow from its bounding box, and its shape is that of `shapes` whose rendering in this box
    has the largest overlap.
    """
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    behind = np.median(border, axis=0)
    mask = np.linalg.norm(pixels - behind, axis=-1) > _SEEN
    labels, count = ndimage.label(mask)
    regions = sorted((labels == i for i in range(1, count + 1)), key=np.sum, reverse=True)
    regions = [region for region in regions if region.sum() >= _SMALLEST]
    things = tuple(_read_thing(pixels, region, behind, shapes) for region in regions)
    return Scene(things, _named(behind, BACKGROUNDS))


def _read_thing(pixels: np.ndarray, region: np.ndarray, behind: np.ndarray, shapes: Sequence[str]) -> Thing:
    inner = ndimage.binary_erosion(region)
    colour = np.median(pixels[inner if inner.any() else region], axis=0)
    # the coverage of each pixel: at the edge of an object, pixels are mixed with the background
    full = float(np.linalg.norm(colour - behind))
    share = np.clip((pixels - behind) @ (colour - behind) / max(full, 1.0) ** 2, 0, 1)
    share = np.where(ndimage.binary_dilation(region), share, 0.0)
    left, right = _edges(share.max(axis=0))
    top, bottom = _edges(share.max(axis=1))
    x, y, extent = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2
    shape = _shape(share, (left, right, top, bottom), shapes)
    return Thing(shape, _named(colour, COLOURS), _size(extent), _place(x, y))


def _edges(profile: np.ndarray) -> tuple[float, float]:
    """Start and end of the covered part of a row, with subpixel precision."""
    inside = np.flatnonzero(profile > 0.5)
    first, last = (inside[0], inside[-1]) if len(inside) else (0, 0)
    before = profile[first - 1] if first > 0 else 0.0
    after = profile[last + 1] if last + 1 < len(profile) else 0.0
    return first - float(before), last + 1 + float(after)


def _named(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str | None:
    distances = sorted((float(np.linalg.norm(colour - rgb)), name) for name, rgb in names.items())
    (nearest, name), (second, _) = distances[:2]
    return name if nearest <= _COLOUR and nearest <= _CLEARLY * second else None


def _size(extent: float) -> str | None:
    small, large = SIZES["small"], SIZES["large"]
    if not 0.7 * small <= extent <= 1.2 * large or abs(extent - (small + large) / 2) < 0.5:
        return None
    return "small" if extent < (small + large) / 2 else "large"


def _place(x: float, y: float) -> str | None:
    distance, place = min((float(np.hypot(x - px, y - py)), name) for name, (px, py) in PLACES.items())
    return place if distance <= _PLACE else None


def _shape(share: np.ndarray, box: tuple[float, float, float, float], shapes: Sequence[str]) -> str | None:
    left, right, top, bottom = box
    overlaps = []
    for shape in shapes:
        x0, x1, y0, y1 = _bounds(shape)
        extent = ((right - left) / (x1 - x0) + (bottom - top) / (y1 - y0)) / 2
        x = (left + right) / 2 - extent * (x0 + x1) / 2
        y = (top + bottom) / 2 - extent * (y0 + y1) / 2
        rendered = coverage(shape, x, y, extent)
        overlaps.append((float(np.minimum(rendered, share).sum() / np.maximum(rendered, share).sum()), shape))
    (best, shape), (second, _) = sorted(overlaps, reverse=True)[:2]
    return shape if best >= _OVERLAP and best - second >= _LEAD else None


@functools.cache
def _bounds(shape: str) -> tuple[float, float, float, float]:
    """Left, right, top, bottom of a shape of extent 1, measured on a large rendering."""
    middle = PIXELS / 2
    rendered = coverage(shape, middle, middle, middle - 2)
    columns, rows = (_edges(rendered.max(axis=axis)) for axis in (0, 1))
    return tuple((edge - middle) / (middle - 2) for edge in (*columns, *rows))  # type: ignore[return-value]
