"""Time a U-Net and a guided image on this machine's device, with arbitrary weights.

  python -m launch.bench --config=configs/bench.py:v1,bk_small
  python -m launch.bench --config=configs/bench.py --config.dtype=bfloat16 --config.batch_size=8

Prints, for one U-Net call and for one image with guidance: compile time, the median of the repeats, images per second,
FLOP/s (two for each multiply-add of convolutions, linear layers and attention) and, where the device's peak is known,
its fraction. Nothing is read or written.
"""

from launch.command import quiet_libraries, run_without_workdir

quiet_libraries()

from bksdm_jax.analysis.bench import BenchConfig, bench  # noqa: E402


def main(config: BenchConfig) -> None:
    """Times and prints."""
    print(bench(config))


if __name__ == "__main__":
    run_without_workdir(BenchConfig, main)
