"""Estimates what a training run needs: memory, FLOPs, traffic, time, and whether it fits.

  python -m launch.plan --config=configs/distill.py:v1,bk_base --config.topology=v4:2x2x4
  python -m launch.plan --config=configs/distill.py:v1,bk_small --config.batch_size=64 --config.remat=blocks
  python -m launch.plan --config=configs/dreambooth.py:v1 --config.plan.student=bk_base --config.topology=v4:1x1x1
  python -m launch.plan --config=configs/lora.py:v1 --config.plan.student=bk_tiny --config.topology=v5e:1x1

Compiles exactly the run's training step for a TPU topology (on any machine; `pip install --editable '.[libtpu]'`
installs the compiler) or, without `topology`, for this machine's devices. Needs no weights or data; of
`--config.teacher` or `--config.model`, if given, only the configs are read. At full size a compilation takes minutes on
two cores.
"""

from bksdm_jax.perf.environment import expect_no_tpu
from bksdm_jax.tasks.distill.config import DistillConfig, require_plan
from bksdm_jax.tasks.finetune.config import FinetuneConfig, require_finetune_plan
from launch.command import run_without_workdir
from launch.tasks import TASKS


def main(config: DistillConfig | FinetuneConfig) -> None:
    """Prints each part of the estimate once it is known."""
    if config.topology:
        expect_no_tpu()
    from bksdm_jax.perf.plan import plan_run

    for part in plan_run(config):
        print(part, flush=True)


def _check(config: DistillConfig | FinetuneConfig) -> None:
    (require_plan if isinstance(config, DistillConfig) else require_finetune_plan)(config)


if __name__ == "__main__":
    run_without_workdir(__doc__, TASKS, main, _check, may_be_empty=("teacher", "model", "data"))
