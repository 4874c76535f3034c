"""Trains the shapes teacher and its CLIP from scratch.

  python -m launch.shapes_teacher --config=configs/shapes_teacher.py --workdir=runs/shapes_teacher
  python -m launch.shapes_teacher --config=configs/shapes_teacher.py --config.unet.steps=1000 --workdir=runs/shorter

Trains the autoencoder, then CLIP, then the U-Net, on rendered pictures. The same command continues an interrupted run
(Ctrl-C, SIGTERM). The result is `made/` in the workdir, which the package bundles as `bksdm_jax/shapes/pretrained/`.
"""

from pathlib import Path

from bksdm_jax.shapes_teacher.config import TeacherConfig, require_settings
from launch.command import run, tell


def main(config: TeacherConfig, workdir: Path) -> None:
    """Trains all three and prints the path of the result."""
    from bksdm_jax.base.host_memory import keep_memory
    from bksdm_jax.shapes_teacher.make import make_teacher

    keep_memory()
    tell(make_teacher(config, workdir), workdir)


if __name__ == "__main__":
    run(__doc__, TeacherConfig, main, require_settings)
