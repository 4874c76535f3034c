"""A workdir belongs to one run: what differs is named by its full key, and nothing is written."""

from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.workdir import claim, require_same

SETTINGS = {"steps": 3, "batch": 8, "loss": {"task": 1.0, "scales": [0.5, 2.0]}, "texts": ["a cat", "a dog"]}


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"batch": 4}, "batch 8, not 4"),
        ({"loss": {"scales": [0.5, 2.0], "task": 0.0}}, "loss.task 1.0, not 0.0"),
        ({"loss": {"task": 1.0, "scales": [0.5, 1.0]}}, "loss.scales.1 2.0, not 1.0"),
        ({"texts": ["a cat", "a dog", "a fox"]}, "texts.2 None, not 'a fox'"),
        ({"rate": 0.1}, "rate None, not 0.1"),
    ],
)
def test_the_value_that_differs_is_named(tmp_path: Path, change: dict[str, Any], facts: str) -> None:
    claim(tmp_path, SETTINGS)
    require_same(tmp_path, SETTINGS | {"steps": 9}, ("steps",))
    with pytest.raises(InputError) as error:
        require_same(tmp_path, SETTINGS | change, ("steps",))
    assert f"{tmp_path}/config.json: " in str(error.value)
    assert f" {facts};" in str(error.value)


def test_what_is_no_workdir_of_such_a_run_is_refused(tmp_path: Path) -> None:
    claim(tmp_path, SETTINGS)
    with pytest.raises(InputError, match=r"config\.json: .*another program"):
        require_same(tmp_path, {"model": "m", "steps": 3, "prompt": "a cat", "seed": 0, "sampler": "ddim"}, ())
    with pytest.raises(InputError, match=r"config\.json: is a file"):
        require_same(tmp_path / "config.json", SETTINGS, ())
