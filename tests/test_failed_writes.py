"""A file that can't be written stays as it was, and what was begun doesn't count."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.data.prepare import shards
from bksdm_jax.data.prepare.prepare import prepare
from bksdm_jax.data.skipping import Skipping, skipped
from bksdm_jax.data.sources import INFO
from tests.pairs_on_disk import config, many, names


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_file_that_cannot_be_written_stays_as_it_was(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "scores.json", {"fid": 1.0})
    before, write_text = (tmp_path / "scores.json").read_bytes(), Path.write_text

    def half(path: Path, text: str, **options: Any) -> int:
        write_text(path, text[:5], **options)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "write_text", half)
    with pytest.raises(InputError, match=rf"^[^\n]*scores\.json: [^\n]*{os.strerror(code)}[^\n]*$"):
        write_json(tmp_path / "scores.json", {"fid": 2.0})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"scores.json": before}


def test_no_chunk_counts_of_which_a_split_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(shards.ArrayRecordWriter):  # type: ignore[misc]
        def close(self) -> None:
            super().close()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    source = many(tmp_path / "source", 8)
    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", Full)
        with pytest.raises(InputError, match=r"000000\.\w+\.array_record: .*No space left"):
            prepare(config(source, chunk=4, validation=0.5), tmp_path / "set")
    assert not any((tmp_path / "set" / "parts").iterdir())
    assert not (tmp_path / "set" / INFO).exists()
    prepare(config(source, chunk=4, validation=0.5), tmp_path / "set")
    assert len(names(tmp_path / "set")) + len(names(tmp_path / "set", "validation")) == 8


def test_a_list_of_skipped_images_goes_on_after_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "skipped.csv"
    Skipping([], path).note("a.png", InputError("damaged"))
    path.write_bytes(path.read_bytes() + b"b.png,dam")
    Skipping([], path).note("c.png", InputError("damaged"))
    assert path.read_text().splitlines() == ["name,reason", "a.png,damaged", "b.png,dam", "c.png,damaged"]
    assert skipped(path) == 3
