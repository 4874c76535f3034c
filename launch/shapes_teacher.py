"""Make the shapes teacher, and the CLIP beside it, from nothing.

  python -m launch.shapes_teacher --config=configs/shapes_teacher.py --workdir=runs/shapes_teacher

Trains the autoencoder, then CLIP, then the U-Net, on pictures that it renders. The same command again continues where
it was interrupted (Ctrl-C, SIGTERM). The workdir then holds `made/`, the folder that comes with the package as
`bksdm_jax/shapes/pretrained/`.
"""

from pathlib import Path

from launch.command import quiet_libraries, run, tell

quiet_libraries()

from bksdm_jax.shapes_teacher.make import TeacherConfig, make_teacher  # noqa: E402


def main(config: TeacherConfig, workdir: Path) -> None:
    """Trains all three and says where they are."""
    tell(make_teacher(config, workdir), workdir)


if __name__ == "__main__":
    run(TeacherConfig, main)
