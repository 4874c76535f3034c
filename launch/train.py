"""Distil a student from a teacher.

  python -m launch.train --config=configs/distill.py:v1,bk_small --config.teacher=DIR --config.data=DIR --workdir=DIR

`teacher` is a Stable Diffusion pipeline: a folder in Diffusers' layout, a single-file checkpoint or an id on the hub;
`data` a folder of images with a `metadata.csv` (`file_name,text`), or of a TFDS set with `image` and `text`. `student`
is a preset or a comma-separated list of removed blocks; `launch.prune` prints what a list would leave. The same command
again continues where the run was; an interrupted run (Ctrl-C, SIGTERM) saves its state and ends with status 1.

On several hosts the same command runs on each, with `--distributed=auto` on TPU pods, SLURM and Kubernetes, or with
`--distributed=HOST:PORT --processes=N --process_id=I`; the workdir must be a folder that all of them see.

The workdir then holds
  config.json          the settings of the run
  metrics.csv          a row per logged step, every loss term by name; the same in tensorboard/
  validation.csv       losses on held-out images, where there are such
  checkpoints/STEP/    the training state
  samples/step_*.png   teacher, student's moving average, student's weights, from the same starting noise
  profile/             what the profiler saw, if asked for
  model/               at the end: the student as a whole pipeline, with a model card that says which weights it holds
"""

from pathlib import Path

from launch.command import quiet_libraries, run, tell

quiet_libraries()

from bksdm_jax.tasks.distill.config import DistillConfig  # noqa: E402
from bksdm_jax.tasks.distill.task import distill  # noqa: E402


def main(config: DistillConfig, workdir: Path) -> None:
    """Runs the distillation and says where the student is."""
    tell(distill(config, workdir), workdir)


if __name__ == "__main__":
    run(DistillConfig, main, distributed=True)
