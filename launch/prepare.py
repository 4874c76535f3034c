r"""Converts captioned images into a training dataset, or such a dataset into one of cached latents.

  python -m launch.prepare --config=configs/prepare.py --config.source=DIR --workdir=DIR
  python -m launch.prepare --config=configs/prepare.py --config.source=PREPARED --config.latents.pipeline=TEACHER \
    --workdir=DIR

Ctrl-C or SIGTERM stops it; the same command continues.
"""

from pathlib import Path

from bksdm_jax.data.prepare.config import PrepareConfig, require_settings
from launch.command import run, tell


def main(config: PrepareConfig, workdir: Path) -> None:
    """Prepares the dataset and prints its statistics."""
    from bksdm_jax.base.files import read_json
    from bksdm_jax.data.prepare.prepare import REJECTS, SHEET, SUMMARY, prepare

    made = prepare(config, workdir)
    if made is not None and not config.latents.pipeline:
        found = read_json(made / SUMMARY)
        print(", ".join(f"{count:,} examples of {split}" for split, count in found["examples"].items()))
        print(f"{found['captions']:,} captions, {found['bytes'] / 2**20:,.1f} MiB")
        for key in filter(found.get, ("short_side", "caption_letters", "reasons")):
            print(f"{key.replace('_', ' ')}: " + "; ".join(f"{what}: {count:,}" for what, count in found[key].items()))
        for note in found["notes"]:
            print(note)
        print(f"{found['rejects']:,} rejected (list: {made / REJECTS}); preview: {made / SHEET}")
    tell(made, workdir)


if __name__ == "__main__":
    run(__doc__, PrepareConfig, main, require_settings, distributed=True)
