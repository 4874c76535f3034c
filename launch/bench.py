"""Times a U-Net, guided sampling or a training step on this machine's device, with random weights.

  python -m launch.bench --config=configs/bench.py:v1,bk_small
  python -m launch.bench --config=configs/bench.py --config.dtype=bfloat16 --config.batch_size=8

Prints for one U-Net call and for one image with guidance: compile time; the median time of calls that are waited for
one by one, and the time of a call when all are issued before the first is waited for, as training does; from the
latter, images per second, FLOP/s (two per multiply-add of convolutions, linear layers and attention; upsampling counts
as a 3x3 convolution of the enlarged map) and, for known devices, the fraction of their peak; and the peak of the
device's memory so far, where the device tells it. Reads and writes no files but a profile's.

  python -m launch.bench --config=configs/bench.py:update,bk_base --config.dtype=bfloat16 --config.batch_size=64
  python -m launch.bench --config=configs/bench.py:update,small,bk_base

The same for a distillation step from cached latents, with teacher and losses and without the text encoder. `small` uses
a tenth of the widths and 32 images of 64x64 pixels, for CPUs.

  python -m launch.bench --config=configs/bench.py:finetune,bk_base --config.dtype=bfloat16
  python -m launch.bench --config=configs/bench.py:finetune,lora,bk_base --config.dtype=bfloat16 --config.batch_size=4

The same for a fine-tuning step of U-Net and text encoder, of all weights or of LoRAs, and what is trained, and the
bytes of weights and optimiser. Prior preservation costs as much as twice the `batch_size`.

  python -m launch.bench --config=configs/bench.py:update,small,bk_base --config.profile=runs/trace

Also traces three more calls and prints the time of their kernels by kind, such as convolutions or copies, and the share
of the time in which none runs. The trace stays in the folder for TensorBoard and Perfetto.

  python -m launch.bench --config=configs/bench.py:update,bk_base --config.dtype=bfloat16 --config.batch_size=64 \
    --config.beside="python their_bench.py --batch 64"

Runs the other command first, to its end, and prints both rates and their ratio; one process at a time is on the device.
The command must print a line of JSON with `images_per_s`, or `median_s` of a batch; the last such line counts.

  python -m launch.bench --config=configs/bench.py:data

Prints how fast training data are read (JPEG files compared with Pillow alone, cached latents), and the memory used to
prepare small and large folders. The data are generated in a temporary folder.

  python -m launch.bench --config=configs/bench.py:deep_cache
  python -m launch.bench --config=configs/bench.py:deep_cache --config.model=MODEL --config.guidance_scale=7.5

Prints what DeepCache (`--config.deep_cache` of `launch.sample`) saves for several intervals, and how far its images are
from the exact ones.

  python -m launch.bench --config=configs/bench.py:checkpoints,bk_base --config.seconds_per_update=2

Prints how long saving a training state takes, what share of the time training waits for it, and whether memory grows.

  python -m launch.bench --config=configs/bench.py:scores --config.batch_size=32
  PYTHONPATH=.oracles python -m launch.bench --config=configs/bench.py:scores_beside --config.batch_size=32

Prints how many images a second one pass for FID, Inception score and CLIP score takes in; the second, beside
torch-fidelity and OpenCLIP one after the other (`make install-oracles`).
"""

from collections.abc import Callable

from bksdm_jax.perf.beside import comparison, run_beside
from bksdm_jax.perf.config import BenchConfig, make_trace_folder, require_bench
from launch.command import run_without_workdir


def main(config: BenchConfig) -> None:
    """Runs the benchmark and prints the results."""
    if config.profile:
        make_trace_folder(config.profile)  # rather than find out after minutes that it can't be
    # First, as JAX would take the device's memory.
    other = run_beside(config.beside, config.batch_size, config.beside_timeout) if config.beside else None
    if config.what in ("update", "finetune"):
        from bksdm_jax.base.host_memory import keep_memory  # imports JAX

        keep_memory()
    report = benchmark(config.what)(config)
    print(report)
    if other:
        print("\n".join(comparison(report.images_per_s, report.one_by_one, config.batch_size, other)))


def benchmark(name: str) -> Callable[[BenchConfig], object]:
    """The benchmark of that name, one of `BENCHES`; what it returns is printed, of `MEASURED` a `Report`."""
    from bksdm_jax.perf.bench import bench, bench_update
    from bksdm_jax.perf.checkpoint_bench import bench_checkpoints
    from bksdm_jax.perf.data_bench import bench_data
    from bksdm_jax.perf.deep_cache_bench import bench_deep_cache
    from bksdm_jax.perf.finetune_bench import bench_finetune
    from bksdm_jax.perf.score_bench import bench_scores

    if name == "scores_beside":
        from bksdm_jax.interop.score_bench import bench_scores_beside  # imports PyTorch

        return bench_scores_beside
    benches = {
        "unet": bench,
        "update": bench_update,
        "finetune": bench_finetune,
        "data": lambda config: bench_data(config.resolution, config.repeats),
        "deep_cache": bench_deep_cache,
        "checkpoints": bench_checkpoints,
        "scores": bench_scores,
    }
    return benches[name]


if __name__ == "__main__":
    run_without_workdir(__doc__, BenchConfig, main, require_bench, cached=False)  # it times the compiler
