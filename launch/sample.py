"""Make images from prompts.

  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompts=FILE --workdir=DIR
  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompt="a red bicycle" --workdir=DIR

`model` is a pipeline folder, single file or id on the hub; `prompts` a `.txt` file, one prompt per line, or a `.csv`
with `file_name,text`. The workdir gets `images/000000.png`, ... and `metadata.csv` (`file_name,text`).

Image i starts from noise that `seed` and i alone decide, so in float32 `batch_size` changes no pixel by more than
rounding. The same command again makes only the images that are missing.
"""

from pathlib import Path

from launch.command import quiet_libraries, run

quiet_libraries()

from bksdm_jax.sampling.run import SampleConfig, sample  # noqa: E402


def main(config: SampleConfig, workdir: Path) -> None:
    """Makes the images and says where they are."""
    count = sample(config, workdir)
    print(f"{count} image(s) in {workdir / 'images'}")


if __name__ == "__main__":
    run(SampleConfig, main)
