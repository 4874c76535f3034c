"""Run a pipeline by PyTorch Diffusers and by this package, and say how far they are apart.

  python -m launch.compare --config=configs/compare.py --config.model=MODEL --workdir=DIR

Needs the extra `interop` (`pip install -e .[interop]`), which brings PyTorch and Diffusers. `MODEL` is a pipeline
folder, a single file or an id on the hub. Text encoder, U-Net, decoder and encoder are compared on the same inputs in
float32, then images from the same noise and prompts. Prints the largest and the mean difference of each against its
tolerance; the workdir holds `differences.json` and `images.png`, PyTorch's above, ours below. Ends with status 1 where
one is beyond.
"""

import sys
from pathlib import Path

from launch.command import quiet_libraries, run

quiet_libraries()

try:
    from bksdm_jax.interop.parity import CompareConfig, difference_table, parity
except ModuleNotFoundError as error:
    if error.name not in ("torch", "diffusers"):
        raise
    sys.exit(f"error: {error.name} isn't installed; launch.compare needs it: pip install -e .[interop]")


def main(config: CompareConfig, workdir: Path) -> None:
    """Compares and prints."""
    found = parity(config, workdir)
    print(difference_table(found))
    print(f"\n{workdir}")
    if not all(one.within for one in found):
        sys.exit("error: beyond the tolerance, see above")


if __name__ == "__main__":
    run(CompareConfig, main)
