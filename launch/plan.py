"""Estimates what a training run needs: memory, FLOPs, traffic, time, and whether it fits.

  python -m launch.plan --config=configs/distill.py:v1,bk_base --config.topology=v4:2x2x4

Compiles exactly the run's training step for a TPU topology (on any machine; `pip install --editable '.[libtpu]'`
installs the compiler) or, without `topology`, for this machine's devices. Needs no weights or data; of
`--config.teacher`, if given, only the configs are read. At full size a compilation takes minutes on two cores.
"""

import re
import sys

from bksdm_jax.perf.environment import expect_no_tpu

if any(re.match(r"--?config\.topology(=.|$)", argument) for argument in sys.argv):
    expect_no_tpu()

from launch.command import quiet_libraries, run_without_workdir

quiet_libraries()

from bksdm_jax.perf.plan import plan_run  # noqa: E402
from bksdm_jax.tasks.distill.config import DistillConfig  # noqa: E402


def main(config: DistillConfig) -> None:
    """Prints each part of the estimate once it is known."""
    for part in plan_run(config):
        print(part, flush=True)


if __name__ == "__main__":
    run_without_workdir(DistillConfig, main, may_be_empty=("teacher", "data"))
