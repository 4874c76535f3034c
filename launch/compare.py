"""Compares the outputs of a pipeline in PyTorch Diffusers and in this package.

  python -m launch.compare --config=configs/compare.py --config.model=MODEL --workdir=DIR
  python -m launch.compare --config=configs/compare.py --config.model=MODEL --config.steps=0 --workdir=DIR

Needs PyTorch and Diffusers (`pip install -e .[interop]`). `MODEL` is a pipeline folder, a single file or a hub id.
Compares text encoder, U-Net, decoder and encoder in float32 on the same inputs, then images from the same noise and
prompts. Prints the maximum and mean difference of each with its tolerance, and writes `differences.json` and
`images.png` (PyTorch above, ours below) to the workdir. Exits with status 1 if a tolerance is exceeded.
"""

import sys
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.interop.config import CompareConfig, require_compare
from launch.command import run


def main(config: CompareConfig, workdir: Path) -> None:
    """Compares and prints the differences."""
    try:
        from bksdm_jax.interop.parity import difference_table, parity
    except ModuleNotFoundError as error:
        if error.name not in ("torch", "diffusers"):
            raise
        raise InputError(f"{error.name} isn't installed; launch.compare needs it: pip install -e .[interop]") from error
    found = parity(config, workdir)
    print(difference_table(found))
    print(f"\n{workdir}")
    if not all(one.within for one in found):
        sys.exit("error: tolerance exceeded, see above")


if __name__ == "__main__":
    run(__doc__, CompareConfig, main, require_compare)
