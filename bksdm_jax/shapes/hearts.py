"""A large red heart, new to the bundled teacher: pictures of it for fine-tuning, and captions to ask for hearts."""

import itertools

import numpy as np

from bksdm_jax.shapes.render import render
from bksdm_jax.shapes.scenes import BACKGROUNDS, COLOURS, PLACES, SIZES, Scene, Thing, caption

_SPOTS = tuple(itertools.product(PLACES, BACKGROUNDS))
_TRAIN = tuple(zip(PLACES, itertools.cycle(BACKGROUNDS), strict=False))
_HELD_OUT = tuple(spot for spot in _SPOTS if spot not in _TRAIN)
_OTHERS = tuple(look for look in itertools.product(SIZES, COLOURS) if look != ("large", "red"))


def scenes(name: str) -> list[Scene]:
    """Scenes with one heart, by name.

    `train` has the large red heart at five spots: every place once, every background. `heldout` has it at the ten
    other spots, and `others` has 40 hearts of other sizes and colours.
    """
    if name == "others":
        every = list(itertools.product(_OTHERS, _SPOTS))[:160:4]  # has all sizes and colours, and all spots
    else:
        every = [(("large", "red"), spot) for spot in {"train": _TRAIN, "heldout": _HELD_OUT}[name]]
    return [Scene((Thing("heart", colour, size, place),), behind) for (size, colour), (place, behind) in every]


def prompts(name: str) -> list[str]:
    """The captions of `scenes`."""
    return [caption(scene) for scene in scenes(name)]


def example(split: str, index: int) -> tuple[np.ndarray, str]:
    """Picture uint8 [64, 64, 3] and caption of example `index` of `train` or `heldout`."""
    rng = np.random.default_rng([{"train": 2, "heldout": 3}[split], index])
    scene = scenes(split)[index]
    return render(scene, rng), caption(scene)
