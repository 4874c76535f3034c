"""Pipelines by their id on the hub, against a server that answers as the hub does."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bksdm_jax.pipelines.folder import needed_files
from bksdm_jax.pipelines.save import SaveConfig
from tests.conftest import ROOT
from tests.fake_hub import COMMIT, REPOSITORY

ASK = """
import sys
from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.load import find_model, load_pipeline
for question in sys.argv[1:]:
    try:
        if question.startswith("configs of "):
            load_architectures(question.removeprefix("configs of "))
            continue
        if question.startswith("unet of "):
            load_unet(question.removeprefix("unet of "))
            continue
        folder = find_pipeline(*question.split(","))
        load_pipeline(folder)
        print(folder)
    except InputError as error:
        print("error:", error)
"""


@pytest.fixture(scope="module")
def repository(torch_teacher: Path, flax_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Diffusers writes, with files besides that a pipeline doesn't need."""
    folder = shutil.copytree(torch_teacher, tmp_path_factory.mktemp("hub") / "tiny")
    for network in ("unet", "vae"):
        name = "diffusion_flax_model.msgpack"
        shutil.copy(flax_teacher / network / name, folder / network / name)
    (folder / "README.md").write_text("A picture of it: " + "x" * 1000)
    (folder / "v1.ckpt").write_bytes(b"0" * 1000)
    return folder


@pytest.fixture
def hub(repository: Path, tmp_path: Path) -> Iterator[str]:
    """The server's address; what it was asked for is in `tmp_path / "asked"`."""
    with (tmp_path / "asked").open("w") as asked:
        command = [sys.executable, "-m", "tests.fake_hub", str(repository)]
        with subprocess.Popen(command, cwd=ROOT, stdout=asked) as server:
            while not (tmp_path / "asked").read_text().strip():
                assert server.poll() is None
            yield f"http://127.0.0.1:{(tmp_path / 'asked').read_text().split()[0]}"
            server.terminate()


def ask(home: Path, address: str, *questions: str, **more: str) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(home), "HF_ENDPOINT": address, "XLA_FLAGS": ""} | more
    command = [sys.executable, "-c", ASK, *questions]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


def test_a_pipeline_of_the_hub_is_fetched_once_and_then_found_offline(hub: str, tmp_path: Path) -> None:
    (folder,) = ask(tmp_path / "home", hub, REPOSITORY)
    assert Path(folder).name == COMMIT
    fetched = [
        line.split(f"{COMMIT}/")[1] for line in (tmp_path / "asked").read_text().splitlines() if "GET /som" in line
    ]
    assert "unet/diffusion_pytorch_model.safetensors" in fetched
    assert not [name for name in fetched if "flax" in name or "README" in name or "ckpt" in name]
    assert ask(tmp_path / "home", hub, REPOSITORY, HF_HUB_OFFLINE="1") == [folder]
    assert ask(tmp_path / "home", "http://127.0.0.1:9", REPOSITORY) == [folder]  # nobody listens there


def test_what_the_hub_lacks_is_said(hub: str, tmp_path: Path) -> None:
    said = ask(tmp_path / "home", hub, "somebody/else", f"{REPOSITORY},v9", "tests/no_such_model")
    assert said[0] == "error: somebody/else: no such folder here, and no such model on the hub (or a private one)"
    assert said[1] == f"error: {REPOSITORY} at revision v9: the hub has no such revision"
    assert said[2].endswith("tests/no_such_model: no such pipeline folder")
    (said,) = ask(tmp_path / "home", hub, "owner/a--b")
    assert said.startswith("error: owner/a--b: no such folder here, and no id that the hub could have")


def test_without_hub_and_cache_it_is_said_at_once(tmp_path: Path) -> None:
    (said,) = ask(tmp_path / "home", "http://127.0.0.1:9", REPOSITORY, HF_HUB_OFFLINE="1")
    assert said.startswith(f"error: {REPOSITORY}: no such folder here; as a model of the hub it isn't in the cache")
    assert not (tmp_path / "home" / "hub" / "models--somebody--tiny").exists()


def test_a_student_to_start_from_fetches_its_unet_alone(hub: str, tmp_path: Path) -> None:
    assert ask(tmp_path / "home", hub, f"unet of {REPOSITORY}") == []
    fetched = [line for line in (tmp_path / "asked").read_text().splitlines() if "GET /som" in line]
    assert [line.split(f"{COMMIT}/")[1] for line in fetched if "safetensors" in line] == [
        "unet/diffusion_pytorch_model.safetensors"
    ]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "model.safetensors"),
        ({"format": "flax"}, "flax_model.msgpack"),
        ({"safety_checker": False}, None),
        ({"format": "single_file"}, None),
    ],
)
def test_a_copy_fetches_the_safety_checker_that_it_can_hold(settings: dict[str, Any], expected: str | None) -> None:
    weights = ("model.safetensors", "model.fp16.safetensors", "pytorch_model.bin", "flax_model.msgpack")
    names = ["safety_checker/config.json", *(f"safety_checker/{name}" for name in weights), "README.md"]
    needed = needed_files(names, "", SaveConfig(**settings).extras())
    parts = [f"safety_checker/{name}" for name in ("config.json", expected)] if expected else []
    assert needed == ["README.md", *parts]


def test_counting_fetches_no_weights(hub: str, tmp_path: Path) -> None:
    assert ask(tmp_path / "home", hub, f"configs of {REPOSITORY}") == []
    fetched = [line for line in (tmp_path / "asked").read_text().splitlines() if "GET /som" in line]
    assert any("unet/config.json" in line for line in fetched)
    assert not any("safetensors" in line or "msgpack" in line for line in fetched)
