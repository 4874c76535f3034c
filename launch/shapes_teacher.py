"""Trains the shapes teacher and its CLIP from scratch.

  python -m launch.shapes_teacher --config=configs/shapes_teacher.py --workdir=runs/shapes_teacher

Trains the autoencoder, then CLIP, then the U-Net, on rendered pictures. The same command continues an interrupted run
(Ctrl-C, SIGTERM). The result is `made/` in the workdir, which the package bundles as `bksdm_jax/shapes/pretrained/`.
"""

from pathlib import Path

from launch.command import quiet_libraries, run, tell

quiet_libraries()

from bksdm_jax.shapes_teacher.config import TeacherConfig
from bksdm_jax.shapes_teacher.make import make_teacher


def main(config: TeacherConfig, workdir: Path) -> None:
    """Trains all three and prints the path of the result."""
    tell(make_teacher(config, workdir), workdir)


if __name__ == "__main__":
    run(TeacherConfig, main)
