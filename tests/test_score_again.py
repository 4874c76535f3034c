"""Scores again in a used workdir: what was changed in between counts."""

from pathlib import Path

from bksdm_jax.data.tables import write_table
from bksdm_jax.evaluation.score import score
from tests.test_score import Calls, calls, config, folders  # noqa: F401


def test_other_captions_are_scored_anew(calls: Calls, folders: Path) -> None:  # noqa: F811
    first = score(config(folders, ["clip_score"]), folders / "out")
    rows = [(f"{i:06d}.png", "a longer caption", "dog") for i in range(12)]
    write_table(folders / "images" / "metadata.csv", ("file_name", "text", "subject"), rows)
    again = score(config(folders, ["clip_score"]), folders / "out")
    assert again["scores"] != first["scores"]
    assert again == score(config(folders, ["clip_score"]), folders / "fresh")
