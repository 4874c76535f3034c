"""Evaluates a model's personalised generation: DreamBooth's 30 subjects, each with 25 prompts and 4 images of each.

  python -m launch.subjects --config=configs/subjects.py:v1,bk_base --config.dataset=dreambooth/dataset \
    --config.subject=dog6 --config.model=DIR --workdir=runs/subjects
  python -m launch.subjects --config=configs/subjects.py:v1,bk_base --config.dataset=dreambooth/dataset \
    --workdir=runs/subjects

The first command fine-tunes the model on the photographs of one subject, as `launch.train` does with
configs/dreambooth.py, and samples its prompts; `--config.subject=all` makes one subject after the other. The second one
scores all subjects that are finished in the workdir with DINO, CLIP-I and CLIP-T, and prints the paper's figures beside
them, and in which steps the evaluation departs from the paper's.

`dataset` is the folder of that name in a clone of github.com/google/dreambooth. Prompts of living subjects are those of
the classes in `--config.living`. A subject's photographs are captioned `a TOKEN CLASS`, and the images for prior
preservation are of `a CLASS`, as in the authors' scripts. These images are made by `--config.prior.model`: the original
model if a student is fine-tuned; `--config.prior.folder` takes those of another subject of the class.

The workdir gets
  SUBJECT/training/       the fine-tuning, with model/ or lora.safetensors; --config.keep_training=no deletes it
  SUBJECT/images/         the images, as of launch.sample
  SUBJECT/metadata.csv    their file_name,text,subject, once all are made
  subjects.json           scores of every subject and their mean, with 95% intervals; departures; published figures
  subjects.csv            the same scores as a table
  metadata.csv, scores_N  the images of N subjects, and their scores as of launch.score

The same command continues an interrupted one. A batch of one image needs a process with one device
(CUDA_VISIBLE_DEVICES=0), and subjects can be made side by side. A full fine-tuning of SD v1 leaves 16 GB, most of it
the optimiser's state.
"""

from pathlib import Path

from bksdm_jax.base.exits import RESTART
from bksdm_jax.base.signals import interrupted
from bksdm_jax.experiments.subjects_config import ALL, SubjectsConfig, require_subjects
from launch.command import run, tell


def main(config: SubjectsConfig, workdir: Path) -> None:
    """Makes the images of a subject and prints its folder, or prints the table."""
    if config.subject:
        from bksdm_jax.experiments.subjects import make_subjects

        tell(make_subjects(config, workdir), workdir)
        return
    from bksdm_jax.experiments.subjects_table import subjects_table, table_text

    print(table_text(subjects_table(config, workdir)))


def _left(config: SubjectsConfig, workdir: Path, number: int) -> tuple[int, str]:
    """For a signal; what a subject has stays."""
    named = "*" if config.subject == ALL else config.subject
    if not named or not any(workdir.glob(f"{named}/config.json")):
        return interrupted(number)
    return RESTART, f"interrupted; the same command continues in {workdir}"


if __name__ == "__main__":
    run(__doc__, SubjectsConfig, main, require_subjects, left=_left)
