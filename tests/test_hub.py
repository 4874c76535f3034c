"""Pipelines by their id on the hub, against a server that answers as the hub does."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.config import SaveConfig
from bksdm_jax.pipelines.folder import needed_files
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.save import wanted_extras
from bksdm_jax.pipelines.source import ModelSource
from tests.fake_hub import COMMIT, REPOSITORY, fake_hub

NOBODY = "http://127.0.0.1:9"  # nobody listens there


@pytest.fixture(scope="module")
def repository(micro_torch_teacher: Path, micro_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Diffusers writes, with files besides that a pipeline doesn't need."""
    folder = shutil.copytree(micro_torch_teacher, tmp_path_factory.mktemp("hub") / "tiny")
    for network in ("unet", "vae"):
        name = "diffusion_flax_model.msgpack"
        shutil.copy(micro_teacher / network / name, folder / network / name)
    (folder / "README.md").write_text("A picture of it: " + "x" * 1000)
    (folder / "v1.ckpt").write_bytes(b"0" * 1000)
    return folder


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of a library that isn't told to stay offline, and that nobody answers."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    point_to(NOBODY, monkeypatch)
    yield tmp_path / "cache"
    huggingface_hub.close_session()


@pytest.fixture
def asked(repository: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the server was asked for."""
    asked: list[str] = []
    with fake_hub(repository, asked) as address:
        point_to(address, monkeypatch)
        yield asked


def fetched(asked: list[str]) -> list[str]:
    """The files whose contents were asked for."""
    return [line.split(f"{COMMIT}/")[1] for line in asked if line.startswith(f"GET /{REPOSITORY}/resolve")]


def test_a_pipeline_of_the_hub_is_fetched_once_and_then_found_offline(
    asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = find_model(REPOSITORY).read()
    assert pipeline.path.name == COMMIT
    assert "unet/diffusion_pytorch_model.safetensors" in fetched(asked)
    assert not [name for name in fetched(asked) if "flax" in name or "README" in name or "ckpt" in name]
    files = len(fetched(asked))
    assert find_model(REPOSITORY).path == pipeline.path
    assert len(fetched(asked)) == files
    with monkeypatch.context() as offline:
        offline.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        requests = len(asked)
        assert find_model(REPOSITORY).path == pipeline.path
        assert len(asked) == requests
    point_to(NOBODY, monkeypatch)
    assert find_model(REPOSITORY).path == pipeline.path


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        (ModelSource("somebody/else"), ["somebody/else: "]),
        (ModelSource(REPOSITORY, "v9"), [f"{REPOSITORY} ", "v9"]),
        (ModelSource("tests/no_such_model"), ["tests/no_such_model: "]),
        (ModelSource("owner/a--b"), ["owner/a--b: "]),
    ],
)
def test_what_the_hub_lacks_is_said(asked: list[str], source: ModelSource, facts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        find_model(source)
    for fact in facts:
        assert fact in str(error.value)
    assert "\n" not in str(error.value)
    assert not fetched(asked)


@pytest.mark.parametrize("offline", [True, False])
def test_without_hub_and_cache_it_is_said_at_once(cache: Path, monkeypatch: pytest.MonkeyPatch, offline: bool) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    with pytest.raises(InputError, match=f"{REPOSITORY}: "):
        find_model(REPOSITORY)
    assert not cache.exists() or not list(cache.glob("models--*"))


def test_a_student_to_start_from_fetches_its_unet_alone(asked: list[str]) -> None:
    assert find_model(REPOSITORY, networks=("unet",)).read_denoiser().params
    assert [name for name in fetched(asked) if "safetensors" in name] == ["unet/diffusion_pytorch_model.safetensors"]


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
    needed = needed_files(names, "", wanted_extras(SaveConfig(**settings)))
    parts = [f"safety_checker/{name}" for name in ("config.json", expected)] if expected else []
    assert needed == ["README.md", *parts]


def test_counting_fetches_no_weights(asked: list[str]) -> None:
    assert find_model(REPOSITORY, networks=()).architectures.denoiser.mid
    assert "unet/config.json" in fetched(asked)
    assert not [name for name in fetched(asked) if "safetensors" in name or "msgpack" in name]
