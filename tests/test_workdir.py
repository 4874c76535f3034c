"""A workdir belongs to one run: what differs is named by its full key, and nothing is written."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.workdir import as_written, claim, require_same

SETTINGS = {"steps": 3, "batch": 8, "loss": {"task": 1.0, "scales": [0.5, 2.0]}, "texts": ["a cat", "a dog"]}


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"batch": 4}, "batch is 8 in this workdir, now 4"),
        ({"loss": {"scales": [0.5, 2.0], "task": 0.0}}, "loss.task is 1.0 in this workdir, now 0.0"),
        ({"loss": {"task": 1e10, "scales": [0.5, 2.0]}}, "loss.task is 1.0 in this workdir, now 1e10"),
        ({"loss": {"task": 2.5e-5, "scales": [0.5, 2.0]}}, "loss.task is 1.0 in this workdir, now 2.5e-5"),
        ({"loss": {"task": 1.0, "scales": [0.5, 1.0]}}, "loss.scales.1 is 2.0 in this workdir, now 1.0"),
        ({"texts": ["a cat", "a dog", "a fox"]}, "texts.2 is not set in this workdir, now 'a fox'"),
        ({"rate": 0.1}, "rate is not set in this workdir, now 0.1"),
    ],
)
def test_the_value_that_differs_is_named(tmp_path: Path, change: dict[str, Any], facts: str) -> None:
    claim(tmp_path, SETTINGS)
    require_same(tmp_path, SETTINGS | {"steps": 9}, ("steps",))
    with pytest.raises(InputError) as error:
        require_same(tmp_path, SETTINGS | change, ("steps",))
    assert f"{tmp_path}/config.json: " in str(error.value)
    assert f" {facts};" in str(error.value)


HASHES = [hashlib.sha256(text).hexdigest() for text in (b"former", b"present")]


@pytest.mark.parametrize(
    ("key", "former", "present", "said"),
    [
        ("data_sha256", *HASHES, "data"),
        ("noise", *HASHES, "noise"),
        ("noise", "", HASHES[0], "noise"),
        ("model_sha256", {"unet": HASHES[0]}, {"unet": HASHES[1]}, r"model\.unet"),
        ("data_facts", {"rows": 40}, {"rows": 39}, "data.*: 1 row fewer;"),
        ("data_facts", {"rows": 40}, {"rows": 43}, "data.*: 3 rows more;"),
        ("data", {"rows": 40, "captions": 80}, {"rows": 41, "captions": 78}, "data.*: 2 captions fewer, 1 row more;"),
        ("data", {"files": 40}, {"files": 40}, "data.*: same number of files, .*names or contents;"),
    ],
)
def test_no_hash_is_shown(tmp_path: Path, key: str, former: Any, present: Any, said: str) -> None:
    if isinstance(former, dict) and "unet" not in former:
        former, present = former | {"sha256": HASHES[0]}, present | {"sha256": HASHES[1]}
    claim(tmp_path, SETTINGS | {key: former})
    require_same(tmp_path, SETTINGS | {key: former}, ())
    with pytest.raises(InputError, match=rf"config\.json: the {said}") as error:
        require_same(tmp_path, SETTINGS | {key: present}, ())
    assert not any(value in str(error.value) for value in (*HASHES, "sha256'"))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5e-05, "5e-5"),
        (0.0001, "1e-4"),
        (0.001, "0.001"),
        (0.9999, "0.9999"),
        (1e10, "1e10"),
        (-2.5e7, "-2.5e7"),
        (1234567.125, "1234567.125"),
        (0.0, "0.0"),
        (250.0, "250.0"),
        (float("inf"), "inf"),
        (30, "30"),
        ("text", "'text'"),
    ],
)
def test_numbers_are_shown_as_they_are_written(value: Any, text: str) -> None:
    assert as_written(value) == text


def test_what_is_no_workdir_of_such_a_run_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"config\.json: .*another program"):
        require_same(tmp_path, {"model": "m", "steps": 3, "prompt": "a cat", "seed": 0, "sampler": "ddim"}, ())
    with pytest.raises(InputError, match=r"config\.json: is a file"):
        require_same(tmp_path / "config.json", SETTINGS, ())


def test_a_nested_setting_may_change_alone(tmp_path: Path) -> None:
    claim(tmp_path, {"optimizer": {"learning_rate": 0.1, "epsilon": 1e-8}, "seed": 1})
    other = {"optimizer": {"learning_rate": 0.2, "epsilon": 1e-8}, "seed": 1}
    require_same(tmp_path, other, ("optimizer.learning_rate",))
    with pytest.raises(InputError, match=r"optimizer\.learning_rate is 0\.1 .* 0\.2"):
        require_same(tmp_path, other, ())
    other["optimizer"]["epsilon"] = 1e-6
    with pytest.raises(InputError, match=r"optimizer\.epsilon is 1e-8 .* 1e-6"):
        require_same(tmp_path, other, ("optimizer.learning_rate",))
