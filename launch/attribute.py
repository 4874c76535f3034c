r"""Shows where each word of a prompt looks, teacher beside students, and says how alike they are.

  python -m launch.attribute --config=configs/attribute.py --config.teacher=DIR --config.models="('DIR',)" \
    --config.prompts=FILE --workdir=DIR
  python -m launch.attribute --config=configs/attribute.py:shapes --config.models="('DIR','DIR')" --workdir=DIR

A word's map is the mean of its tokens' cross-attention over heads, layers and sampler steps (DAAM, Tang et al. 2022).
The workdir gets

  attribution.html              a page with all maps over the images
  attribution.json              each word's correlation and intersection over union with the teacher, their means with
                                95% intervals, and means by word
  teacher/images/000000.png     the images, and of students in student_1/, student_2/, ...
  teacher/maps/000000.npy       maps of the words of a prompt, float32 [words, h, w], of the size of the latents

The models need the same tokens and latents; they begin from the same noise. The same command makes only what is
missing.
"""

from pathlib import Path

from bksdm_jax.analysis.attribution_config import AttributionConfig, require_attribution
from bksdm_jax.base.exits import RESTART
from bksdm_jax.base.signals import interrupted
from launch.command import run


def main(config: AttributionConfig, workdir: Path) -> None:
    """Makes the maps, and prints the means and the page's path."""
    from bksdm_jax.analysis.attribute import attribute
    from bksdm_jax.analysis.likeness import likeness_lines
    from bksdm_jax.reports.attribution_page import FILE

    path = attribute(config, workdir)
    print("\n".join(likeness_lines(workdir / FILE)))
    print(f"\n{path}")


def _left(config: AttributionConfig, workdir: Path, number: int) -> tuple[int, str]:
    """For a signal; images and maps that are written stay."""
    del config
    if not (workdir / "config.json").exists():
        return interrupted(number)
    return RESTART, f"interrupted; the same command makes what is missing in {workdir}"


if __name__ == "__main__":
    run(__doc__, AttributionConfig, main, require_attribution, left=_left)
