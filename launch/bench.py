"""Time a U-Net, a guided image or an update of distillation on this machine's device, with arbitrary weights.

  python -m launch.bench --config=configs/bench.py:v1,bk_small
  python -m launch.bench --config=configs/bench.py --config.dtype=bfloat16 --config.batch_size=8

Prints, for one U-Net call and for one image with guidance: compile time, the median of the repeats, images per second,
FLOP/s (two for each multiply-add of convolutions, linear layers and attention) and, where the device's peak is known,
its fraction. Nothing is read or written.

  python -m launch.bench --config=configs/bench.py:update,bk_base --config.dtype=bfloat16 --config.batch_size=64
  python -m launch.bench --config=configs/bench.py:update,small,bk_base

The same for an update of distillation from cached latents, teacher and losses included and the text encoder left out;
`small` is a network of a tenth of the widths, 32 images of 64x64 pixels, for a CPU.

  python -m launch.bench --config=configs/bench.py:data

Prints how fast training's data can be read: JPEG files beside Pillow alone, cached latents; and the memory that
preparing small and large folders takes. What that needs is made in a temporary folder.
"""

from launch.command import quiet_libraries, run_without_workdir

quiet_libraries()

from bksdm_jax.base.errors import known_name  # noqa: E402
from bksdm_jax.perf.bench import BenchConfig, bench, bench_update  # noqa: E402
from bksdm_jax.perf.data_bench import bench_data  # noqa: E402

BENCHES = {"unet": bench, "update": bench_update, "data": lambda config: bench_data(config.resolution, config.repeats)}
"""What there is to time."""


def main(config: BenchConfig) -> None:
    """Times and prints."""
    known_name("config", "what", config.what, BENCHES)
    print(BENCHES[config.what](config))


if __name__ == "__main__":
    run_without_workdir(BenchConfig, main)
