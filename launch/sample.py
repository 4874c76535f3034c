"""Generates images from prompts.

  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompts=FILE --workdir=DIR
  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompt="a red bicycle" --workdir=DIR

`model` is a pipeline folder, single file or hub id; `prompts` a `.txt` file with one prompt per line, or a `.csv` file
with `file_name,text`. Writes `images/000000.png`, ... and `metadata.csv` (`file_name,text`) to the workdir.

The starting noise of image i depends only on `seed` and i; in float32, `batch_size` changes pixels by at most rounding.
The same command generates only the missing images.
"""

from pathlib import Path

from launch.command import quiet_libraries, run

quiet_libraries()

from bksdm_jax.sampling.run import SampleConfig, sample  # noqa: E402


def main(config: SampleConfig, workdir: Path) -> None:
    """Generates the images and prints their folder."""
    count = sample(config, workdir)
    print(f"{count} image(s) in {workdir / 'images'}")


if __name__ == "__main__":
    run(SampleConfig, main)
