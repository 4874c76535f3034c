"""Sources and sets in a bucket are read as those of a disk are."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from etils.epath import backend

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import to_path
from bksdm_jax.data.loader import LoaderConfig, training_batches
from bksdm_jax.data.prepare.prepare import prepare
from bksdm_jax.data.sources import data_folder, fingerprint, open_examples
from tests.fake_bucket import NAME, fake_bucket
from tests.pairs_on_disk import config, encoded, folder_of, many, names, picture, rejects


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[list[str]]:
    (tmp_path / "bucket").mkdir()
    names: list[str] = []
    with fake_bucket(tmp_path / "bucket", names):
        yield names


def _tokens(texts: list[str]) -> dict[str, np.ndarray]:
    return {"tokens": np.array([[int(text.split()[-1])] for text in texts], np.int32)}


def test_training_reads_a_set_of_a_bucket(tmp_path: Path, asked: list[str]) -> None:
    prepare(config(many(tmp_path / "images", 12), chunk=5), tmp_path / "bucket/set")
    folder = data_folder(f"{NAME}/set")
    assert str(folder) == f"{NAME}/set"
    found, expected = open_examples(folder), open_examples(tmp_path / "bucket/set")
    assert [example.name for example in found] == [example.name for example in expected]
    assert {name.split(".")[-1].split("-")[0] for name in asked} == {"array_record"}
    assert fingerprint(folder) == fingerprint(tmp_path / "bucket/set")
    settings = LoaderConfig(16, 4, 1, flip=True, seed=3)
    batch, other = (next(training_batches(source, _tokens, settings)) for source in (found, expected))
    assert batch["captions"]["tokens"].size
    jax.tree.map(np.testing.assert_array_equal, batch, other)


def test_a_folder_of_a_bucket_is_prepared(tmp_path: Path, asked: list[str]) -> None:
    rows = [("0.png", "a"), ("1.png", "b"), ("gone.png", "c")]
    folder_of(tmp_path / "bucket/images", rows, {f"{index}.png": encoded(picture(index)) for index in range(2)})
    prepare(config(f"{NAME}/images"), tmp_path / "set")
    assert names(tmp_path / "set") == ["0.png", "1.png"]
    assert list(rejects(tmp_path / "set")) == ["gone.png"]


def test_archives_and_sets_of_a_bucket_are_prepared(tmp_path: Path, asked: list[str]) -> None:
    (tmp_path / "bucket/tars").mkdir()
    with tarfile.open(tmp_path / "bucket/tars/0.tar", "w") as archive:
        for name, data in {"a.png": encoded(picture()), "a.txt": b"a caption"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    prepare(config(f"{NAME}/tars"), tmp_path / "bucket/set")
    assert names(tmp_path / "bucket/set") == ["0.tar/a"]
    prepare(config(f"{NAME}/set"), tmp_path / "again")
    assert names(tmp_path / "again") == ["0.tar/a"]


def test_what_a_store_says_is_one_line(tmp_path: Path, asked: list[str]) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("no\ncredentials")  # none of the system's errors, as TensorFlow's

    folder_of(tmp_path / "bucket/images", [("0.png", "a")], {"0.png": encoded(picture())})
    read = backend.tf_backend.open
    unreachable = mock.patch.object(backend.tf_backend, "exists", refuse)
    with unreachable, pytest.raises(InputError, match=r"images: .*no credentials"):
        to_path(f"{NAME}/images")
    with pytest.raises(InputError, match="s3://mine/set"):
        to_path("s3://mine/set")
    refusing = mock.patch.object(
        backend.tf_backend, "open", lambda path, mode: refuse() if str(path).endswith(".png") else read(path, mode)
    )
    with refusing, pytest.raises(InputError, match=r"images/0\.png: .*no credentials"):
        prepare(config(f"{NAME}/images"), tmp_path / "set")
    prepare(config(f"{NAME}/images"), tmp_path / "set")  # it was the connection, so nothing is lost
    assert names(tmp_path / "set") == ["0.png"]
