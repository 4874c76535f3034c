"""Distils a student from a teacher, or fine-tunes a model.

  python -m launch.train --config=configs/distill.py:v1,bk_small --config.teacher=DIR --config.data=DIR --workdir=DIR
  python -m launch.train --config=configs/distill.py:shapes,bk_small --workdir=runs/shapes_small
  python -m launch.train --config=configs/dreambooth.py:v1 --config.model=DIR --config.data=PHOTOS
      --config.caption="a photo of sks dog" --config.prior.prompt="a photo of a dog" --workdir=DIR
  python -m launch.train --config=configs/lora.py:v1 --config.model=DIR --config.data=DIR --workdir=DIR

`teacher` is a Stable Diffusion pipeline: a folder in Diffusers' layout, a single-file checkpoint or a hub id.
`data` is a dataset of `launch.prepare`, or images with captions in any form that `launch.prepare` reads.
`student` is a preset, a comma-separated list of blocks to remove, or a criterion and a size, as for `launch.prune`,
which prints the resulting student. An interrupted run (Ctrl-C, SIGTERM) saves its state and ends with status 75, or
with 130 or 143 if there was nothing to save yet; the same command continues it.

On several hosts, run the same command on each, with `--distributed=auto` on TPU pods, SLURM and Kubernetes, or with
`--distributed=HOST:PORT --processes=N --process_id=I`; all must see the same workdir.

The workdir gets
  config.json          the settings
  metrics.csv          every loss term by logged step; also in tensorboard/
  validation.csv       losses on held-out images, if there are any
  skipped.csv          images that couldn't be used, with --config.skip_unusable=yes
  changes.csv          the steps after which the learning rate was changed
  checkpoints/STEP/    the training state, with checksums
  not_finite/STEP/     the update that ended a diverged run, for --config.replay
  samples/step_*.png   images of the teacher, the EMA weights and the current weights, from the same starting noise
  profile/             the profiler's trace, if enabled
  model/               at the end: the student's pipeline, with a model card that says which weights it has

Fine-tunings have neither validation.csv nor the teacher's images, but

  class_images/        images of the subject's class, made before the first update, for prior preservation
  samples/step_*.png   with a LoRA: images without it, and with it
  lora.safetensors     the LoRA, in place of model/
"""

from pathlib import Path

from bksdm_jax.base.exits import RESTART
from bksdm_jax.base.signals import interrupted
from bksdm_jax.tasks.distill.config import DistillConfig, require_settings
from bksdm_jax.tasks.finetune.config import FinetuneConfig, require_finetune
from launch.command import run, tell
from launch.tasks import TASKS


def main(config: DistillConfig | FinetuneConfig, workdir: Path) -> None:
    """Runs the training and prints the path of what it made."""
    from bksdm_jax.base.distributed import is_first
    from bksdm_jax.base.host_memory import keep_memory
    from bksdm_jax.tasks.distill.task import distill, distill_again
    from bksdm_jax.tasks.finetune.task import finetune, finetune_again

    keep_memory()
    distils = isinstance(config, DistillConfig)
    if config.replay:
        told = distill_again(config) if distils else finetune_again(config)
        if is_first():
            print(told)
        return
    made = distill(config, workdir) if distils else finetune(config, workdir)
    if made is None or is_first():
        tell(made, workdir)


def _check(config: DistillConfig | FinetuneConfig) -> None:
    (require_settings if isinstance(config, DistillConfig) else require_finetune)(config)


def _left(config: DistillConfig | FinetuneConfig, workdir: Path, number: int) -> tuple[int, str]:
    """For a signal before the checkpoints are opened; those in a bucket aren't looked for."""
    folder = Path(config.checkpoints or workdir / "checkpoints").expanduser()
    if any(folder.glob("*/checksums.json")) or (workdir / "class_images").exists():
        return RESTART, f"interrupted; the same command continues in {workdir}"
    return interrupted(number)


if __name__ == "__main__":
    run(__doc__, TASKS, main, _check, distributed=True, left=_left)
