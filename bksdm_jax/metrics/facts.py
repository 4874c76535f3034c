"""What a score says of the network that it was computed with."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bksdm_jax.base.files import file_sha256


def weights_facts(
    name: str, files: Sequence[Path], config: Sequence[object], resize: str, dtype: str, **more: Any
) -> dict[str, Any]:
    """The `facts` of an `Extractor`.

    Args:
        name: of the weights, as the user gave it.
        files: of the weights. `sha256` is that of the file, or of the hexadecimal ones of several in a row.
        config: what else decides the features, such as the architecture; its `repr` is `config_sha256`.
        resize: name of the preprocessing.
        dtype: of the computations.
        **more: further facts.

    Raises:
        InputError: a file can't be read.
    """
    sums = [file_sha256(path) for path in files]
    sha256 = sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()
    return {
        "weights": name,
        "sha256": sha256 if sums else "",
        "config_sha256": hashlib.sha256(repr(tuple(config)).encode()).hexdigest(),
        "resize": resize,
        "dtype": dtype,
        **more,
    }
