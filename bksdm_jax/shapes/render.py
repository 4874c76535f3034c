"""Renders scenes."""

import math

import numpy as np
from PIL import Image, ImageDraw

from bksdm_jax.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, SIZES, Scene

PIXELS = 64
"""Height and width of a picture."""
_FINE = 4  # supersampling factor


def outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape centred at (0, 0), y down, within [-1, 1]; a circle or heart has 48."""
    if shape == "circle":
        return [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 48, endpoint=False)]
    if shape == "heart":
        # 16 sin^3 t and 13 cos t - 5 cos 2t - 2 cos 3t - cos 4t, its height centred
        turns = np.linspace(0, 2 * math.pi, 48, endpoint=False)
        heights = 13 * np.cos(turns) - 5 * np.cos(2 * turns) - 2 * np.cos(3 * turns) - np.cos(4 * turns)
        middle = (heights.min() + heights.max()) / 2
        return [(math.sin(a) ** 3, float(middle - y) / 16) for a, y in zip(turns, heights, strict=True)]
    if shape == "star":
        tips = [(i, 1.0 if i % 2 == 0 else 0.42) for i in range(10)]
        return [(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in tips]
    a = 0.36
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "triangle": [(0, -1), (1, 0.9), (-1, 0.9)],
        "diamond": [(0, -1), (1, 0), (0, 1), (-1, 0)],
        "cross": [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)],
    }
    points = [(float(x), float(y)) for x, y in corners[shape]]
    return points + [(-x, -y) for x, y in points] if shape == "cross" else points


def coverage(shape: str, x: float, y: float, extent: float) -> np.ndarray:
    """The share of each pixel that a shape covers: float32 [PIXELS, PIXELS] in [0, 1].

    Args:
        shape: one of `SHAPES` or `NEW_SHAPES`.
        x, y: its centre, pixels.
        extent: half its extent, pixels.
    """
    canvas = Image.new("L", (PIXELS * _FINE, PIXELS * _FINE))
    points = [((x + dx * extent) * _FINE - 0.5, (y + dy * extent) * _FINE - 0.5) for dx, dy in outline(shape)]
    ImageDraw.Draw(canvas).polygon(points, fill=255)
    return np.asarray(canvas.reduce(_FINE), np.float32) / 255


def render(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A picture of a scene, uint8 [PIXELS, PIXELS, 3], with random variations.

    Centres vary by up to 2 pixels in x and y, extents by 6%, colour channels by 8 of 255.
    """

    def shade(colour: tuple[int, int, int]) -> np.ndarray:
        return np.clip(np.asarray(colour) + rng.uniform(-8, 8, 3), 0, 255)

    picture = np.broadcast_to(shade(BACKGROUNDS[scene.background]), (PIXELS, PIXELS, 3))
    for thing in scene.things:
        x, y = np.asarray(PLACES[thing.place]) + rng.uniform(-2, 2, 2)
        mask = coverage(thing.shape, x, y, SIZES[thing.size] * rng.uniform(0.94, 1.06))[..., None]
        picture = picture * (1 - mask) + shade(COLOURS[thing.colour]) * mask
    return np.round(picture).astype(np.uint8)
