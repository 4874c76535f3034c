r"""Converts a teacher's LoRA for a student.

  python -m launch.convert_lora --config=configs/convert_lora.py --config.lora=FILE --config.model=DIR --workdir=DIR
  python -m launch.convert_lora --config=configs/convert_lora.py --config.lora=FILE --config.model=DIR \
    --config.layout=diffusers --workdir=DIR

`lora` is a file of kohya's scripts, PEFT or Diffusers, a folder of PEFT, or a hub id; `model` is the student, that is
the folder that `launch.prune` wrote, or `model/` of `launch.train`. The keys of a LoRA carry the teacher's block
numbers. Those of blocks that the student keeps get the student's numbers, those of removed blocks go, and the text
encoder's stay.

Prints where each block went and its share of the update, by the sum of squares of the entries, and how much of it was
removed. The workdir gets the file, with the name of the teacher's.
"""

from pathlib import Path

from bksdm_jax.pruning.lora_config import ConvertLoraConfig, require_conversion
from launch.command import run


def main(config: ConvertLoraConfig, workdir: Path) -> None:
    """Writes the student's LoRA and prints what became of the blocks."""
    from bksdm_jax.pruning.convert_lora import convert_lora, moved_table

    path, moved = convert_lora(config, workdir)
    print(moved_table(moved))
    print(f"\n{path}")


if __name__ == "__main__":
    run(__doc__, ConvertLoraConfig, main, require_conversion)
