"""Makes from COCO's files what scores compare with: real images, their statistics, and prompts.

  python -m launch.reference --config=configs/reference.py:bk_sdm --config.images=val2014 \
    --config.captions=captions_val2014.json --config.inception=FILE --workdir=runs/coco
  python -m launch.reference --config=configs/reference.py:mlperf_sd --config.images=val2014 \
    --config.captions=captions_val2014.json --config.prompts=val2014_30k.tsv --config.inception=FILE \
    --workdir=runs/mlperf

The workdir gets

  prompts.csv          file_name,text: 30,000 captions, each of another image, drawn with --config.seed as the output
                       says; for `launch.sample --config.prompts`. Or with --config.prompts=FILE (.txt, .csv, or .tsv
                       with a column `caption`), that list as it is
  images/              the real images, squashed to the protocol's size by Pillow's bicubic and saved as JPEG with its
                       default quality; for `launch.score --config.reference`
  fid_pytorch_fid.npz  with --config.inception: mean and covariance of their features, as pytorch-fid's; a reference too
  reference.json       counts, hashes, versions, and where they depart from the protocol
  config.json          the settings

Features are kept in the cache that `launch.score` uses, those for --config.metrics too. The same command continues an
interrupted run.
"""

from pathlib import Path

from bksdm_jax.evaluation.config import ReferenceConfig, reference_metrics
from launch.command import run


def main(config: ReferenceConfig, workdir: Path) -> None:
    """Makes the reference and says what it is."""
    from bksdm_jax.evaluation.make_reference import make_reference, reference_lines

    print(reference_lines(make_reference(config, workdir), workdir, config))


if __name__ == "__main__":
    run(__doc__, ReferenceConfig, main, reference_metrics)
