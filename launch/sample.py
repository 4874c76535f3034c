"""Generates images from prompts, and from other images.

  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompts=FILE --workdir=DIR
  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompt="a red bicycle" --workdir=DIR

`model` is a pipeline folder, single file or hub id; `prompts` a `.txt` file with one prompt per line, or a `.csv` file
with `file_name,text`. The workdir gets

  images/000000.png, ...  JPEG with --config.format=jpeg; PNG files say how they were made, as WebUIs do
  metadata.csv            file_name,text, and source: the name in the .csv, or of the image to begin from
  timing.json             seconds_per_image, and first_call_seconds with compiling
  config.json             the settings

More of it:

  --config.protocol=bk_sdm                       the images of the paper's evaluation, in images/ and images_256/
  --config.init=FILE or FOLDER                   images to begin from; --config.strength=0.8
  --config.images_per_prompt=4                   image i is of prompt i // 4
  --config.latents=FILE                          starting noise, .npy or .safetensors
  --config.teacher=MODEL --config.switch_at=10   the first steps are made by another model
  --config.beside="('MODEL2','MODEL3')"          more models' images of the same noise in beside_1/, beside_2/, and
                                                 sheet_000.png, ... with a row per model, in this order

With --config.score.metrics="('clip_score',)" the images are scored and not written.

An image depends only on the settings and its number; `batch_size`, the images per call and device, and the number of
devices change pixels by rounding at most, in float32. The same command generates only the missing images. On several
hosts, run the same command on each, with `--distributed` as for `launch.train`; each makes its share of the images, and
all must see the same workdir.
"""

import dataclasses
from pathlib import Path

from bksdm_jax.base.exits import RESTART
from bksdm_jax.base.signals import interrupted
from bksdm_jax.evaluation.config import SampleAndScoreConfig, require_sample_settings
from bksdm_jax.sampling.config import SampleConfig
from launch.command import run


def main(config: SampleAndScoreConfig, workdir: Path) -> None:
    """Generates the images, and prints their folder or their scores."""
    from bksdm_jax.base.distributed import is_first
    from bksdm_jax.evaluation.live import sample_and_score
    from bksdm_jax.evaluation.score import score_table
    from bksdm_jax.sampling.run import sample

    if config.score.metrics:
        print(score_table(sample_and_score(config, workdir)))
        return
    fields = dataclasses.fields(SampleConfig)
    count = sample(SampleConfig(**{field.name: getattr(config, field.name) for field in fields}), workdir)
    if is_first():
        print(f"{count} image(s) in {workdir / 'images'}")


def _left(config: SampleAndScoreConfig, workdir: Path, number: int) -> tuple[int, str]:
    """For a signal; images that are written stay."""
    del config
    if not (workdir / "config.json").exists():
        return interrupted(number)
    return RESTART, f"interrupted; the same command makes the missing images in {workdir}"


if __name__ == "__main__":
    run(__doc__, SampleAndScoreConfig, main, require_sample_settings, distributed=True, left=_left)
