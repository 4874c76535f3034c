"""What a single file says about its noise schedule and resolution, which have no other place in the original layout."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.formats.limits import MOST_PIXELS

VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
"""Names of empty tensors that mark v-prediction and zero terminal SNR, as ComfyUI reads them."""
# Of Stability's model specification.
_PREDICTION, _RESOLUTION = "modelspec.prediction_type", "modelspec.resolution"
_WORDS = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def prediction_of(names: Collection[str], metadata: Mapping[str, str], source: str) -> str:
    """The prediction type by a marker among the tensors' names, and by the metadata; empty: the file doesn't say.

    Raises `InputError`, with `source`, if the two contradict each other, or the metadata name another type.
    """
    word = metadata.get(_PREDICTION, "")
    said = _WORDS.get(word.lower().replace("-", "_"), "")
    marked = "v_prediction" if VELOCITY in names else ""
    if (word and not said) or (marked and said and marked != said):
        besides = f" and a tensor {VELOCITY}" if marked else ""
        raise InputError(
            f"{source}: has {_PREDICTION} {shown(word)}{besides}; set prediction to epsilon or v_prediction"
        )
    return marked or said


def resolution_of(metadata: Mapping[str, str]) -> int:
    """The side in pixels of the square images that the model is made for; 0: the file doesn't say."""
    sides = re.fullmatch(r"(\d{1,5})x(\d{1,5})", metadata.get(_RESOLUTION, ""))
    return int(sides[1]) if sides and sides[1] == sides[2] and int(sides[1]) <= MOST_PIXELS else 0


def markers(prediction_type: str, zero_snr: bool, resolution: int) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata that say it."""
    marked = {VELOCITY: prediction_type == "v_prediction", ZERO_SNR: zero_snr}
    word = "v" if prediction_type == "v_prediction" else prediction_type
    tensors = {name: np.zeros(0, np.float32) for name, applies in marked.items() if applies}
    return tensors, {_PREDICTION: word, _RESOLUTION: f"{resolution}x{resolution}"}
