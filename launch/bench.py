"""Time a U-Net and a guided image on this machine's device, with arbitrary weights.

  python -m launch.bench --config=configs/bench.py:v1,bk_small
  python -m launch.bench --config=configs/bench.py --config.dtype=bfloat16 --config.batch_size=8

Prints, for one U-Net call and for one image with guidance: compile time, the median of the repeats, images per second,
FLOP/s (two for each multiply-add of convolutions, linear layers and attention) and, where the device's peak is known,
its fraction. Nothing is read or written.

  python -m launch.bench --config=configs/bench.py:data

Prints how fast training's data can be read: JPEG files beside Pillow alone, cached latents; and the memory that
preparing small and large folders takes. What that needs is made in a temporary folder.
"""

from launch.command import quiet_libraries, run_without_workdir

quiet_libraries()

from bksdm_jax.analysis.bench import BenchConfig, bench  # noqa: E402
from bksdm_jax.errors import known_name  # noqa: E402
from bksdm_jax.preparation.bench import bench_data  # noqa: E402

BENCHES = {"unet": bench, "data": lambda config: bench_data(config.resolution, config.repeats)}
"""What there is to time."""


def main(config: BenchConfig) -> None:
    """Times and prints."""
    known_name("config", "what", config.what, BENCHES)
    print(BENCHES[config.what](config))


if __name__ == "__main__":
    run_without_workdir(BenchConfig, main)
