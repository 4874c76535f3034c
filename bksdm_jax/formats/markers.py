"""What a single file says about its noise schedule, which has no other place in the original layout."""

from collections.abc import Collection, Mapping

import numpy as np

VELOCITY, ZERO_SNR = "v_pred", "ztsnr"
"""Names of empty tensors that mark v-prediction and zero terminal SNR, as ComfyUI reads them."""
_KEY = "modelspec.prediction_type"  # of Stability's model specification
_WORDS = {"epsilon": "epsilon", "v": "v_prediction"}


def prediction_of(names: Collection[str], metadata: Mapping[str, str]) -> str:
    """The prediction type by a marker among the tensors' names, or by the metadata; empty: the file doesn't say."""
    return "v_prediction" if VELOCITY in names else _WORDS.get(metadata.get(_KEY, ""), "")


def markers(prediction_type: str, zero_snr: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors and the metadata that say it."""
    marked = {VELOCITY: prediction_type == "v_prediction", ZERO_SNR: zero_snr}
    word = next(word for word, name in _WORDS.items() if name == prediction_type)
    return {name: np.zeros(0, np.float32) for name, applies in marked.items() if applies}, {_KEY: word}
