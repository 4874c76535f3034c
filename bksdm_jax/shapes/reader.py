"""Pictures of the shapes world, read back: which facts does an image show?"""

import functools

import numpy as np
from scipy import ndimage

from bksdm_jax.shapes.render import PIXELS, coverage
from bksdm_jax.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, SHAPES, SIZES, Scene, Thing

_SEEN = 60.0  # RGB distance from the background from which a pixel belongs to an object
_COLOUR = 60.0  # RGB distance up to which a colour is taken for a named one
_CLEARLY = 0.8  # a nearest name counts if it is nearer than this times the second
_SMALLEST = 25  # pixels of an object; what is smaller is a speck
_PLACE = 6.0  # pixels between the middle of an object and its place
_OVERLAP = 0.8  # intersection over union with the drawn shape
_LEAD = 0.03  # by which the best shape's overlap is ahead of the second's


def read_scene(picture: np.ndarray) -> Scene:
    """What a picture shows; None stands for what can't be told.

    Objects are connected regions that differ from the background. A colour is told by a region's inner pixels, a place
    and a size by its bounding box, a shape by its overlap with each drawn one of that place and extent.

    Args:
        picture: uint8 [64, 64, 3].
    """
    pixels = picture.astype(np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    behind = np.median(border, axis=0)
    mask = np.linalg.norm(pixels - behind, axis=-1) > _SEEN
    labels, count = ndimage.label(mask)
    regions = [labels == i for i in range(1, count + 1)]
    regions = [region for region in regions if region.sum() >= _SMALLEST]
    regions.sort(key=lambda region: -region.sum())
    things = tuple(_read_thing(pixels, region, behind) for region in regions)
    return Scene(things, _named(behind, BACKGROUNDS))


def _read_thing(pixels: np.ndarray, region: np.ndarray, behind: np.ndarray) -> Thing:
    inner = ndimage.binary_erosion(region)
    colour = np.median(pixels[inner if inner.any() else region], axis=0)
    # a pixel at the rim is part object, part background
    full = float(np.linalg.norm(colour - behind))
    share = np.clip((pixels - behind) @ (colour - behind) / max(full, 1.0) ** 2, 0, 1)
    share = np.where(ndimage.binary_dilation(region), share, 0.0)
    left, right = _edges(share.max(axis=0))
    top, bottom = _edges(share.max(axis=1))
    x, y, extent = (left + right) / 2, (top + bottom) / 2, max(right - left, bottom - top) / 2
    return Thing(_shape(share, left, right, top, bottom), _named(colour, COLOURS), _size(extent), _place(x, y))


def _edges(profile: np.ndarray) -> tuple[float, float]:
    """Where a row of coverages begins and ends, parts of a pixel counted by their coverage."""
    inside = np.flatnonzero(profile > 0.5)
    first, last = (inside[0], inside[-1]) if len(inside) else (0, 0)
    before = profile[first - 1] if first > 0 else 0.0
    after = profile[last + 1] if last + 1 < len(profile) else 0.0
    return first - float(before), last + 1 + float(after)


def _named(colour: np.ndarray, names: dict[str, tuple[int, int, int]]) -> str | None:
    distances = sorted((float(np.linalg.norm(colour - np.asarray(rgb))), name) for name, rgb in names.items())
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


def _shape(share: np.ndarray, left: float, right: float, top: float, bottom: float) -> str | None:
    overlaps = []
    for shape in SHAPES:
        x0, x1, y0, y1 = _bounds(shape)
        extent = ((right - left) / (x1 - x0) + (bottom - top) / (y1 - y0)) / 2
        x = (left + right) / 2 - extent * (x0 + x1) / 2
        y = (top + bottom) / 2 - extent * (y0 + y1) / 2
        drawn = coverage(shape, x, y, extent)
        overlaps.append((float(np.minimum(drawn, share).sum() / np.maximum(drawn, share).sum()), shape))
    (best, shape), (second, _) = sorted(overlaps, reverse=True)[:2]
    return shape if best >= _OVERLAP and best - second >= _LEAD else None


@functools.cache
def _bounds(shape: str) -> tuple[float, float, float, float]:
    """Left, right, top, bottom of a shape of extent 1, measured on a large drawing."""
    middle = PIXELS / 2
    drawn = coverage(shape, middle, middle, middle - 2)
    columns, rows = (_edges(drawn.max(axis=axis)) for axis in (0, 1))
    return tuple((edge - middle) / (middle - 2) for edge in (*columns, *rows))  # type: ignore[return-value]
