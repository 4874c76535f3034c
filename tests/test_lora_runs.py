"""LoRAs in the commands: sampling, pruning and distilling with them, and what their workdirs record."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import bksdm_jax
from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import file_sha256, read_json, write_json
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pruning.prune import PruneConfig, prune
from bksdm_jax.sampling.run import sample
from bksdm_jax.tasks.distill import task as distill_task
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.inputs import open_inputs
from bksdm_jax.tasks.distill.task import DistillTask, distill
from tests import loras, tiny
from tests.arrays import require_equal
from tests.fake_hub import REPOSITORY, fake_hub
from tests.sampling_runs import pixels, quick, use_one_device


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two LoRAs of the smallest teachers, by the names of their modules."""
    folder, found = tmp_path_factory.mktemp("files"), []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        down, up = (torch.randn(shape, generator=generator) for shape in ((4, 32), (32, 4)))
        names = {"unet": "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v"}
        names["text_encoder"] = "encoder.layers.0.self_attn.v_proj"
        pairs = {network: {name: (down, up)} for network, name in names.items()}
        found.append(loras.write(folder / f"style{seed}.safetensors", loras.kohya(pairs, 2.0)))
    return found[0], found[1]


def changed(before: Any, after: Any) -> set[str]:
    ours, theirs = trees.flatten(before), trees.flatten(after)
    return {path for path, leaf in ours.items() if not np.array_equal(leaf, theirs[path])}


def test_from_python(pico_teacher: Path, files: tuple[Path, Path]) -> None:
    before = bksdm_jax.load(pico_teacher)
    both = bksdm_jax.load(pico_teacher, lora=(f"{files[0]}=0.5", str(files[1])))
    assert changed(before.params, both.params) == {
        "unet/down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_v/kernel",
        "text_encoder/text_model/encoder/layers/0/self_attn/v_proj/kernel",
    }
    one = bksdm_jax.load(pico_teacher, lora=str(files[0]), clip_skip=1)
    assert changed(before.denoiser.params, one.denoiser.params)
    back = bksdm_jax.load(pico_teacher, lora=(str(files[0]), f"{files[0]}=-1"))
    for path, leaf in trees.flatten(before.params).items():
        np.testing.assert_allclose(trees.flatten(back.params)[path], leaf, atol=1e-5, err_msg=path)
    with pytest.raises(InputError, match=r"v_proj.*finite.*weight 1e\+38"):
        bksdm_jax.load(pico_teacher, lora=f"{files[0]}=1e38")


def test_sampling(
    pico_teacher: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_one_device(monkeypatch)
    settings = {"batch_size": 1, "beside": (str(pico_teacher),)}
    sample(quick(pico_teacher, lora=(f"{files[0]}=0.5",), **settings), tmp_path / "out")
    assert read_json(tmp_path / "out" / "config.json")["loras"] == [{"sha256": file_sha256(files[0]), "weight": 0.5}]
    assert np.abs(pixels(tmp_path / "out") - pixels(tmp_path / "out" / "beside_1")).mean() > 2
    with Image.open(tmp_path / "out" / "images" / "000000.png") as image:
        assert "LoRA: style0.safetensors 0.5" in image.text["parameters"]
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(files[0].read_bytes())
    sample(quick(pico_teacher, lora=(f"{copy}=0.5",), **settings), tmp_path / "out")
    for number, weight, said in ((1, 0.5, "sha256 changed"), (0, 0.6, r"weight is 0\.5")):
        with pytest.raises(InputError, match=rf"config\.json: .*loras\.0\.{said}"):
            sample(quick(pico_teacher, lora=(f"{files[number]}={weight}",), **settings), tmp_path / "out")
    with pytest.raises(InputError, match=r"loras is \[.* now not set"):
        sample(quick(pico_teacher, **settings), tmp_path / "out")


def test_pruning(micro_teacher: Path, files: tuple[Path, Path], tmp_path: Path) -> None:
    """The student gets the merged weights, and its card says so."""
    prune(PruneConfig(str(micro_teacher), tiny.MICRO_SMALL, lora=(f"{files[0]}=0.5",)), tmp_path / "student")
    merged = bksdm_jax.prune(bksdm_jax.load(micro_teacher, lora=f"{files[0]}=0.5"), tiny.MICRO_SMALL)
    require_equal(load_pipeline(tmp_path / "student").params, merged.params)
    bksdm_jax.save(merged, tmp_path / "saved")
    for folder in ("student", "saved"):
        card = (tmp_path / folder / "README.md").read_text()
        assert f"`style0.safetensors` (SHA-256 {file_sha256(files[0])}) with weight 0.5" in card
        assert str(files[0].parent) not in card
    with pytest.raises(InputError, match="nowhere"):
        prune(PruneConfig(str(micro_teacher), tiny.MICRO_SMALL, lora=("nowhere",)), tmp_path / "other")


def test_distilling(
    micro_teacher: Path,
    photographs: Path,
    files: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The teacher is the merged one, from which the student begins; another file can't continue the run."""
    fixed = {"resolution": 16, "batch_size": 8, "accumulation": 1, "dtype": "float32"}

    def config(*names: str) -> DistillConfig:
        return DistillConfig(str(micro_teacher), tiny.MICRO_STUDENT, str(photographs), lora=names, **fixed)

    task = DistillTask(config(f"{files[0]}=0.5"), open_inputs(config(f"{files[0]}=0.5")))
    merged = bksdm_jax.load(micro_teacher, lora=f"{files[0]}=0.5")
    assert task.teacher_sha256 == merged.identity() != load_pipeline(micro_teacher).identity()
    require_equal(task.initial_params(), bksdm_jax.prune(merged, tiny.MICRO_STUDENT).denoiser.params)
    frozen = dict(task.frozen_params())
    require_equal(frozen["teacher"], merged.denoiser.params)
    require_equal(frozen["text_encoder"], merged.networks["text_encoder"].params)
    monkeypatch.setattr(distill_task, "train", lambda *_, **__: None)
    distill(config(f"{files[0]}=0.5"), tmp_path / "run")
    assert read_json(tmp_path / "run" / "config.json")["loras"][0]["weight"] == 0.5
    distill(config(f"{files[0]}=0.5"), tmp_path / "run")
    with pytest.raises(InputError, match=r"loras\.0\.sha256 changed since"):
        distill(config(f"{files[1]}=0.5"), tmp_path / "run")
    distill(config(), tmp_path / "without")
    record = read_json(tmp_path / "without" / "config.json")
    assert "loras" not in record
    before = {key: value for key, value in record.items() if "lora" not in key}  # of a version without LoRAs
    write_json(tmp_path / "without" / "config.json", before)
    distill(config(), tmp_path / "without")
    with pytest.raises(InputError, match=r"loras is not set in this workdir"):
        distill(config(str(files[0])), tmp_path / "without")


def test_from_the_hub(
    pico_teacher: Path, files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the LoRA's files are fetched."""
    asked: list[str] = []
    served = tmp_path / "served"
    for name in ("pytorch_lora_weights.safetensors", "pictures/1.png"):
        (served / name).parent.mkdir(parents=True, exist_ok=True)
        (served / name).write_bytes(files[0].read_bytes())
    (served / "other").mkdir()
    (served / "other" / "style.safetensors").write_bytes(files[1].read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with fake_hub(served, asked) as address:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        ours = bksdm_jax.load(pico_teacher, lora=f"{REPOSITORY}=0.5")
        given = bksdm_jax.load(pico_teacher, lora=f"{REPOSITORY}/other/style.safetensors")
        with pytest.raises(InputError, match=r"nothing\.safetensors: no such file on the hub"):
            bksdm_jax.load(pico_teacher, lora=f"{REPOSITORY}/nothing.safetensors")
    require_equal(ours.params, bksdm_jax.load(pico_teacher, lora=f"{files[0]}=0.5").params)
    require_equal(given.params, bksdm_jax.load(pico_teacher, lora=str(files[1])).params)
    assert not any("pictures" in one for one in asked)
